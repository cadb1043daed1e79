#pragma once

#include <coax/config.hpp>
#include <coax/sim/options.hpp>
#include <coax/sim/oracle.hpp>
#include <coax/sim/trace.hpp>
#include <coax/task/clock.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// What is to happen in the world by itself, by time: packets that arrive, patience that ends.
class event_queue {
 public:
  using key = std::pair<clock::time_point, std::uint64_t>;

  /// Events of one `flow` happen in order; of 0, each is a flow of its own.
  key at(clock::time_point when, std::uint64_t flow, std::function<void()> action) {
    const key k{when, ++last_};
    events_.emplace(k, event{flow, std::move(action)});
    return k;
  }
  void cancel(const key& k) { events_.erase(k); }

  std::optional<clock::time_point> next() const {
    if (events_.empty()) return std::nullopt;
    return events_.begin()->first.first;
  }

  /// Those that are due and could be the next to happen: the first of each flow.
  std::vector<key> due(clock::time_point now) const {
    std::vector<key> found;
    std::vector<std::uint64_t> flows;
    for (const auto& [k, e] : events_) {
      if (k.first > now || found.size() == looked_at_max) break;
      if (e.flow != 0) {
        if (std::find(flows.begin(), flows.end(), e.flow) != flows.end()) continue;
        flows.push_back(e.flow);
      }
      found.push_back(k);
    }
    return found;
  }

  void run(const key& k) {
    const auto at = events_.find(k);
    const std::function<void()> action = std::move(at->second.action);
    events_.erase(at);
    action();
  }

 private:
  static constexpr std::size_t looked_at_max = 8;

  struct event {
    std::uint64_t flow;
    std::function<void()> action;
  };
  std::map<key, event> events_;
  std::uint64_t last_ = 0;
};

/// What all parts of a world share: its time, its decisions, what is to come and what has been.
struct engine {
  engine(const options& o, oracle& d)
      // Not zero, so that a program that takes zero for "never" is not fooled.
      : how(o), decide(d), now(std::chrono::hours(1)), log(now) {}

  void note(int host, std::string_view what, std::int64_t about = 0, std::int64_t result = 0) {
    log.note(now, host, what, about, result);
  }

  options how;
  bool calm = false;  // no fault comes by chance any more
  oracle& decide;
  clock::time_point now;
  event_queue events;
  trace log;
};

}  // namespace coax::inline COAX_ABI::sim
