#pragma once

#include <coax/config.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/root.hpp>

#include <coroutine>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// The await of `shield`: what is inside, with the root shielded for as long as it takes.
template <class A>
class shield_awaiter {
 public:
  explicit shield_awaiter(A&& awaitable)
      : held_(std::move(awaitable)), inner_(awaiter_of(std::move(held_))) {}
  shield_awaiter(const shield_awaiter&) = delete;
  shield_awaiter& operator=(const shield_awaiter&) = delete;
  ~shield_awaiter() { lift(); }

  bool await_ready() { return inner_.await_ready(); }

  template <class P>
  auto await_suspend(std::coroutine_handle<P> coroutine) {
    if constexpr (task_promise<P>) {
      root_ = coroutine.promise().root();
      root_->shield();
    }
    return inner_.await_suspend(coroutine);
  }

  decltype(auto) await_resume() {
    lift();
    return inner_.await_resume();
  }

 private:
  void lift() noexcept {
    if (root_ != nullptr) std::exchange(root_, nullptr)->unshield();
  }

  A held_;
  decltype(awaiter_of(std::declval<A>())) inner_;
  root* root_ = nullptr;
};

}  // namespace detail

/// What `shield` gives: to be awaited.
template <class A>
class [[nodiscard]] shielded {
 public:
  explicit shielded(A&& awaitable) noexcept(std::is_nothrow_move_constructible_v<A>)
      : awaitable_(std::move(awaitable)) {}

  detail::shield_awaiter<A> operator co_await() && {
    return detail::shield_awaiter<A>(std::move(awaitable_));
  }

 private:
  A awaitable_;
};

/// Holds cancellation off while `awaitable` is awaited: a request that comes meanwhile waits, and the
/// first wait after it unwinds. It is tried even when the task is being cancelled already.
///
/// `within` inside it still fires. Write `shield(within(d, x))`: a shield without a deadline can keep
/// a task that is being cancelled for ever.
///
/// Result    that of `awaitable`.
template <class A>
shielded<A> shield(A&& awaitable) {
  static_assert(!std::is_lvalue_reference_v<A>,
                "move the awaitable into shield, or call what makes it there");
  return shielded<A>(std::forward<A>(awaitable));
}

}  // namespace coax::inline COAX_ABI
