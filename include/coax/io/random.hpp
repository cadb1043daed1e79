#pragma once

#include <coax/config.hpp>
#include <coax/io/syscalls.hpp>

#include <cstdint>

namespace coax::inline COAX_ABI {

/// 64 random bits, from the operating system. In a simulation they follow from its seed, so that a
/// server that shuffles or jitters by them can be replayed.
///
/// See       getrandom(2).
inline std::uint64_t random() noexcept { return syscalls::current().random(); }

}  // namespace coax::inline COAX_ABI
