#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <optional>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// The task a reactor runs for: its end is the end of the run.
template <class T>
class main_root final : public root {
 public:
  explicit main_root(task<T> t) noexcept : reactor_(reactor::current()) {
    const auto frame = std::move(t).release();
    if (!frame) fatal("a run was given a task that had been moved from");
    adopt(frame);
    start_later();
    reactor_.runs_for(this);
  }
  ~main_root() { destroy_first(); }

  bool has_ended() const noexcept { return ended_; }
  /// What the task gives. One that was cancelled gives nothing: where a result is expected, only
  /// together with a failure to rethrow.
  T take() {
    reactor_.rethrow_failure();
    if constexpr (std::is_void_v<T>)
      if (!frame()) return;
    return frame().promise().take();
  }
  /// The same as an optional, of a task<> as a bool: false when it was cancelled.
  auto take_if_finished() {
    reactor_.rethrow_failure();
    if constexpr (std::is_void_v<T>) {
      if (frame()) frame().promise().take();
      return frame() != nullptr;
    } else {
      return frame() ? std::optional<T>(frame().promise().take()) : std::nullopt;
    }
  }

 private:
  void ended(outcome) noexcept override {
    ended_ = true;
    reactor_.runs_for(nullptr);
  }

  auto frame() const noexcept { return this->template first<typename task<T>::promise_type>(); }

  reactor& reactor_;
  bool ended_ = false;
};

}  // namespace coax::inline COAX_ABI::detail
