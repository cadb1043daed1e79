#pragma once

#include <coax/config.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/boxed.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/composite.hpp>
#include <coax/task/result.hpp>
#include <coax/task/root.hpp>
#include <coax/task/time_limit.hpp>

#include <chrono>
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

/// Its await is one.
template <class A>
concept makes_single_wait =
    has_member_co_await<A> && single_wait<decltype(awaiter_of(std::declval<A>()))>;

template <class A>
inline constexpr bool is_boxed = false;
template <class Wait>
inline constexpr bool is_boxed<boxed<Wait>> = true;

template <class T>
using flattened = std::conditional_t<is_result_v<T>, T, result<T>>;

}  // namespace detail

/// The await of `within` around a single wait, which has a place for the limit.
template <class Wait>
class within_wait final {
 public:
  using result_type = detail::flattened<await_result_t<Wait>>;
  using resumed_by_loop = Wait;

  template <class A>
  within_wait(timeout limit, A&& wait) noexcept : wait_(std::forward<A>(wait)) {
    wait_.limit(limit);
  }

  bool await_ready() noexcept { return wait_.await_ready(); }
  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) {
    return wait_.await_suspend(coroutine);
  }
  result_type await_resume() {
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
};

/// The await of `within` around anything else, which runs as a root of its own.
template <class T>
class within_task final : public detail::composite, private detail::time_limit {
 public:
  using result_type = detail::flattened<T>;

  within_task(timeout limit, task<detail::regular_t<T>> t) noexcept
      : time_limit(limit), branch_(std::move(t)) {}
  within_task(within_task&& other) noexcept  // before it is awaited
      : composite(std::move(other)), time_limit(other.limit()), branch_(std::move(other.branch_)) {}

  waiting_for describe() const noexcept override { return {"a task with a deadline"}; }

  result_type await_resume() {
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
    if (live() != 0) set_limit();
  }

  void expired() noexcept override { request_stop(); }

  detail::branch<detail::regular_t<T>> branch_;
};

/// Awaits `awaitable` for at most `limit`.
///
/// It is always tried, however short the limit is: a task runs to its first wait, and on if what that is
/// for is there. The limit counts from the end of the reactor's turn at the latest. When time runs out
/// the awaitable is cancelled, and `within` returns once that has ended; if it completed after all, its
/// result is given.
///
/// Result    `result<T>` for an awaitable that gives `T`; the same `result<T>` where it gives one
///           already.
/// Errors    std::errc::timed_out when time ran out; otherwise those of `awaitable`.
template <class A>
[[nodiscard]] auto within(timeout limit, A&& awaitable) {
  static_assert(!std::is_lvalue_reference_v<A>,
                "move the awaitable into within, or call what makes it there");
  if constexpr (detail::is_boxed<A>)
    return within_wait<A>(limit, std::forward<A>(awaitable));
  else if constexpr (detail::single_wait<A>)
    return within_wait<detail::limited_wait<A>>(limit, std::forward<A>(awaitable));
  else if constexpr (detail::makes_single_wait<A>)
    return within(limit, detail::awaiter_of(std::forward<A>(awaitable)));
  else
    return within_task<await_result_t<A>>(limit, detail::as_task(std::forward<A>(awaitable)));
}

/// The same. For a duration that is no `timeout` yet g++ would keep both in the frame.
template <class Rep, class Period, class A>
[[nodiscard]] auto within(const std::chrono::duration<Rep, Period>& limit, A&& awaitable) {
  return within(timeout(limit), std::forward<A>(awaitable));
}

}  // namespace coax::inline COAX_ABI
