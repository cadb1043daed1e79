#pragma once

#include <coax/config.hpp>

#include <tuple>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI::detail {

class not_callable;

/// What `F` gives when it is called with `A...`; `not_callable` when it cannot be. Asked instead of
/// std::invoke_result_t, it lets a static_assert say in words what is wrong.
template <class F, class... A>
struct given_by {
  using type = not_callable;
};
template <class F, class... A>
  requires std::is_invocable_v<F, A...>
struct given_by<F, A...> {
  using type = std::invoke_result_t<F, A...>;
};
template <class F, class... A>
using given_t = typename given_by<F, A...>::type;

/// std::invoke, without the tables and searchers that <functional> has each file read.
template <class F, class... A>
decltype(auto) invoke(F&& fn, A&&... args) {
  return std::apply(std::forward<F>(fn), std::forward_as_tuple(std::forward<A>(args)...));
}

/// Refuses what g++ 12 would destroy twice: a closure with a destructor that is written inside a
/// co_await expression. `F` is the deduced type of a forwarding reference.
template <class F>
constexpr void require_safe_closure() noexcept {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
  static_assert(
      std::is_lvalue_reference_v<F> || std::is_trivially_destructible_v<std::remove_cvref_t<F>>,
      "g++ 12 destroys such a closure twice: capture by reference, name the closure before the co_await, or pass what it owns as arguments");
#endif
}

/// The same for an argument of a call that is awaited: an aggregate with a destructor, as in
/// `co_await c.send({.text = "..."})`. Whether it was written there or moved there cannot be seen.
template <class A>
constexpr void require_safe_argument() noexcept {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
  static_assert(
      std::is_lvalue_reference_v<A> || !std::is_aggregate_v<A> ||
          std::is_trivially_destructible_v<A>,
      "g++ 12 destroys such an aggregate twice when it is written inside a co_await: give it a constructor");
#endif
}

}  // namespace coax::inline COAX_ABI::detail
