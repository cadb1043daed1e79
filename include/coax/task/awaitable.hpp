#pragma once

#include <coax/config.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <concepts>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

template <class A>
decltype(auto) awaiter_of(A&& a) {
  if constexpr (has_member_co_await<A>)
    return std::forward<A>(a).operator co_await();
  else if constexpr (has_free_co_await<A>)
    return operator co_await(std::forward<A>(a));
  else
    return std::forward<A>(a);
}

}  // namespace detail

/// What `co_await` of an `A` gives.
template <class A>
using await_result_t =
    std::remove_cvref_t<decltype(detail::awaiter_of(std::declval<A>()).await_resume())>;

template <class A>
inline constexpr bool is_task_v = false;
template <class T>
inline constexpr bool is_task_v<task<T>> = true;

namespace detail {

/// Any awaitable as a task, so that it can be the first of a root.
template <class A>
task<await_result_t<A>> as_task(A awaitable) {
  if constexpr (is_task_v<A>)
    return awaitable;
  else
    return [](A held) -> task<await_result_t<A>> {
      co_return co_await std::move(held);
    }(std::move(awaitable));
}

}  // namespace detail

}  // namespace coax::inline COAX_ABI
