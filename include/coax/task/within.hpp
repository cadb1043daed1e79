#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/composite.hpp>
#include <coax/task/result.hpp>
#include <coax/task/timers.hpp>

#include <concepts>
#include <coroutine>
#include <system_error>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// Itself one wait, so that stopping it needs no root of its own.
template <class A>
concept single_wait = std::derived_from<A, waiter> && !std::derived_from<A, composite>;

template <class T>
using flattened = std::conditional_t<is_result_v<T>, T, result<T>>;

/// The timer of a wait: asks it to stop when the time is up. What has completed by then stays
/// completed.
template <class Wait>
class stop_after final : public timer {
 public:
  stop_after(Wait& wait, timeout limit) noexcept : wait_(wait), limit_(limit) {}
  stop_after(const stop_after&) = delete;
  stop_after& operator=(const stop_after&) = delete;
  ~stop_after() { drop(); }

  timeout limit() const noexcept { return limit_; }

  void set() noexcept {
    deadlines_ = &loop::current().deadlines();
    deadlines_->set(*this, limit_.after(now()));
  }
  void drop() noexcept {
    if (deadlines_ != nullptr) std::exchange(deadlines_, nullptr)->drop(*this);
  }

 private:
  void expired() noexcept override { wait_.request_stop(); }

  Wait& wait_;
  timeout limit_;
  timers* deadlines_ = nullptr;  // where it is set
};

}  // namespace detail

/// The await of `within` around a single wait: that wait and a timer, no more.
template <class Wait>
class within_wait {
 public:
  using result_type = detail::flattened<await_result_t<Wait>>;
  using resumed_by_loop = Wait;

  within_wait(timeout limit, Wait&& wait) noexcept : wait_(std::move(wait)), timer_(wait_, limit) {}
  within_wait(within_wait&& other) noexcept  // before it is awaited
      : within_wait(other.timer_.limit(), std::move(other.wait_)) {}

  bool await_ready() noexcept { return wait_.await_ready(); }

  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) {
    const bool suspended = wait_.await_suspend(coroutine);
    if (wait_.is_waiting()) timer_.set();
    return suspended;
  }

  result_type await_resume() {
    timer_.drop();
    if (wait_.was_stopped()) return std::make_error_code(std::errc::timed_out);
    if constexpr (std::is_void_v<await_result_t<Wait>>) {
      wait_.await_resume();
      return {};
    } else {
      return wait_.await_resume();
    }
  }

 private:
  Wait wait_;
  detail::stop_after<Wait> timer_;
};

/// The await of `within` around anything else, which runs as a root of its own.
template <class T>
class within_task final : public detail::composite {
 public:
  using result_type = detail::flattened<T>;

  within_task(timeout limit, task<detail::regular_t<T>> t) noexcept
      : branch_(std::move(t)), timer_(*this, limit) {}
  within_task(within_task&& other) noexcept  // before it is awaited
      : composite(std::move(other)),
        branch_(std::move(other.branch_)),
        timer_(*this, other.timer_.limit()) {}

  waiting_for describe() const noexcept override { return {"a task with a deadline"}; }

  result_type await_resume() {
    timer_.drop();
    rethrow_failure();
    if (!branch_.finished()) return std::make_error_code(std::errc::timed_out);
    if constexpr (std::is_void_v<T>)
      return {};
    else
      return *branch_.take();
  }

 private:
  void begin() noexcept override {
    branch_.begin(*this);
    if (live() != 0) timer_.set();
  }

  detail::branch<detail::regular_t<T>> branch_;
  detail::stop_after<composite> timer_;
};

/// Awaits `awaitable` for at most `limit`.
///
/// It is always tried, however short the limit is. When time runs out it is cancelled, and `within`
/// returns once that has ended; if it completed after all, its result is given.
///
/// Result    `result<T>` for an awaitable that gives `T`; the same `result<T>` where it gives one
///           already.
/// Errors    std::errc::timed_out when time ran out; otherwise those of `awaitable`.
template <class A>
[[nodiscard]] auto within(timeout limit, A&& awaitable) {
  static_assert(!std::is_lvalue_reference_v<A>,
                "move the awaitable into within, or call what makes it there");
  if constexpr (detail::single_wait<A>)
    return within_wait<A>(limit, std::forward<A>(awaitable));
  else
    return within_task<await_result_t<A>>(limit,
                                          detail::as_regular_task(std::forward<A>(awaitable)));
}

}  // namespace coax::inline COAX_ABI
