#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/timers.hpp>

#include <coroutine>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// The timer of a wait, as a base of what holds that: asks it to stop when the time is up. What has
/// completed by then stays completed. The end of time is no limit.
class time_limit : public timer {
 public:
  time_limit(const time_limit&) = delete;
  time_limit& operator=(const time_limit&) = delete;

  using timer::limit;

 protected:
  explicit time_limit(timeout of_the_wait = clock::duration::max()) noexcept { limit(of_the_wait); }
  ~time_limit() {
    if (is_set()) loop::current().deadlines().drop(*this);
  }

  /// Counts from the end of this turn, or from when another timer is set before that: most waits have
  /// ended by then.
  void set_limit() noexcept {
    if (limit().value() != clock::duration::max()) loop::running()->deadlines().set_later(*this);
  }
};

/// A wait, and the timer that limits it if a limit is set.
template <class Wait>
class limited_wait final : private time_limit {
 public:
  using resumed_by_loop = Wait;

  template <class... A>
  explicit limited_wait(A&&... args) noexcept : wait_(std::forward<A>(args)...) {}
  limited_wait(limited_wait&& other) noexcept  // before it is awaited
      : time_limit(other.limit()), wait_(std::move(other.wait_)) {}

  using time_limit::limit;
  bool was_stopped() const noexcept { return wait_.was_stopped(); }

  bool await_ready() noexcept { return wait_.await_ready(); }
  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) {
    const bool suspended = wait_.await_suspend(coroutine);
    if (wait_.is_waiting()) set_limit();
    return suspended;
  }
  decltype(auto) await_resume() { return wait_.await_resume(); }

 private:
  void expired() noexcept override { wait_.request_stop(); }

  Wait wait_;
};

}  // namespace coax::inline COAX_ABI::detail
