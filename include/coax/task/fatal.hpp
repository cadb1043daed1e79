#pragma once

#include <coax/config.hpp>

#include <cstdio>
#include <cstdlib>

namespace coax::inline COAX_ABI::detail {

/// Ends the process because the program broke a rule that no result could report.
///
/// For misuse that would corrupt memory if it went on; never for anything the network can cause.
[[noreturn]] inline void fatal(const char* what) noexcept {
  std::fprintf(stderr, "coax: %s\n", what);
  std::fflush(stderr);
  std::abort();
}

}  // namespace coax::inline COAX_ABI::detail
