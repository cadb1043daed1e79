#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

// The pattern coax was made for: an acceptor hands connections to a stack of idle workers.

namespace {

using namespace std::chrono_literals;
using coax::listener;
using coax::stream;
using coax::task;

using idle_workers = coax::worker_stack<stream>;

struct counts {
  int serving = 0;
  int serving_max = 0;
  int accepted = 0;
  int ended = 0;
};

class counts_one {
 public:
  explicit counts_one(counts& c) : counts_(c) {
    counts_.serving_max = std::max(counts_.serving_max, ++counts_.serving);
  }
  counts_one(const counts_one&) = delete;
  counts_one& operator=(const counts_one&) = delete;
  ~counts_one() {
    --counts_.serving;
    ++counts_.ended;
  }

 private:
  counts& counts_;
};

task<> readwrite_routine(idle_workers& g_readwrite, coax::clock::duration idle, counts& seen) {
  std::array<std::byte, 16 * 1024> buf;
  while (auto conn = co_await g_readwrite.park()) {
    const counts_one one(seen);
    while (auto n = co_await coax::within(idle, conn->read(buf))) {
      auto sent = co_await coax::within(idle, conn->write(std::span(buf).first(*n)));
      if (!sent) break;
    }
  }
}

task<> accept_routine(listener& from, idle_workers& g_readwrite, counts& seen) {
  while (auto worker = co_await g_readwrite.reserve()) {
    auto conn = co_await from.accept();
    ++seen.accepted;
    worker->hand_off(std::move(conn).value());
  }
}

/// Sends and checks `rounds` messages, each followed to the last byte of its echo.
task<> talk(coax::endpoint to, int rounds, std::size_t size, int& done) {
  auto conn = co_await coax::connect(to);
  REQUIRE(conn);
  std::vector<std::byte> back(size);
  for (int i = 0; i < rounds; ++i) {
    const std::vector<std::byte> message = pattern(size, static_cast<std::uint32_t>(i));
    auto sent = co_await conn->write(message);
    REQUIRE(sent);
    auto got = co_await conn->read_exactly(back);
    REQUIRE(got);
    REQUIRE((back == message));
  }
  ++done;
}

/// Runs `clients(where)` against a server of `workers`, then ends the server as a program would.
template <class Clients>
task<> with_server(int workers, coax::clock::duration idle, counts& seen, Clients& clients) {
  auto from = listener::bind("127.0.0.1:0");
  REQUIRE(from);
  idle_workers g_readwrite;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    for (int i = 0; i < workers; ++i)
      s.spawn(readwrite_routine, std::ref(g_readwrite), idle, std::ref(seen));
    co_await coax::race(accept_routine(*from, g_readwrite, seen),
                        clients(from->local_endpoint().value()));
    g_readwrite.close();
    const bool by_themselves = co_await s.join_within(10s);
    CHECK(by_themselves);
  });
  CHECK(seen.serving == 0);
  CHECK(seen.accepted == seen.ended);
}

}  // namespace

TEST_CASE("ten clients and four workers: all are served, four at a time") {
  on_each_backend_and_simulation([]() -> task<> {
    counts seen;
    int done = 0;
    const auto clients = [&](coax::endpoint where) -> task<> {
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        for (int i = 0; i < 10; ++i)
          s.spawn(talk, where, 20, 1000u * static_cast<unsigned>(i) + 1, std::ref(done));
        co_return;
      });
    };
    co_await with_server(4, 10s, seen, clients);
    CHECK(done == 10);
    CHECK(seen.accepted == 10);
    CHECK(seen.serving_max <= 4);
  });
}

TEST_CASE("one worker serves clients one after the other") {
  on_each_backend_and_simulation([]() -> task<> {
    counts seen;
    int done = 0;
    const auto clients = [&](coax::endpoint where) -> task<> {
      for (int i = 0; i < 50; ++i) co_await talk(where, 1, 10, done);
    };
    co_await with_server(1, 10s, seen, clients);
    CHECK(done == 50);
    CHECK(seen.serving_max == 1);
  });
}

TEST_CASE("clients that say nothing are dropped, and their workers serve others") {
  on_each_backend_and_simulation([]() -> task<> {
    counts seen;
    int done = 0;
    const auto clients = [&](coax::endpoint where) -> task<> {
      std::vector<stream> silent;
      for (int i = 0; i < 4; ++i) {
        auto conn = co_await coax::connect(where);
        REQUIRE(conn);
        silent.push_back(std::move(*conn));
      }
      co_await talk(where, 3, 100, done);  // gets its turn once one of them was dropped
      for (stream& s : silent) {
        std::string nothing;
        const std::error_code why = co_await read_to_end(s, nothing);
        CHECK(why == coax::errc::end_of_stream);
      }
    };
    co_await with_server(2, 100ms, seen, clients);
    CHECK(done == 1);
    CHECK(seen.accepted == 5);
  });
}

TEST_CASE("a client that never reads does not hold up the others, and is dropped") {
  on_each_backend_and_simulation([]() -> task<> {
    counts seen;
    int done = 0;
    std::error_code never_reads;
    const std::vector<std::byte> much = pattern(32u << 20, 1);
    const auto write_much = [&](coax::endpoint where) -> task<> {
      auto conn = co_await coax::connect(where);
      REQUIRE(conn);
      auto sent = co_await conn->write(much);
      never_reads = sent.error();
    };
    const auto clients = [&](coax::endpoint where) -> task<> {
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(std::ref(write_much), where);
        for (int i = 0; i < 20; ++i) co_await talk(where, 5, 1000, done);
      });
    };
    co_await with_server(2, 200ms, seen, clients);
    CHECK(done == 20);
    CHECK((never_reads == std::errc::connection_reset || never_reads == std::errc::broken_pipe));
  });
}

TEST_CASE("clients that go in the middle of a message leave the workers to others") {
  on_each_backend_and_simulation([]() -> task<> {
    counts seen;
    int done = 0;
    const auto clients = [&](coax::endpoint where) -> task<> {
      for (int i = 0; i < 30; ++i) {
        auto conn = co_await coax::connect(where);
        REQUIRE(conn);
        auto sent = co_await conn->write("half a mess");
        REQUIRE(sent);
        if (i % 3 == 0) {
          const linger at_once{1, 0};
          REQUIRE(coax::syscalls::current().setsockopt(conn->native_handle(), SOL_SOCKET, SO_LINGER,
                                                       &at_once, sizeof at_once) == 0);
        }
        if (i % 3 == 1) co_await turns(i % 5);
      }
      co_await talk(where, 3, 100, done);
    };
    co_await with_server(2, 10s, seen, clients);
    CHECK(done == 1);
    CHECK(seen.accepted >= 21);  // a reset connection may never be accepted
  });
}

TEST_CASE("busy workers that are cancelled close their connections") {
  on_each_backend_and_simulation([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    idle_workers g_readwrite;
    counts seen;
    std::vector<stream> clients;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 0; i < 4; ++i)
        s.spawn(readwrite_routine, std::ref(g_readwrite), 10s, std::ref(seen));
      s.spawn(accept_routine, std::ref(*from), std::ref(g_readwrite), std::ref(seen));
      for (int i = 0; i < 6; ++i) {
        auto conn = co_await coax::connect(from->local_endpoint().value());
        REQUIRE(conn);
        clients.push_back(std::move(*conn));
      }
      while (seen.serving < 4) co_await coax::yield();
      const bool by_themselves = co_await s.join_within(0ms);
      CHECK(!by_themselves);
    });
    CHECK(seen.serving == 0);
    from->close();  // with it the two in the backlog
    for (stream& c : clients) {
      std::string nothing;
      const std::error_code why = co_await read_to_end(c, nothing);
      CHECK(why);
    }
  });
}
