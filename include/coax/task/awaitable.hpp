#pragma once

#include <coax/config.hpp>
#include <coax/task/task.hpp>

#include <type_traits>
#include <utility>
#include <variant>

namespace coax::inline COAX_ABI {

/// What `co_await` of an `A` gives.
template <class A>
using await_result_t =
    std::remove_cvref_t<decltype(detail::awaiter_of(std::declval<A>()).await_resume())>;

template <class A>
inline constexpr bool is_task_v = false;
template <class T>
inline constexpr bool is_task_v<task<T>> = true;

namespace detail {

/// A result as a member of a tuple or an optional: `void` becomes std::monostate.
template <class T>
using regular_t = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

/// Any awaitable as a task whose result is an object, so that it can be the first of a root.
template <class A>
task<regular_t<await_result_t<A>>> as_task(A awaitable) {
  using result = await_result_t<A>;
  if constexpr (is_task_v<A> && !std::is_void_v<result>)
    return awaitable;
  else
    return [](A held) -> task<regular_t<result>> {
      if constexpr (std::is_void_v<result>) {
        co_await std::move(held);
        co_return std::monostate{};
      } else {
        co_return co_await std::move(held);
      }
    }(std::move(awaitable));
}

}  // namespace detail

}  // namespace coax::inline COAX_ABI
