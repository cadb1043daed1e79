#pragma once

#include <coax/config.hpp>

#include <type_traits>

namespace coax::inline COAX_ABI::detail {

/// False for what g++ 12 would destroy twice if it were written inside a co_await expression, as in
/// `co_await c.send({.text = "..."})`: an aggregate with a destructor. The library cannot see whether
/// it was, so it refuses such a type.
template <class A>
inline constexpr bool survives_co_await =
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
    !std::is_aggregate_v<A> || std::is_trivially_destructible_v<A>;
#else
    true;
#endif

}  // namespace coax::inline COAX_ABI::detail
