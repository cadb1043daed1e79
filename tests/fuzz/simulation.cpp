// An echo server and its clients on a day that bytes make up: which faults there are and when they
// strike, in which order things happen, and what becomes of the hosts and the network. The
// connections that survive it lose nothing, and when it is over everybody is served.

#include "../sim/echo_server.hpp"
#include "require.hpp"

#include <coax/task/frames.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace {

namespace sim = coax::sim;
using namespace std::chrono_literals;
using coax::stream;
using coax::task;
using simulated::counts;

constexpr int workers = 2;

/// What the clients have seen.
struct outcomes {
  int complete = 0;
  int cut = 0;
};

std::byte pattern_at(std::size_t at) { return static_cast<std::byte>(at * 31 + at / 256); }

task<> send_pattern(stream& to, std::size_t size) {
  std::vector<std::byte> all(size);
  for (std::size_t i = 0; i < size; ++i) all[i] = pattern_at(i);
  auto n = co_await to.write(all);
  if (n) static_cast<void>(to.shutdown_write());
}

/// One connection: everything comes back once and in order, or it ends before.
task<> talk(std::size_t size, outcomes& seen) {
  auto conn = co_await coax::within(30s, coax::connect(simulated::server_at()));
  if (!conn) {
    ++seen.cut;
    co_return;
  }
  std::size_t got = 0;
  bool ended_in_order = false;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    s.spawn(send_pattern, std::ref(*conn), size);
    std::array<std::byte, 500> buf;
    while (true) {
      auto n = co_await coax::within(90s, conn->read(buf));
      if (!n) {
        ended_in_order = n.error() == coax::errc::end_of_stream;
        break;
      }
      require(got + *n <= size, "no more comes back than was sent");
      for (std::size_t i = 0; i < *n; ++i)
        require(buf[i] == pattern_at(got + i), "every byte comes back once and in order");
      got += *n;
    }
    s.cancel();
  });
  ++(ended_in_order && got == size ? seen.complete : seen.cut);
}

task<> client(std::size_t size, outcomes& seen) {
  for (std::size_t i = 0; i < 3; ++i) {
    co_await talk(size >> i, seen);
    co_await coax::sleep_for(300ms);
  }
}

/// A world, and what is done to it.
class bad_day {
 public:
  bad_day(sim::oracle& script, sim::oracle& decide)
      : script_(script), world_(drawn(script), decide) {
    server_ = &world_.host("srv", simulated::serve, std::ref(seen_), workers);
    hosts_ = {server_};
    for (const char* name : {"one", "two", "three"})
      hosts_.push_back(
          &world_.host(name, client, std::size_t{script_.choose(256)} * 4, std::ref(heard_)));
    world_.invariant("accepted = served + waiting + closed", [this] {
      const int waiting = seen_.accepted - seen_.closed - seen_.serving;
      return waiting >= 0 && waiting <= workers;
    });
    world_.invariant("no worker is lost", [this] {
      return draining_ || !server_->is_running() || seen_.workers == 0 || seen_.workers == workers;
    });
  }

  void run(std::size_t decisions) {
    for (int i = 0; i < disturbances_max && script_.decisions().size() < decisions; ++i) {
      world_.run_for(std::chrono::milliseconds(script_.choose(256) * 8));
      disturb();
    }
    world_.run_for(1s);
  }

  /// No more faults: everybody is served, and in the end nothing is left.
  void settle() {
    world_.stop_faults();
    world_.heal();
    for (sim::host* each : hosts_) each->resume();
    world_.run_for(1min);
    restart();
    world_.run_for(30min);
    outcomes last;
    const sim::host& after = world_.host("after", talk, std::size_t{5000}, std::ref(last));
    world_.run_for(10min);
    require(!after.is_running() && last.complete == 1, "who comes afterwards is served");
    require(seen_.serving == 0 && seen_.accepted == seen_.closed, "every connection has ended");
    require(seen_.workers == workers, "every worker is there");
    draining_ = true;
    server_->signal(SIGTERM);
    world_.run_until_quiet(1h);
    for (const sim::host* each : hosts_) {
      require(!each->is_running(), "every program has ended");
      require(each->open_fds() == 0, "no descriptor is left open");
      require(each->connections() == 0, "no connection is left");
    }
    require(seen_.workers == 0, "no worker is left");
  }

 private:
  static constexpr int disturbances_max = 20;

  void disturb() {
    sim::host& one = *hosts_[script_.choose(hosts_.size())];
    sim::host& other = *hosts_[script_.choose(hosts_.size())];
    switch (script_.choose(10)) {
      case 0:
        return;
      case 1:
        return world_.partition(one, other);
      case 2:
        return world_.partition_one_way(one, other);
      case 3:
        return world_.heal();
      case 4:
        if (one.is_running()) one.crash();
        return;
      case 5:
        return one.kill();
      case 6:
        return restart();
      case 7:
        return one.pause();
      case 8:
        for (sim::host* each : hosts_) each->resume();
        return;
      default:
        if (&one == server_) draining_ = true;
        return one.signal(SIGTERM);
    }
  }

  void restart() {
    if (!server_->is_running()) draining_ = false;
    for (sim::host* each : hosts_)
      if (!each->is_running()) each->restart();
  }

  /// A fault that is on is a decision at each call.
  static sim::options drawn(sim::oracle& script) {
    sim::options how;
    if (script.choose(2) != 0) how.completion = sim::completion::ring;
    std::uint64_t faults = script.choose(1U << 10);
    for (const sim::detail::named_probability& each : sim::detail::probabilities) {
      if ((faults & 1) != 0) how.*each.value = 0.5;
      faults >>= 1;
    }
    constexpr std::array<int, 4> latencies{0, 1, 20, 250};
    how.latency.most = std::chrono::milliseconds(latencies[script.choose(latencies.size())]);
    constexpr std::array<std::size_t, 4> buffers{64 * 1024, 100, 256, 1500};
    how.send_buffer = buffers[script.choose(buffers.size())];
    how.receive_buffer = buffers[script.choose(buffers.size())];
    if (script.choose(4) == 1) how.rate = 10'000;
    if (script.choose(8) == 1) how.fds_max = 4;
    return how;
  }

  sim::oracle& script_;
  counts seen_;
  outcomes heard_;
  sim::world world_;  // its programs count and are heard until it is gone
  sim::host* server_ = nullptr;
  std::vector<sim::host*> hosts_;
  bool draining_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // What is done to the hosts stands in front, and so stays the same while the rest changes.
  constexpr std::size_t script_max = 96;
  const auto bytes = std::as_bytes(std::span(data, size));
  const std::size_t in_script = std::min(size, script_max);
  const auto frames = coax::detail::frames::live();
  {
    sim::oracle script = sim::oracle::of_bytes(bytes.first(in_script));
    sim::oracle decide = sim::oracle::of_bytes(bytes.subspan(in_script));
    bad_day day(script, decide);
    day.run(in_script);
    day.settle();
  }
  require(coax::detail::frames::live() == frames, "no frame is left");
  return 0;
}
