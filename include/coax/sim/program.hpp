#pragma once

#include <coax/config.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI::sim {

/// What a host runs: a task, whatever it gives.
class program {
 public:
  program() = default;
  program(const program&) = delete;
  program& operator=(const program&) = delete;
  virtual ~program() = default;

  virtual bool has_ended() const noexcept = 0;
  virtual void cancel() noexcept = 0;
  /// What the task threw, or null. Once.
  virtual std::exception_ptr failure() noexcept = 0;
};

using make_program = std::function<std::unique_ptr<program>()>;

template <class T>
class program_of final : public program, private root {
 public:
  explicit program_of(task<T> t) noexcept : frame_(std::move(t).release()) {
    adopt(frame_);
    start_later();
  }
  ~program_of() override {
    if (frame_) frame_.destroy();
  }

  bool has_ended() const noexcept override { return ended_; }
  void cancel() noexcept override { root::cancel(); }
  std::exception_ptr failure() noexcept override {
    if (!frame_) return nullptr;  // it was cancelled
    try {
      static_cast<void>(frame_.promise().take());
    } catch (...) {
      return std::current_exception();
    }
    return nullptr;
  }

 private:
  void ended(outcome how) noexcept override {
    if (how == outcome::unwound) frame_ = nullptr;
    ended_ = true;
  }

  std::coroutine_handle<typename task<T>::promise_type> frame_;
  bool ended_ = false;
};

}  // namespace coax::inline COAX_ABI::sim
