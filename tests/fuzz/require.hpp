#pragma once

/// What a fuzz target does when a promise is broken: it dies, and the fuzzer keeps the input.

#include <cstdio>
#include <cstdlib>
#include <string_view>

inline void require(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}
