#pragma once

#include <coax/config.hpp>

#include <csignal>
#include <cstdint>

namespace coax::inline COAX_ABI::detail {

/// Signals as bits: signal n is bit n - 1.
using signal_bits = std::uint64_t;
inline constexpr int signal_max = 64;
constexpr signal_bits signal_bit(int number) noexcept { return signal_bits{1} << (number - 1); }

/// Those that ask a program to stop.
inline constexpr signal_bits stop_signals = signal_bit(SIGINT) | signal_bit(SIGTERM);

/// The same as the C library has them.
inline sigset_t set_of(signal_bits bits) noexcept {
  sigset_t set;
  sigemptyset(&set);
  for (int number = 1; number <= signal_max; ++number)
    if ((bits & signal_bit(number)) != 0) sigaddset(&set, number);
  return set;
}

}  // namespace coax::inline COAX_ABI::detail
