#include "../bench/allocations.hpp"
#include "../net/pairs.hpp"
#include "../turns.hpp"

#include <coax/coax.hpp>

#include <poll.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

// Once a program has warmed up, what it does again and again takes nothing from the heap.

namespace {

using namespace std::chrono_literals;
using coax::task;

/// How often operator new was called while `round` ran a hundred times, after as many to warm up.
template <class Round>
task<std::uint64_t> allocations_of(Round& round) {
  constexpr int rounds = 100;
  for (int i = 0; i < rounds; ++i) co_await round();
  const std::uint64_t before = allocations_of_this_program().count;
  for (int i = 0; i < rounds; ++i) co_await round();
  co_return allocations_of_this_program().count - before;
}

task<> nothing() { co_return; }

}  // namespace

#if !defined(COAX_ADDRESS_SANITIZER)  // under which every frame comes from the heap

TEST_CASE("operations of streams and descriptors allocate nothing") {
  on_each_backend([]() -> task<> {
    auto from = coax::listener::bind("127.0.0.1:0");
    REQUIRE(from);
    const coax::endpoint at = from->local_endpoint().value();
    auto ends = co_await coax::when_all(from->accept(), coax::connect(at));
    coax::stream a = std::move(std::get<0>(ends)).value();
    coax::stream b = std::move(std::get<1>(ends)).value();
    std::array<std::byte, 5> bytes;

    const auto reads = [&]() -> task<> {
      auto sent = co_await a.write("hello");
      auto got = co_await coax::within(60s, b.read_exactly(bytes));
      CHECK((sent && got));
    };
    const auto by_reads = co_await allocations_of(reads);
    CHECK(by_reads == 0);
    const auto receives = [&]() -> task<> {
      auto sent = co_await coax::within(60s, a.write("hello"));
      const auto lease = co_await coax::within(60s, b.receive());
      CHECK((sent && lease));
    };
    const auto by_receives = co_await allocations_of(receives);
    CHECK(by_receives == 0);
    const auto waits = [&]() -> task<> {
      auto both =
          co_await coax::when_all(coax::within(60s, b.read_exactly(bytes)), a.write("hello"));
      CHECK((std::get<0>(both) && std::get<1>(both)));
    };
    const auto by_waits = co_await allocations_of(waits);
    CHECK(by_waits == 0);
    const auto connects = [&]() -> task<> {
      auto both = co_await coax::when_all(from->accept(), coax::connect(at));
      auto closed = co_await coax::when_all(std::get<0>(both)->close(), std::get<1>(both)->close());
      CHECK((std::get<0>(closed) && std::get<1>(closed)));
    };
    const auto by_connects = co_await allocations_of(connects);
    CHECK(by_connects == 0);

    int pipe[2];
    REQUIRE(::pipe2(pipe, O_CLOEXEC) == 0);
    const coax::unique_fd out(pipe[0]);
    const coax::unique_fd in(pipe[1]);
    const auto pipes = [&]() -> task<> {
      auto written = co_await coax::write(in.get(), "hello");
      auto read = co_await coax::read(out.get(), bytes);
      CHECK((written && read));
    };
    const auto by_pipes = co_await allocations_of(pipes);
    CHECK(by_pipes == 0);
    const auto polls = [&]() -> task<> {
      pollfd wanted{out.get(), POLLIN, 0};
      auto none = co_await coax::within(10us, coax::poll(std::span(&wanted, 1)));
      CHECK_FALSE(none);
    };
    const auto by_polls = co_await allocations_of(polls);
    CHECK(by_polls == 0);
  });
}

TEST_CASE("tasks, scopes, timers and sync primitives allocate nothing") {
  on_each_backend([]() -> task<> {
    coax::channel<int> values(1);
    const auto sends = [&]() -> task<> {
      const bool sent = co_await values.send(1);
      const auto got = co_await values.receive();
      CHECK((sent && got));
    };
    const auto by_sends = co_await allocations_of(sends);
    CHECK(by_sends == 0);
    coax::mutex mutex;
    coax::semaphore permits(1);
    const auto locks = [&]() -> task<> {
      const auto guard = co_await mutex.lock();
      const auto permit = co_await permits.acquire();
    };
    const auto by_locks = co_await allocations_of(locks);
    CHECK(by_locks == 0);
    coax::event never;
    const auto races = [&]() -> task<> {
      co_await coax::race(coax::sleep_for(1us), never.wait());
      const auto late = co_await coax::within(1us, never.wait());
      CHECK_FALSE(late);
    };
    const auto by_races = co_await allocations_of(races);
    CHECK(by_races == 0);
    const auto spawns = []() -> task<> {
      co_await coax::with_scope([](coax::scope& s) -> task<> {
        s.spawn(nothing);
        co_await s.join_within(60s);
      });
    };
    const auto by_spawns = co_await allocations_of(spawns);
    CHECK(by_spawns == 0);
    coax::worker_stack<int> idle;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(
          [](coax::worker_stack<int>& own) -> task<> {
            while (auto work = co_await own.park()) CHECK(*work == 1);
          },
          std::ref(idle));
      const auto hands_off = [&]() -> task<> {
        auto worker = co_await idle.reserve();
        worker->hand_off(1);
      };
      const auto by_hands_off = co_await allocations_of(hands_off);
      CHECK(by_hands_off == 0);
      idle.close();
    });
  });
}

#endif
