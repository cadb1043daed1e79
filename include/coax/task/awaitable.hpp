#pragma once

#include <coax/config.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <type_traits>
#include <utility>

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
