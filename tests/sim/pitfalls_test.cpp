#include "../catch.hpp"
#include "../text_of.hpp"
#include "echo_server.hpp"

#include <coax/io/leased_buffer.hpp>
#include <coax/io/statistics.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// What has broken libraries like this one, and the kernel cannot be made to show when a test wants
// it: in simulation it can.

namespace {

namespace sim = coax::sim;
using namespace std::chrono_literals;
using coax::task;
using simulated::server_at;

constexpr std::array both_kinds{sim::completion::readiness, sim::completion::ring};

/// Accepts one connection and reads or receives it to its end.
task<> take_all(std::string& got, bool& ended, bool receives) {
  auto from = coax::listener::bind("0.0.0.0:9000").value();
  auto conn = co_await from.accept();
  std::array<std::byte, 16> buf;
  std::error_code why;
  while (!why) {
    if (receives) {
      auto lease = co_await conn->receive();
      if (lease) got.append(text_of(lease->bytes()));
      why = lease.error();
    } else {
      auto n = co_await conn->read(buf);
      if (n) got.append(text_of(std::span(buf).first(*n)));
      why = n.error();
    }
    if (!why) co_await coax::yield();  // what comes now finds nobody who waits
  }
  ended = why == coax::errc::end_of_stream;
}

task<> send_and_end() {
  co_await coax::sleep_for(1ms);  // somebody listens by then, in every order
  auto conn = co_await coax::connect(server_at());
  auto sent = co_await conn->write("all ");
  REQUIRE(sent);
  sent = co_await conn->write("of it");
  REQUIRE(sent);
}

}  // namespace

TEST_CASE("what arrives between EAGAIN and the wait is not missed, in any order of events") {
  std::size_t runs = 0;
  const auto explore_all = [&](sim::completion how, bool receives, std::size_t decisions_max) {
    // The first call is told once that there is nothing, or not.
    for (std::uint64_t nth = 0; nth <= 1; ++nth) {
      const sim::explored done =
          sim::explore({.decisions_max = decisions_max}, [&](sim::oracle& decide) {
            std::string got;
            bool ended = false;
            sim::world w({.completion = how}, decide);
            auto& server = w.host("srv", take_all, std::ref(got), std::ref(ended), receives);
            if (nth > 0) server.on("recv").nth(nth, EAGAIN);
            auto& client = w.host("cli", send_and_end);
            w.run_until_quiet(1h);
            REQUIRE(got == "all of it");
            REQUIRE(ended);
            REQUIRE(!server.is_running());
            REQUIRE(!client.is_running());
          });
      CHECK(done.complete);
      runs += done.runs;
    }
  };
  explore_all(sim::completion::readiness, false, 1000);
  // A ring decides more: which completions are reaped at once, whether a multishot receive goes on.
  // Not all of it.
  explore_all(sim::completion::ring, false, 10);
  explore_all(sim::completion::ring, true, 12);
  CHECK(runs > 20'000);
}

TEST_CASE("timers that are due at the same time fire in the order in which they were set") {
  sim::world w;
  std::vector<int> woken;
  const auto sleeper = [&](int i, coax::clock::time_point until) -> task<> {
    co_await coax::sleep_for(std::chrono::milliseconds(i));
    co_await coax::sleep_until(until);
    woken.push_back(i);
  };
  w.host("one", [&]() -> task<> {
    const auto until = coax::now() + 1s;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 100; i > 0; --i) s.spawn(std::ref(sleeper), i, until);
      co_return;
    });
  });
  w.run_to_end();
  CHECK(woken.size() == 100);
  CHECK(std::is_sorted(woken.begin(), woken.end()));
  CHECK(w.now() - w.start() == 1s);
}

TEST_CASE("after a stall there is no burst of ticks, and what has arrived beats its timeout") {
  for (const sim::completion how : both_kinds) {
    sim::world w{{.latency = {1ms, 1ms}, .completion = how}};
    std::vector<coax::clock::duration> ticks;
    std::error_code outcome = std::make_error_code(std::errc::not_connected);
    auto& one = w.host("srv", [&]() -> task<> {
      auto from = coax::listener::bind("0.0.0.0:9000").value();
      auto tick = [&]() -> task<> {
        while (true) {
          co_await coax::sleep_for(100ms);
          ticks.push_back(coax::now() - w.start());
        }
      };
      auto serve = [&]() -> task<> {
        auto conn = co_await from.accept();
        std::array<std::byte, 8> buf;
        auto got = co_await coax::within(5s, conn->read(buf));
        outcome = got.error();
        co_await coax::sleep_for(1h);
      };
      co_await coax::race(tick(), serve());
    });
    w.host("cli", []() -> task<> {
      auto conn = co_await coax::connect(server_at());
      co_await coax::sleep_for(2s);
      auto sent = co_await conn->write("in time");
      CHECK(sent);
      co_await coax::sleep_for(1h);
    });
    w.run_for(1050ms);
    CHECK(ticks.size() == 10);
    one.pause();
    w.run_for(10s);
    CHECK(ticks.size() == 10);
    one.resume();
    w.run_for(450ms);
    CHECK(!outcome);
    REQUIRE(ticks.size() == 15);  // one that was missed, and four that came after it
    CHECK(ticks[10] == 11050ms);
    CHECK(ticks[11] == 11150ms);
  }
}

TEST_CASE("a time that does not fit is the end of time, not the past") {
  sim::world w;
  bool woken = false;
  std::size_t waiting = 0;
  w.host("one", [&]() -> task<> {
    auto until = [&](coax::timeout t) -> task<> {
      ++waiting;
      co_await coax::sleep_for(t);
      woken = true;
    };
    auto all = [&](coax::scope& s) -> task<> {
      s.spawn(until, coax::clock::duration::max());
      s.spawn(until, std::chrono::hours::max());
      s.spawn(until, std::chrono::duration<double>(1e300));
      s.spawn(until, std::chrono::hours(24 * 365 * 300));
      co_await coax::sleep_until(coax::clock::time_point::max());
    };
    co_await coax::with_scope(std::ref(all));
  });
  w.run_for(std::chrono::hours(24 * 365 * 50));
  CHECK(waiting == 4);
  CHECK(!woken);
}

TEST_CASE("a wait of less than a millisecond takes its time, and no turns meanwhile") {
  for (const sim::completion how : both_kinds) {
    sim::world w{{.completion = how}};
    std::uint64_t turns = 0;
    int waits = 0;
    w.host("one", [&]() -> task<> {
      for (const auto d : {1ns, 63ns, 64ns, 999ns, 1000ns, 65'537ns, 300'000ns, 999'999ns}) {
        const auto before = coax::statistics(coax::reactor::current()).turns;
        const auto began = coax::now();
        co_await coax::sleep_for(d);
        CHECK(coax::now() - began == d);
        turns = std::max(turns, coax::statistics(coax::reactor::current()).turns - before);
        ++waits;
      }
    });
    w.run_to_end();
    CHECK(waits == 8);
    CHECK(turns <= 3);
  }
}

TEST_CASE("an error that stays is told at once, or tried again with pauses, but never spins") {
  for (const sim::completion how : both_kinds) {
    sim::world w{{.completion = how}};
    std::vector<std::error_code> told;
    auto& server = w.host("srv", [&]() -> task<> {
      auto from = coax::listener::bind("0.0.0.0:9000").value();
      while (told.size() < 3) {
        auto conn = co_await from.accept();
        told.push_back(conn.error());
      }
      co_await coax::sleep_for(1h);
    });
    const auto connects = []() -> task<> {
      auto conn = co_await coax::connect(server_at());
      co_await coax::sleep_for(1h);
    };
    SECTION("EINVAL of accept") {
      server.on("accept").always(EINVAL);
      w.host("cli", connects);
      w.run_for(10s);
      CHECK(told ==
            std::vector<std::error_code>(3, std::error_code(EINVAL, std::system_category())));
      CHECK(server.on("accept").count() <= 6);
    }
    SECTION("no descriptor, for ever") {
      server.on("accept").always(EMFILE);
      w.host("cli", connects);
      w.run_for(60ms);
      CHECK(server.on("accept").count() == 8);  // pauses of 5, 10, 20, 40 ms; two calls before each
      w.run_for(10s);
      CHECK(told.empty());
      CHECK(server.on("accept").count() > 50);  // at most 100 ms a time
      CHECK(server.on("accept").count() < 300);
    }
    SECTION("what is not about the listener, for ever") {
      server.on("accept").always(EPROTO);
      w.host("cli", connects);
      w.run_for(10s);
      CHECK(told.empty());
      CHECK(server.on("accept").count() < 300);
    }
  }
}

TEST_CASE("a read or receive whose error stays tells it once for each call") {
  for (const sim::completion how : both_kinds) {
    sim::world w{{.completion = how}};
    std::vector<std::error_code> told;
    auto& server = w.host("srv", [&]() -> task<> {
      auto from = coax::listener::bind("0.0.0.0:9000").value();
      auto conn = co_await from.accept();
      std::array<std::byte, 8> buf;
      for (int i = 0; i < 3; ++i) {
        auto n = co_await conn->read(buf);
        told.push_back(n.error());
        auto lease = co_await conn->receive();
        told.push_back(lease.error());
      }
    });
    server.on("recv").always(ENOTSOCK);
    w.host("cli", []() -> task<> {
      auto conn = co_await coax::connect(server_at());
      auto sent = co_await conn->write("unread");
      CHECK(sent);
      co_await coax::sleep_for(1h);
    });
    w.run_for(10s);
    CHECK(told ==
          std::vector<std::error_code>(6, std::error_code(ENOTSOCK, std::system_category())));
    CHECK(server.on("recv").count() == 6);
  }
}

namespace {

std::size_t buffers_in_use() { return coax::reactor::current().buffers_in_use(); }

std::chrono::milliseconds up_to(sim::generator& random, std::uint64_t most) {
  return std::chrono::milliseconds(random() % (most + 1));
}

task<> send_numbers(std::uint64_t seed, std::string& sent) {
  sim::generator random(seed);
  co_await coax::sleep_for(1ms);
  auto conn = co_await coax::connect(server_at());
  for (int i = 0; i < 1000; ++i) {
    const std::string text = std::to_string(i) + ' ';
    auto n = co_await conn->write(text);
    REQUIRE(n);
    sent += text;
    co_await coax::sleep_for(up_to(random, 2));
  }
}

task<> receive_numbers(std::uint64_t seed, std::string& got) {
  sim::generator random(seed);
  auto from = coax::listener::bind("0.0.0.0:9000").value();
  auto conn = co_await from.accept();
  while (auto lease = co_await conn->receive()) {
    got += text_of(lease->bytes());
    co_await coax::sleep_for(up_to(random, 2));
  }
  CHECK(buffers_in_use() == 0);
}

}  // namespace

TEST_CASE("whenever a multishot receive ends unasked, none of a thousand messages is lost") {
  for (const sim::completion how : both_kinds)
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      INFO("seed " << seed << (how == sim::completion::ring ? ", ring" : ""));
      sim::oracle decide(seed);
      sim::options o{.latency = {0ms, 3ms}, .completion = how};
      if (seed % 2 == 0) o.short_io = o.eintr = o.eagain = 0.1;
      sim::world w(o, decide);
      std::string sent;
      std::string got;
      w.host("srv", receive_numbers, seed, std::ref(got));
      w.host("cli", send_numbers, seed, std::ref(sent));
      w.run_to_end();
      REQUIRE(got == sent);
    }
}

TEST_CASE("more receivers than there are buffers are all served, and who keeps his has them all") {
  constexpr std::size_t connections = 40;
  constexpr std::size_t rounds = 5;
  for (const sim::completion how : both_kinds)
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      INFO("seed " << seed << (how == sim::completion::ring ? ", ring" : ""));
      sim::oracle decide(seed);
      sim::world w({.latency = {0ms, 1ms}, .completion = how}, decide);
      w.host("srv", []() -> task<> {
        auto from = coax::listener::bind("0.0.0.0:9000").value();
        std::vector<coax::leased_buffer> kept;
        const auto serve = [&](coax::stream conn) -> task<> {
          for (std::size_t i = 0; i < rounds; ++i) {
            auto lease = co_await conn.receive();
            REQUIRE(lease);
            kept.push_back(std::move(*lease));
            auto sent = co_await conn.write(kept.back().bytes());
            REQUIRE(sent);
          }
          auto end = co_await conn.receive();
          CHECK(end.error() == coax::errc::end_of_stream);
        };
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          for (std::size_t i = 0; i < connections; ++i) {
            auto conn = co_await from.accept();
            s.spawn(std::ref(serve), std::move(conn).value());
          }
        });
        CHECK(kept.size() == connections * rounds);
        CHECK(buffers_in_use() == kept.size());
        kept.clear();
        CHECK(buffers_in_use() == 0);
      });
      std::size_t answered = 0;
      w.host("cli", [&]() -> task<> {
        co_await coax::sleep_for(1ms);
        const auto ask = [&](std::size_t number) -> task<> {
          auto conn = co_await coax::connect(server_at());
          for (std::size_t i = 0; i < rounds; ++i) {
            const std::string text = std::to_string(1000 * (i + 1) + number);
            auto sent = co_await conn->write(text);
            REQUIRE(sent);
            std::array<std::byte, 4> back;
            auto got = co_await conn->read_exactly(back);
            REQUIRE(got);
            REQUIRE(text_of(back) == text);
            ++answered;
          }
        };
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          for (std::size_t i = 0; i < connections; ++i) s.spawn(std::ref(ask), i);
          co_return;
        });
      });
      w.run_to_end();
      CHECK(answered == connections * rounds);
    }
}

namespace {

constexpr std::size_t flood_size = 1 << 20;

task<> flood(std::size_t& sent) {
  co_await coax::sleep_for(1ms);
  auto conn = co_await coax::connect(server_at());
  std::array<std::byte, 10'000> some;
  while (sent < flood_size) {
    for (std::size_t i = 0; i < some.size(); ++i) some[i] = simulated::pattern_at(1, sent + i);
    auto n =
        co_await conn->write_some(std::span(some).first(std::min(some.size(), flood_size - sent)));
    if (!n) co_return;  // the other has closed
    sent += *n;
  }
}

/// Begins to receive again and again, and is cancelled. Closes the stream when it has taken `most`
/// bytes.
task<> receive_and_be_cancelled(std::uint64_t seed, std::size_t most, const std::size_t& sent,
                                std::size_t& got) {
  sim::generator random(seed);
  auto from = coax::listener::bind("0.0.0.0:9000").value();
  auto conn = co_await from.accept();
  const auto came = [&](std::span<const std::byte> bytes) {
    bool as_sent = true;
    for (const std::byte b : bytes) as_sent = as_sent && b == simulated::pattern_at(1, got++);
    REQUIRE(as_sent);
  };
  const auto receive_on = [&]() -> task<> {
    while (true) {
      auto lease = co_await conn->receive();
      if (!lease) co_return;
      came(lease->bytes());
      if (random() % 2 == 0) co_await coax::sleep_for(up_to(random, 1));
    }
  };
  std::array<std::byte, 5000> buf;
  while (got < most) {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(std::ref(receive_on));
      if (random() % 2 == 0) co_await coax::sleep_for(up_to(random, 3));
      for (auto turns = random() % 4; turns > 0; --turns) co_await coax::yield();
      s.cancel();
    });
    // Nobody receives now: what comes all the same is kept, and soon no more comes.
    if (random() % 2 == 0) co_await coax::sleep_for(20ms);
    CHECK(buffers_in_use() <= 18);
    CHECK(sent - got <= 3 * 64 * 1024 + 18 * coax::detail::buffer::bytes_max);
    if (random() % 2 == 0) continue;
    auto n = co_await conn->read(buf);
    if (n) came(std::span(buf).first(*n));
  }
  {
    const coax::stream closed = std::move(*conn);
  }
  for (int turns = 0; turns < 50; ++turns) co_await coax::yield();
  CHECK(buffers_in_use() == 0);
}

}  // namespace

TEST_CASE(
    "cancelled under a flood, a receive leaves what comes to the next one, and so much as is "
    "bounded") {
  for (const sim::completion how : both_kinds)
    for (std::uint64_t seed = 1; seed <= 20; ++seed)
      for (const std::size_t most : {flood_size / 4, flood_size}) {
        INFO("seed " << seed << (how == sim::completion::ring ? ", ring" : "") << ", up to "
                     << most);
        sim::oracle decide(seed);
        sim::options o{.latency = {0ms, 1ms}, .completion = how};
        if (seed % 2 == 0) o.short_io = 0.3;
        sim::world w(o, decide);
        std::size_t sent = 0;
        std::size_t got = 0;
        w.host("srv", receive_and_be_cancelled, seed, most, std::cref(sent), std::ref(got));
        w.host("cli", flood, std::ref(sent));
        w.run_to_end();
        CHECK(got >= most);
      }
}

namespace {

task<> greet(bool& answered) {
  auto conn = co_await coax::connect(server_at());
  if (!conn) co_return;
  auto sent = co_await conn->write("hello");
  std::array<std::byte, 5> back;
  auto got = co_await conn->read_exactly(back);
  answered = sent && got;
}

/// Connections that the kernel of "srv" has handed to its program.
int accepted_by_kernel(const sim::world& w) {
  std::istringstream all(w.trace());
  int count = 0;
  for (std::string line; std::getline(all, line);)
    if (line.find(" srv accept(") != line.npos && line.find("= -") == line.npos) ++count;
  return count;
}

/// Three clients greet a server that gets SIGTERM after the step number `at`. Result: all steps.
std::size_t stop_at_step(std::size_t at, std::uint64_t seed, sim::completion how) {
  INFO("step " << at << ", seed " << seed << (how == sim::completion::ring ? ", ring" : ""));
  sim::oracle decide(seed);
  sim::world w({.latency = {1ms, 5ms}, .completion = how}, decide);
  simulated::counts seen;
  std::array<bool, 3> answered{};
  auto& server = w.host("srv", simulated::serve, std::ref(seen), 2);
  for (std::size_t i = 0; i < answered.size(); ++i)
    w.host("cli" + std::to_string(i), greet, std::ref(answered[i]));
  std::size_t steps = 0;
  w.invariant([&] {
    // Not before it catches the signal, by which it would be killed.
    if (steps++ == at) server.signal(SIGTERM);
  });
  w.run_for(1min);
  const auto served = std::count(answered.begin(), answered.end(), true);
  REQUIRE(served == accepted_by_kernel(w));
  REQUIRE(seen.accepted == seen.closed);
  if (steps > at) REQUIRE(!server.is_running());
  w.run_until_quiet(1h);
  return steps;
}

}  // namespace

TEST_CASE("SIGTERM at whichever step loses no connection that was accepted") {
  for (const sim::completion how : both_kinds)
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      const std::size_t steps = stop_at_step(SIZE_MAX, seed, how);
      CHECK(steps > 20);
      for (std::size_t at = 0; at < steps; ++at) stop_at_step(at, seed, how);
    }
}

TEST_CASE("a message that was cut off by an error is not followed by another") {
  for (const sim::completion how : both_kinds) {
    sim::world w({.latency = {1ms, 1ms}, .completion = how});
    std::error_code first, second;
    auto& srv = w.host("srv", [&]() -> task<> {
      auto listener = coax::listener::bind("0.0.0.0:9000").value();
      auto conn = co_await listener.accept();
      std::array<std::byte, 8> message;
      auto got = co_await conn->read_exactly(message);
      first = got.error();
      got = co_await conn->read_exactly(std::span(message).first(4));
      second = got.error();
    });
    w.host("cli", []() -> task<> {
      auto conn = co_await coax::connect("srv", 9000);
      auto sent = co_await conn->write("abcd");
      co_await coax::sleep_for(1s);
      sent = co_await conn->write("efghijkl");
      auto closed = co_await conn->close();
      static_cast<void>(closed);
    });
    srv.on("recv").nth(3, ENOMEM);
    w.run_to_end();
    CHECK(first == std::errc::not_enough_memory);
    CHECK(second == coax::errc::transfer_cut);
  }
}

TEST_CASE(
    "by whichever error a connection was lost, each read says so, and none takes it for an end") {
  for (const sim::completion how : both_kinds)
    for (const int error : {ECONNRESET, ECONNABORTED, ECONNREFUSED, ETIMEDOUT, EHOSTDOWN,
                            EHOSTUNREACH, ENETUNREACH}) {
      sim::world w{{.completion = how}};
      std::vector<std::error_code> told;
      auto& server = w.host("srv", [&]() -> task<> {
        auto from = coax::listener::bind("0.0.0.0:9000").value();
        auto conn = co_await from.accept();
        std::array<std::byte, 8> buf;
        while (told.size() < 3) {
          auto n = co_await conn->read(buf);
          told.push_back(n.error());
        }
      });
      server.on("recv").nth(1, error);  // all others find the end
      w.host("cli", []() -> task<> {
        co_await coax::sleep_for(1ms);
        auto conn = co_await coax::connect(server_at());
        REQUIRE(conn);
      });
      w.run_to_end();
      const std::error_code lost(error, std::system_category());
      CHECK(told == std::vector<std::error_code>(3, lost));
    }
}
