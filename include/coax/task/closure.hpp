#pragma once

#include <coax/config.hpp>

#include <type_traits>

namespace coax::inline COAX_ABI::detail {

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
