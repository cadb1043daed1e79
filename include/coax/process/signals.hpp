#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/signal_bits.hpp>
#include <coax/process/signal_hub.hpp>
#include <coax/task/result.hpp>
#include <coax/task/task.hpp>

#include <concepts>
#include <csignal>
#include <string>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

inline task<int> wait_for_signal(signal_bits wanted) {
  const int number = co_await signal_awaiter(wanted);
  co_return number;
}

}  // namespace detail

/// Which signals to wait for: `{SIGINT, SIGTERM}`.
///
/// Errors    std::invalid_argument for a number that is no signal, or that cannot be caught
///           (SIGKILL, SIGSTOP) or must not be (SIGSEGV and the other faults).
class signal_set {
 public:
  // No std::initializer_list: g++ 12 does not compile one that stands inside a co_await expression.
  template <std::same_as<int>... Number>
    requires(sizeof...(Number) > 0)
  signal_set(Number... numbers) {
    (add(numbers), ...);
  }

  detail::signal_bits bits() const noexcept { return bits_; }

 private:
  void add(int number) {
    const bool fault =
        number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL;
    sigset_t probe;
    sigemptyset(&probe);
    // The C library keeps some numbers for itself; sigaddset knows.
    if (number == SIGKILL || number == SIGSTOP || fault || sigaddset(&probe, number) != 0)
      detail::throw_invalid_argument("coax: signals cannot wait for signal " +
                                     std::to_string(number) +
                                     ": it is none, or one that no program should catch");
    bits_ |= detail::signal_bit(number);
  }

  detail::signal_bits bits_ = 0;
};

/// Waits for one of `wanted`.
///
/// Each thread hears of a signal that comes: everybody who waits for it there is told, or, when
/// nobody does, the next who will. A thread hears of those that come after its first call for them;
/// one of `run_threads`, of all that come to the others. From this call on until the run ends the
/// signals no longer have their usual effect; one that nobody in any thread took has it then. They
/// are unblocked in this thread.
///
/// Result    the signal's number.
/// Errors    std::system_error as eventfd(2), from this call.
/// Thread    a reactor's.
inline task<int> signals(signal_set wanted) {
  if (auto own = reactor::current().own_signals(wanted.bits())) return std::move(*own);
  detail::signal_hub::instance().watch_from(reactor::current(), wanted.bits());
  const sigset_t set = detail::set_of(wanted.bits());
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  return detail::wait_for_signal(wanted.bits());
}

}  // namespace coax::inline COAX_ABI
