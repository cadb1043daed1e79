#pragma once

/// What the tests of whole servers under faults have in common: which seeds they run, and what
/// happens to the hosts of a world on a bad day.

#include "../catch.hpp"

#include <coax/net/listener.hpp>
#include <coax/sim.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

namespace simulated {

using namespace std::chrono_literals;

/// COAX_SIM_SEEDS says how many seeds, COAX_SIM_SEED is where they begin.
struct chosen_seeds {
  std::uint64_t first = from_environment("COAX_SIM_SEED", 1);
  std::uint64_t count = from_environment("COAX_SIM_SEEDS", 60);

  chosen_seeds() { ::unsetenv("COAX_SIM_SEED"); }

 private:
  static std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
  }
};
/// Read before the first test: a world that finds COAX_SIM_SEED takes that for its seed, whatever
/// its test says.
inline const chosen_seeds chosen;

/// Calls `bad_day(seed, prints)` for each of the chosen seeds; a single one may print what it does.
template <class F>
void on_bad_days(F&& bad_day) {
  for (std::uint64_t seed = chosen.first; seed < chosen.first + chosen.count; ++seed) {
    INFO("seed " << seed << ": COAX_SIM_SEEDS=1 COAX_SIM_SEED=" << seed << " runs it again");
    bad_day(seed, chosen.count == 1);
  }
}

/// What a test does to the hosts meanwhile.
inline void disturb(coax::sim::world& w, coax::sim::generator& random,
                    std::vector<coax::sim::host*>& hosts) {
  coax::sim::host& one = *hosts[random() % hosts.size()];
  coax::sim::host& other = *hosts[random() % hosts.size()];
  switch (random() % 8) {
    case 0:
      return w.partition(one, other);
    case 1:
      return w.partition_one_way(one, other);
    case 2:
    case 3:
      return w.heal();
    case 4:
      if (one.is_running()) one.crash();
      return;
    case 5:
      for (coax::sim::host* each : hosts)
        if (!each->is_running()) each->restart();
      return;
    case 6:
      return one.pause();
    default:
      for (coax::sim::host* each : hosts) each->resume();
      return;
  }
}

/// Half a minute of faults, on every other seed with disturbances of whole hosts; then a good day
/// begins.
inline void live_through(coax::sim::world& w, coax::sim::generator& random,
                         std::vector<coax::sim::host*>& hosts) {
  const bool disturbs = random() % 2 == 0;
  for (int i = 0; i < 30; ++i) {
    w.run_for(std::chrono::milliseconds(random() % 2000));
    if (disturbs) disturb(w, random, hosts);
  }
  w.stop_faults();
  w.heal();
  for (coax::sim::host* each : hosts) {
    each->resume();
    if (!each->is_running()) each->restart();
  }
}

/// Nothing runs, nothing is open, and TCP knows nobody any more.
inline void require_nothing_left(const std::vector<coax::sim::host*>& hosts) {
  for (const coax::sim::host* each : hosts) {
    INFO(each->name());
    REQUIRE(!each->is_running());
    REQUIRE(each->open_fds() == 0);
    REQUIRE(each->connections() == 0);
  }
}

/// Listens on port 9000. A host may be short of descriptors or memory for a moment, from its first
/// call on.
inline coax::task<coax::listener> listen_at_last() {
  auto made = coax::listener::bind("0.0.0.0:9000");
  while (!made) {
    co_await coax::sleep_for(10ms);
    made = coax::listener::bind("0.0.0.0:9000");
  }
  co_return std::move(*made);
}

/// The byte at `at` of the pattern of `seed`.
inline std::byte pattern_at(std::uint32_t seed, std::size_t at) {
  std::uint64_t x = (std::uint64_t{seed} << 32) + at;
  x = (x ^ (x >> 15)) * 0x9e3779b97f4a7c15U;
  return static_cast<std::byte>(x >> 56);
}

}  // namespace simulated
