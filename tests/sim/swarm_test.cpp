#include "../catch.hpp"
#include "bad_days.hpp"
#include "echo_server.hpp"

#include <coax/task/frames.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

// The echo server on many bad days: each seed picks what goes wrong and how often. Whatever that
// is, no byte may be lost, doubled or out of order without the connection ending, no worker may get
// lost, and once the faults stop everybody is served.
//
// COAX_SIM_SEEDS says how many seeds, COAX_SIM_SEED is where they begin.

namespace {

namespace sim = coax::sim;
using namespace std::chrono_literals;
using coax::stream;
using coax::task;
using simulated::counts;
using simulated::pattern_at;

constexpr int workers = 4;

/// What the clients have seen.
struct outcomes {
  int complete = 0;
  int cut = 0;
  bool wrong = false;
};

task<> send_pattern(stream& to, std::uint32_t seed, std::size_t size) {
  std::vector<std::byte> chunk;
  for (std::size_t sent = 0; sent < size;) {
    chunk.resize(std::min<std::size_t>(size - sent, 1 + (seed + sent) % 3000));
    for (std::size_t i = 0; i < chunk.size(); ++i) chunk[i] = pattern_at(seed, sent + i);
    auto n = co_await to.write(chunk);
    if (!n) co_return;
    sent += *n;
  }
  static_cast<void>(to.shutdown_write());
}

/// One connection: everything comes back once and in order, or it ends before.
task<> talk(std::uint32_t seed, std::size_t size, outcomes& seen, coax::endpoint where) {
  auto conn = co_await coax::within(30s, coax::connect(where));
  if (!conn) {
    ++seen.cut;
    co_return;
  }
  std::size_t got = 0;
  bool ended_in_order = false;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    s.spawn(send_pattern, std::ref(*conn), seed, size);
    std::array<std::byte, 2000> buf;
    const auto came = [&](std::span<const std::byte> bytes) {
      for (std::size_t i = 0; i < bytes.size(); ++i)
        if (bytes[i] != pattern_at(seed, got + i)) seen.wrong = true;
      got += bytes.size();
    };
    std::error_code why;
    while (!why) {
      if ((seed + got) % 3 == 0) {
        auto n = co_await coax::within(90s, conn->read(buf));
        if (n) came(std::span(buf).first(*n));
        why = n.error();
      } else {
        auto lease = co_await coax::within(90s, conn->receive());
        if (lease) came(lease->bytes());
        why = lease.error();
      }
    }
    ended_in_order = why == coax::errc::end_of_stream;
    s.cancel();
  });
  if (got > size) seen.wrong = true;
  ++(ended_in_order && got == size ? seen.complete : seen.cut);
}

task<> client(std::uint32_t seed, outcomes& seen) {
  sim::generator random(seed);
  for (int i = 0; i < 6; ++i) {
    const auto pause = static_cast<int>(random() % 3000);
    co_await coax::sleep_for(std::chrono::milliseconds(pause));
    co_await talk(static_cast<std::uint32_t>(random()), random() % 20'000, seen,
                  simulated::server_at());
  }
}

void bad_day(std::uint64_t seed, bool print) {
  const auto frames = coax::detail::frames::live();
  sim::generator random(seed);
  {
    sim::world w{sim::faults::swarm(seed, {}, print)};
    counts seen;
    outcomes heard;
    auto& server = w.host("srv", simulated::serve, std::ref(seen), workers);
    std::vector<sim::host*> hosts{&server};
    for (std::uint32_t i = 0; i < 4; ++i)
      hosts.push_back(&w.host("cli" + std::to_string(i), client,
                              static_cast<std::uint32_t>(seed) * 10 + i, std::ref(heard)));
    bool draining = false;
    w.invariant("accepted = served + waiting + closed", [&] {
      const int waiting = seen.accepted - seen.closed - seen.serving;
      return waiting >= 0 && waiting <= workers;
    });
    w.invariant("no worker is lost", [&] {
      return draining || !server.is_running() || seen.workers == 0 || seen.workers == workers;
    });
    w.invariant("every byte comes back once and in order", [&] { return !heard.wrong; });

    simulated::live_through(w, random, hosts);
    w.run_for(30min);
    outcomes last;
    auto& after =
        w.host("after", talk, 77u, std::size_t{50'000}, std::ref(last), simulated::server_at());
    w.run_for(10min);
    REQUIRE(!after.is_running());
    REQUIRE(last.complete == 1);
    REQUIRE(seen.serving == 0);
    REQUIRE(seen.accepted == seen.closed);
    REQUIRE(seen.workers == workers);

    draining = true;
    server.signal(SIGTERM);
    w.run_until_quiet(1h);
    simulated::require_nothing_left(hosts);
    REQUIRE(seen.workers == 0);
  }
  REQUIRE(coax::detail::frames::live() == frames);
}

}  // namespace

TEST_CASE("the echo server survives bad days of all kinds", "[seeds]") {
  simulated::on_bad_days(bad_day);
}
