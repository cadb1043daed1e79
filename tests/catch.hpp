#pragma once

/// Catch2, whichever of its two generations is installed: include this, never Catch2 itself.

#include <string>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
/// Matches a text in which `part` occurs.
inline auto contains(const std::string& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
#include <catch2/catch.hpp>
/// Matches a text in which `part` occurs.
inline auto contains(const std::string& part) { return Catch::Contains(part); }
#endif
