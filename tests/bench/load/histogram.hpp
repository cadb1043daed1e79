#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

/// Counts of nanoseconds in buckets 1/64 of their power of two wide: none is off by more than 0.8 %.
class histogram {
 public:
  void add(std::int64_t nanoseconds) {
    const auto value = static_cast<std::uint64_t>(std::max<std::int64_t>(nanoseconds, 0));
    const auto shift = static_cast<std::size_t>(std::bit_width(value | 64) - 7);
    ++buckets_[shift * 64 + static_cast<std::size_t>(value >> shift)];
    ++count_;
    max_ = std::max(max_, value);
  }

  std::uint64_t count() const { return count_; }

  /// The microseconds that this part of all did not exceed.
  double quantile(double part) const {
    auto left = static_cast<std::uint64_t>(std::ceil(part * static_cast<double>(count_)));
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      if (buckets_[i] >= left)
        return static_cast<double>(part < 1 ? std::min(middle(i), max_) : max_) / 1000;
      left -= buckets_[i];
    }
    return 0;
  }

  /// Calls `f(nanoseconds, count)` for each bucket that is not empty.
  template <class F>
  void for_each(F&& f) const {
    for (std::size_t i = 0; i < buckets_.size(); ++i)
      if (buckets_[i] > 0) f(middle(i), buckets_[i]);
  }

 private:
  static std::uint64_t middle(std::size_t bucket) {
    const std::size_t shift = bucket < 128 ? 0 : bucket / 64 - 1;
    return ((bucket - shift * 64) << shift) + ((std::uint64_t{1} << shift) >> 1);
  }

  std::array<std::uint64_t, std::size_t{64} * 59> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t max_ = 0;
};
