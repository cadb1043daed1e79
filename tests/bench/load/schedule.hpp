#pragma once

#include "histogram.hpp"
#include "time.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

/// Messages that are meant to be sent at equal distances, the connections taking turns.
class schedule {
 public:
  schedule(double rate, std::size_t connections, std::size_t size)
      : apart_(1e9 / rate), size_(size), answered_(connections), begins_(clock_now() + 1'000'000) {}

  /// When the message is due that comes next.
  std::int64_t next() const { return due(sent_); }
  /// The number of the connection it is for; the schedule goes on to the one after it.
  std::size_t take() { return sent_++ % answered_.size(); }

  /// Connection `number` has received so many bytes: adds the time since they were due of those
  /// messages that were due from `from` on. Result: messages that are new.
  std::size_t answered(std::size_t number, std::uint64_t bytes, std::int64_t from,
                       histogram& latency) {
    const std::int64_t now = clock_now();
    std::size_t count = 0;
    for (std::uint64_t& m = answered_[number]; m < bytes / size_; ++m, ++count)
      if (const std::int64_t at = due(m * answered_.size() + number); at >= from)
        latency.add(now - at);
    return count;
  }

 private:
  std::int64_t due(std::uint64_t message) const {
    return begins_ + static_cast<std::int64_t>(static_cast<double>(message) * apart_);
  }

  double apart_;  // ns
  std::size_t size_;
  std::vector<std::uint64_t> answered_;  // messages, by connection
  std::uint64_t sent_ = 0;
  std::int64_t begins_;
};
