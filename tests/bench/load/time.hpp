#pragma once

#include <cstdint>
#include <ctime>

inline std::int64_t nanoseconds_of(const timespec& t) {
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

/// Monotonic, in nanoseconds.
inline std::int64_t clock_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return nanoseconds_of(now);
}

inline std::int64_t nanoseconds(double seconds) { return static_cast<std::int64_t>(seconds * 1e9); }
