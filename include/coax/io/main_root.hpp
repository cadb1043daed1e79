#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <coroutine>
#include <optional>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// The task a reactor runs for: its end is the end of the run.
template <class T>
class main_root final : public root {
 public:
  explicit main_root(task<T> t) noexcept
      : reactor_(reactor::current()), frame_(std::move(t).release()) {
    adopt(frame_);
    start_later();
    reactor_.runs_for(this);
  }
  ~main_root() {
    if (frame_) frame_.destroy();
  }

  bool has_ended() const noexcept { return ended_; }
  /// What the task gives. One that was cancelled gives nothing: where a result is expected, only
  /// together with a failure to rethrow.
  T take() {
    reactor_.rethrow_failure();
    if constexpr (std::is_void_v<T>)
      if (!frame_) return;
    return frame_.promise().take();
  }
  /// The same as an optional, of a task<> as a bool: false when it was cancelled.
  auto take_if_finished() {
    reactor_.rethrow_failure();
    if constexpr (std::is_void_v<T>) {
      if (frame_) frame_.promise().take();
      return frame_ != nullptr;
    } else {
      return frame_ ? std::optional<T>(frame_.promise().take()) : std::nullopt;
    }
  }

 private:
  void ended(outcome how) noexcept override {
    if (how == outcome::unwound) frame_ = nullptr;
    ended_ = true;
    reactor_.runs_for(nullptr);
  }

  reactor& reactor_;
  std::coroutine_handle<typename task<T>::promise_type> frame_;
  bool ended_ = false;
};

}  // namespace coax::inline COAX_ABI::detail
