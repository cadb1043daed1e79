#pragma once

#include <coax/config.hpp>

#include <chrono>
#include <ratio>
#include <type_traits>

namespace coax::inline COAX_ABI {

/// The clock of coax: steady, in nanoseconds. Under simulation it is the virtual clock.
struct clock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<clock, duration>;
  static constexpr bool is_steady = true;

  /// The time of this thread's reactor; outside of one, the system's steady clock.
  static time_point now() noexcept;
};

/// A duration as a parameter: taken from any unit, saturating where nanoseconds would overflow.
///
/// `std::chrono::hours(24 * 365 * 300)` is more nanoseconds than 64 bits hold; as a `timeout` it is
/// "the end of time", and waiting for it is waiting for ever, as is what is no number. A negative one has
/// passed already.
class timeout {
 public:
  template <class Rep, class Period>
  constexpr timeout(const std::chrono::duration<Rep, Period>& d) noexcept : value_(saturated(d)) {}

  constexpr clock::duration value() const noexcept { return value_; }

  /// The point that lies this far after `from`, at most the end of time.
  constexpr clock::time_point after(clock::time_point from) const noexcept {
    const clock::duration left = clock::time_point::max() - from;  // `from` is never negative
    return value_ > left ? clock::time_point::max() : from + value_;
  }

 private:
  template <class Rep, class Period>
  static constexpr clock::duration saturated(const std::chrono::duration<Rep, Period>& d) noexcept {
    if constexpr (std::is_same_v<std::chrono::duration<Rep, Period>, clock::duration>) return d;
    using seconds = std::chrono::duration<double>;
    const double approximate = std::chrono::duration_cast<seconds>(d).count();
    constexpr double limit = std::chrono::duration_cast<seconds>(clock::duration::max()).count();
    if (!(approximate < limit)) return clock::duration::max();
    if (approximate < 0) return clock::duration(-1);
    if constexpr (std::chrono::treat_as_floating_point_v<Rep>) {
      return std::chrono::duration_cast<clock::duration>(
          seconds(approximate));  // a float would overflow
    } else if constexpr (std::ratio_divide<Period, clock::period>::den == 1) {
      return std::chrono::duration_cast<clock::duration>(d);
    } else {
      // A unit that is no number of nanoseconds is multiplied before it is divided, which would overflow.
      const auto whole = std::chrono::duration_cast<std::chrono::seconds>(d);
      return whole + std::chrono::duration_cast<clock::duration>(d - whole);
    }
  }

  clock::duration value_;
};

}  // namespace coax::inline COAX_ABI
