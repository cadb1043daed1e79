#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// What happened in a world, in order: the last events as text, all of them as a hash.
///
/// Nothing goes in that differs between machines or compilers, so that the same seed gives the same
/// hash everywhere.
class trace {
 public:
  static constexpr int network = -1;  // an event of no host

  explicit trace(clock::time_point start) noexcept : start_(start) {}

  void name_host(std::string name) { hosts_.push_back(std::move(name)); }

  /// `what` is a literal; `about` (a descriptor, a size) and `result` say more.
  void note(clock::time_point at, int host, std::string_view what, std::int64_t about = 0,
            std::int64_t result = 0) {
    const auto time = (at - start_).count();
    mix(static_cast<std::uint64_t>(time));
    mix(static_cast<std::uint64_t>(host));
    for (const char c : what) mix(static_cast<unsigned char>(c));
    mix(static_cast<std::uint64_t>(about));
    mix(static_cast<std::uint64_t>(result));
    events_.push_back({time, host, what, about, result});
    if (events_.size() > kept_max) {
      events_.pop_front();
      ++dropped_;
    }
  }

  std::uint64_t hash() const noexcept { return hash_; }

  /// A line for each event: seconds since the start, the host, what it did and what came of it.
  std::string text() const {
    std::string all;
    if (dropped_ > 0) all += "(" + std::to_string(dropped_) + " earlier events)\n";
    for (const event& e : events_) {
      char time[32];
      std::snprintf(time, sizeof(time), "%6lld.%09lld ", static_cast<long long>(e.at / second),
                    static_cast<long long>(e.at % second));
      all += time;
      all += e.host == network ? "network" : hosts_[static_cast<std::size_t>(e.host)];
      all += ' ';
      all += e.what;
      all += '(' + std::to_string(e.about) + ") = " + std::to_string(e.result) + '\n';
    }
    return all;
  }

 private:
  static constexpr std::size_t kept_max = 1 << 16;
  static constexpr clock::rep second = 1'000'000'000;

  struct event {
    clock::rep at;
    int host;
    std::string_view what;
    std::int64_t about;
    std::int64_t result;
  };

  void mix(std::uint64_t word) noexcept {
    hash_ = (hash_ ^ word) * 0x9e3779b97f4a7c15U;
    hash_ ^= hash_ >> 29;
  }

  clock::time_point start_;
  std::vector<std::string> hosts_;
  std::deque<event> events_;
  std::size_t dropped_ = 0;
  std::uint64_t hash_ = 0x6a09e667f3bcc908U;
};

}  // namespace coax::inline COAX_ABI::sim
