#pragma once

#include <coax/config.hpp>
#include <coax/task/boxed.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/composite.hpp>
#include <coax/task/result.hpp>
#include <coax/task/timers.hpp>

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

template <class A>
inline constexpr bool is_described_single_wait = false;
template <wait_description A>
inline constexpr bool is_described_single_wait<A> = single_wait<typename A::wait_type>;
template <class A>
concept described_single_wait = is_described_single_wait<A>;

template <class T>
using flattened = std::conditional_t<is_result_v<T>, T, result<T>>;

/// The timer of a wait, as a base of what holds that: asks it to stop when the time is up. What has
/// completed by then stays completed.
class time_limit : public timer {
 public:
  explicit time_limit(timeout limit) noexcept : limit_(limit) {}
  time_limit(const time_limit&) = delete;
  time_limit& operator=(const time_limit&) = delete;

  timeout limit() const noexcept { return limit_; }

 protected:
  ~time_limit() {
    if (is_set()) loop::current().deadlines().drop(*this);
  }

  void set_limit() noexcept {
    loop& here = loop::current();
    here.deadlines().set(
        *this, limit_.after(limit_.value() < long_enough ? here.now() : here.rough_now()));
  }

 private:
  // Reading the clock exactly costs as much as all else that is done for a timeout.
  static constexpr clock::duration long_enough = std::chrono::seconds(1);

  timeout limit_;
};

}  // namespace detail

/// The await of `within` around a single wait: that wait and a timer, no more.
template <class Wait>
class within_wait final : private detail::time_limit {
 public:
  using result_type = detail::flattened<await_result_t<Wait>>;
  using resumed_by_loop = Wait;

  within_wait(timeout limit, Wait&& wait) noexcept : time_limit(limit), wait_(std::move(wait)) {}
  template <detail::wait_description D>
  within_wait(timeout limit, const D& described) noexcept
      : time_limit(limit), wait_(described.make()) {}
  within_wait(within_wait&& other) noexcept  // before it is awaited
      : within_wait(other.limit(), std::move(other.wait_)) {}

  bool await_ready() noexcept { return wait_.await_ready(); }

  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) {
    const bool suspended = wait_.await_suspend(coroutine);
    if (wait_.is_waiting()) set_limit();
    return suspended;
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
  void expired() noexcept override { wait_.request_stop(); }

  Wait wait_;
};

/// What `within` gives for something that is itself a description.
template <detail::wait_description D>
class [[nodiscard]] within_description {
 public:
  using wait_type = within_wait<typename D::wait_type>;

  within_description(timeout limit, const D& described) noexcept
      : limit_(limit), described_(described) {}

  wait_type make() const noexcept { return {limit_, described_}; }
  detail::boxed<wait_type> operator co_await() const noexcept {
    return detail::boxed<wait_type>(*this);
  }

 private:
  timeout limit_;
  D described_;
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
  if constexpr (detail::described_single_wait<A>)
    return within_description<A>(limit, awaitable);
  else if constexpr (detail::single_wait<A>)
    return within_wait<A>(limit, std::forward<A>(awaitable));
  else
    return within_task<await_result_t<A>>(limit,
                                          detail::as_regular_task(std::forward<A>(awaitable)));
}

}  // namespace coax::inline COAX_ABI
