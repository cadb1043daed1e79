#pragma once

#include "fail.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

/// The bytes all connections send: random, and repeated with a period that is a prime.
///
/// Connection c sends it from another place on. So any byte that is lost, doubled, changed, out of
/// place or another connection's differs from what is due, and making and checking the bytes costs
/// the load no more than a comparison.
class pattern {
 public:
  /// The longest run of bytes that can be taken at once.
  static constexpr std::size_t run_max = 256 * 1024;

  pattern() : bytes_(period + run_max) {
    std::uint64_t state = 1;
    for (std::size_t i = 0; i < period; ++i) {
      state += 0x9E3779B97F4A7C15;  // splitmix64
      std::uint64_t word = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9;
      word = (word ^ (word >> 27)) * 0x94D049BB133111EB;
      bytes_[i] = static_cast<char>(word ^ (word >> 31));
    }
    for (std::size_t i = 0; i < run_max; ++i) bytes_[period + i] = bytes_[i];
  }

  /// `run_max` bytes and more from `position` on.
  const char* at(std::uint64_t position) const { return &bytes_[position % period]; }

  /// Where the stream of a connection begins.
  static std::uint64_t begin(std::size_t connection) { return connection * 7919; }

  void check(std::uint64_t position, const char* bytes, std::size_t size) const {
    const char* due = at(position);
    if (std::memcmp(due, bytes, size) == 0) return;
    std::size_t wrong = 0;
    while (due[wrong] == bytes[wrong]) ++wrong;
    fail("a byte came back changed, " + std::to_string(wrong) + " bytes into " +
         std::to_string(size) + " that were received");
  }

 private:
  static constexpr std::size_t period = 262'139;

  std::vector<char> bytes_;
};
