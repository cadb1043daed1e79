#pragma once

#include <coax/config.hpp>

#include <bit>
#include <csignal>
#include <cstdint>

namespace coax::inline COAX_ABI::detail {

/// Signals as bits: signal n is bit n - 1.
using signal_bits = std::uint64_t;
inline constexpr int signal_max = 64;
constexpr signal_bits signal_bit(int number) noexcept { return signal_bits{1} << (number - 1); }

/// The lowest of those in `bits`, of which there is one.
constexpr int first_signal(signal_bits bits) noexcept { return std::countr_zero(bits) + 1; }
/// Calls `f` with the number of each, the lowest first.
template <class F>
void for_each_signal(signal_bits bits, F&& f) {
  for (; bits != 0; bits &= bits - 1) f(first_signal(bits));
}

/// Those that ask a program to stop.
inline constexpr signal_bits stop_signals = signal_bit(SIGINT) | signal_bit(SIGTERM);
constexpr bool is_stop(int number) noexcept {
  return number > 0 && (stop_signals & signal_bit(number)) != 0;
}

/// The same as the C library has them, and back.
inline sigset_t set_of(signal_bits bits) noexcept {
  sigset_t set;
  sigemptyset(&set);
  for_each_signal(bits, [&](int number) { sigaddset(&set, number); });
  return set;
}
inline signal_bits bits_of(const sigset_t& set) noexcept {
  signal_bits bits = 0;
  for (int number = 1; number <= signal_max; ++number)
    if (sigismember(&set, number) == 1) bits |= signal_bit(number);
  return bits;
}

}  // namespace coax::inline COAX_ABI::detail
