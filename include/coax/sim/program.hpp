#pragma once

#include <coax/config.hpp>
#include <coax/io/main_root.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/task.hpp>

#include <exception>
#include <functional>
#include <memory>
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
class program_of final : public program {
 public:
  explicit program_of(task<T> t) noexcept : main_(std::move(t)) {}

  bool has_ended() const noexcept override { return main_.has_ended(); }
  void cancel() noexcept override { main_.cancel(); }
  std::exception_ptr failure() noexcept override {
    return coax::detail::caught([this] { static_cast<void>(main_.take_if_finished()); });
  }

 private:
  coax::detail::main_root<T> main_;
};

}  // namespace coax::inline COAX_ABI::sim
