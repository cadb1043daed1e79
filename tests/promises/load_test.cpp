#include "net_scenarios.hpp"

#include <algorithm>
#include <functional>
#include <vector>

/// Peers that take more than their share, or give less: the others are served, and nothing piles up.

using namespace std::chrono_literals;
using coax::stream;
using coax::task;
using coax::unique_fd;
using scenarios::connected;
using scenarios::occupancy;

namespace {

struct fairness {
  static constexpr int pings = 100;
  static constexpr int rounds = 10;
  std::uint64_t worst_turns = 0;
  std::uint64_t hose_reads = 0;
  std::uint64_t hose_reads_in_a_turn = 0;
  int answered = 0;

  static std::uint64_t turns() noexcept { return coax::loop::current().counted().turns; }

  /// Reads a connection that has more whenever it is asked.
  task<> firehose(stream& conn, const unique_fd& source) {
    const std::vector<char> water(16 * 1024);
    std::array<std::byte, 4096> some;
    std::uint64_t turn = 0;
    std::uint64_t in_this_turn = 0;
    while (true) {
      while (::send(source.get(), water.data(), water.size(), MSG_DONTWAIT) > 0) continue;
      auto n = co_await conn.read(some);
      n.value();
      ++hose_reads;
      in_this_turn = turn == turns() ? in_this_turn + 1 : 1;
      turn = turns();
      hose_reads_in_a_turn = std::max(hose_reads_in_a_turn, in_this_turn);
    }
  }
  static task<> echo(stream& conn) {
    std::array<std::byte, 16> some;
    while (auto n = co_await conn.read(some)) {
      auto sent = co_await conn.write(std::span(some).first(*n));
      if (!sent) break;
    }
  }
  task<> ping(stream& conn) {
    std::array<std::byte, 4> back;
    for (int i = 0; i < rounds; ++i) {
      const std::uint64_t begun = turns();
      auto sent = co_await conn.write("ping");
      sent.value();
      auto got = co_await conn.read_exactly(back);
      got.value();
      worst_turns = std::max(worst_turns, turns() - begun);
      ++answered;
    }
  }
  task<> all() {
    connected hose;
    stream hose_end = scenarios::adopted(hose.near);
    std::vector<stream> near;
    std::vector<stream> far;
    for (int i = 0; i < pings; ++i) {
      connected both;
      near.push_back(scenarios::adopted(both.near));
      far.push_back(scenarios::adopted(both.far));
    }
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> { return firehose(hose_end, hose.far); });
      for (stream& each : far) s.spawn(echo, std::ref(each));
      for (int i = 0; i < 10; ++i) co_await coax::yield();
      co_await coax::with_scope([&](coax::scope& pinging) -> task<> {
        for (stream& each : near)
          pinging.spawn([&](stream& conn) -> task<> { return ping(conn); }, std::ref(each));
        co_return;
      });
      s.cancel();
    });
  }
};

/// A server of two workers, and its clients.
struct besieged {
  static constexpr int workers = 2;
  static constexpr int bad_clients = 4;
  coax::worker_stack<stream> idle;
  std::optional<coax::listener> at;
  occupancy serving;
  std::vector<unique_fd> bad;
  std::ptrdiff_t bytes_most = 0;
  bool good_served = false;

  template <class Serve>
  task<> works(Serve& serve) {
    while (auto conn = co_await idle.park()) {
      const occupancy::inside one(serving);
      co_await serve(*conn);
      bytes_most = std::max(bytes_most, coax::detail::frames::live_bytes());
    }
  }
  task<> accepts() {
    while (auto worker = co_await idle.reserve()) {
      auto conn = co_await at->accept();
      worker->hand_off(std::move(conn).value());
    }
  }
  /// Asks after all the bad ones have: it is served when workers were taken from them.
  task<> good_client() {
    auto made = co_await coax::connect(at->local_endpoint().value());
    stream conn = std::move(made).value();
    auto sent = co_await conn.write("good");
    sent.value();
    std::array<std::byte, 4> back;
    auto got = co_await coax::within(20s, conn.read_exactly(back));
    good_served = static_cast<bool>(got);
  }
  /// `serve(conn)` serves one connection, `siege()` goes on until it is cancelled.
  template <class Serve, class Siege>
  task<> run(Serve& serve, Siege& siege) {
    at = coax::listener::bind("127.0.0.1:0").value();
    for (int i = 0; i < bad_clients; ++i)
      bad.push_back(scenarios::plain_client(at->native_handle()));
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 0; i < workers; ++i) s.spawn([&]() -> task<> { return works(serve); });
      s.spawn([&]() -> task<> { return accepts(); });
      s.spawn([&]() -> task<> { return siege(); });
      co_await good_client();
      s.cancel();
    });
    at.reset();
    idle.close();
  }
};

using idle_workers = coax::worker_stack<stream>;

/// The worker of examples/echo.cpp.
task<> readwrite_routine(idle_workers& g_readwrite) {
  constexpr auto patience = 60s;
  while (auto conn = co_await g_readwrite.park()) {
    while (auto lease = co_await coax::within(patience, conn->receive())) {
      auto sent = co_await coax::within(patience, conn->write(lease->bytes()));
      if (!sent) break;
    }
  }
}

/// What so many silent connections take, each with its worker.
task<std::ptrdiff_t> bytes_of_silent(int connections) {
  std::vector<unique_fd> peers;
  std::ptrdiff_t bytes = -coax::detail::frames::live_bytes();
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    idle_workers idle;
    for (int i = 0; i < connections; ++i) s.spawn(readwrite_routine, std::ref(idle));
    for (int i = 0; i < connections; ++i) {
      connected both;
      auto worker = co_await idle.reserve();
      worker->hand_off(scenarios::adopted(both.near));
      peers.push_back(std::move(both.far));
    }
    while (coax::reactor::current().in_flight() < static_cast<std::size_t>(connections))
      co_await coax::yield();
    bytes += coax::detail::frames::live_bytes();
    idle.close();
    peers.clear();
    co_await s.join_within(60s);
  });
  co_return bytes;
}

}  // namespace

TEST_CASE("a silent connection takes 512 bytes at most, its worker included", "[promises]") {
  on_each_backend([]() -> task<> {
    // What surrounds them is taken off with the first.
    const auto few = co_await bytes_of_silent(1);
    const auto more = co_await bytes_of_silent(101);
    const auto each = (more - few) / 100 + static_cast<std::ptrdiff_t>(sizeof(coax::descriptor));
    CAPTURE(each);
    CHECK(each <= 512);
  });
}

TEST_CASE("a connection that always has data keeps none of 100 others waiting", "[promises]") {
  on_each_backend([]() -> task<> {
    fairness f;
    co_await f.all();
    CAPTURE(f.worst_turns, f.hose_reads, f.hose_reads_in_a_turn);
    CHECK(f.answered == fairness::pings * fairness::rounds);
    CHECK(f.worst_turns <= 16);
    CHECK(f.hose_reads_in_a_turn <= 9);  // the budget, and the one that was waited for
    CHECK(f.hose_reads >= 50);           // nor is it kept out
  });
}

TEST_CASE("peers that never read hold a worker until its deadline, and no memory", "[promises]") {
  on_each_backend([]() -> task<> {
    besieged server;
    const std::vector<std::byte> reply(std::size_t{8} << 20);
    int gave_up = 0;
    auto serve = [&](stream& conn) -> task<> {
      std::array<std::byte, 4> request;
      auto got = co_await coax::within(20s, conn.read_exactly(request));
      if (!got) co_return;
      const bool good = static_cast<char>(request[0]) == 'g';
      const int little = 4096;  // of what is not read the kernel keeps less than the reply
      ::setsockopt(conn.native_handle(), SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
      auto sent = co_await coax::within(
          good ? 20s : 20ms,
          conn.write(good ? std::span<const std::byte>(request) : std::span(reply)));
      if (!sent && sent.error() == std::errc::timed_out) ++gave_up;
    };
    auto siege = [&]() -> task<> {
      for (const unique_fd& each : server.bad) static_cast<void>(!::write(each.get(), "more", 4));
      co_return;
    };
    const auto bytes_before = coax::detail::frames::live_bytes();
    co_await server.run(serve, siege);
    CHECK(server.good_served);
    CHECK(server.serving.most <= besieged::workers);
    CHECK(gave_up >= besieged::bad_clients - besieged::workers + 1);
    CHECK(server.bytes_most - bytes_before < 64 * 1024);  // what could not be sent is kept nowhere
  });
}

TEST_CASE("peers that send a byte now and then hold a worker until the deadline for the whole",
          "[promises]") {
  on_each_backend([]() -> task<> {
    besieged server;
    int cut_off = 0;
    auto exchange = [&](stream& conn) -> task<> {
      std::array<std::byte, 4> request;
      for (std::size_t at = 0; at < request.size();) {
        auto n = co_await coax::within(10s, conn.read(std::span(request).subspan(at)));
        if (!n) co_return;
        at = static_cast<char>(request[0]) == 'g' ? at + *n : 0;  // a header without an end
      }
      auto sent = co_await conn.write(request);
      sent.value();
    };
    auto serve = [&](stream& conn) -> task<> {
      auto in_time = co_await coax::within(20ms, exchange(conn));
      if (!in_time) ++cut_off;
    };
    auto siege = [&]() -> task<> {
      while (true) {
        for (const unique_fd& each : server.bad)
          static_cast<void>(::send(each.get(), "s", 1, MSG_DONTWAIT | MSG_NOSIGNAL));
        co_await coax::sleep_for(1ms);
      }
    };
    co_await server.run(serve, siege);
    CHECK(server.good_served);
    CHECK(server.serving.most <= besieged::workers);
    CHECK(cut_off >= besieged::bad_clients - besieged::workers + 1);
  });
}
