#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include "../task/death.hpp"
#include "seccomp.hpp"

#include <coax/sync/event.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <chrono>
#include <functional>
#include <string>

using namespace std::chrono_literals;

TEST_CASE("a sleep is never shorter than it was asked to be") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const coax::clock::duration d :
         {coax::clock::duration(1), coax::clock::duration(50us), coax::clock::duration(1ms),
          coax::clock::duration(2500us)}) {
      const auto before = coax::now();
      co_await coax::sleep_for(d);
      CHECK(coax::now() - before >= d);
    }
  });
}

TEST_CASE("a timeout is never shorter than it was asked to be") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const coax::clock::duration d :
         {coax::clock::duration(1), coax::clock::duration(50us), coax::clock::duration(1ms),
          coax::clock::duration(2500us)}) {
      coax::event never;
      const auto before = coax::now();
      auto waited = co_await coax::within(d, never.wait());
      REQUIRE_FALSE(waited);
      CHECK(waited.error() == std::errc::timed_out);
      CHECK(coax::now() - before >= d);
    }
  });
}

TEST_CASE("sleeps that end at the same time wake in the order in which they began") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    std::string log;
    const auto deadline = coax::now() + 1ms;
    const auto sleeps = [&](coax::clock::time_point until, char name) -> coax::task<> {
      co_await coax::sleep_until(until);
      log += name;
    };
    auto body = [&](coax::scope& s) -> coax::task<> {
      for (const char name : {'b', 'c', 'd', 'e'}) s.spawn(std::ref(sleeps), deadline, name);
      s.spawn(std::ref(sleeps), deadline - 500us, 'a');
      co_return;
    };
    co_await coax::with_scope(body);
    CHECK(log == "abcde");
  });
}

TEST_CASE("a sleep of nothing, and one into the past, end at once but let others run") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const auto until :
         {coax::now(), coax::now() - 1h, coax::clock::time_point(), coax::clock::time_point::min(),
          coax::clock::time_point::min() + 1ns}) {
      bool other = false;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          other = true;
          co_return;
        });
        co_await coax::sleep_until(until);
        CHECK(other);
      };
      co_await coax::with_scope(body);
    }
    co_await coax::sleep_for(0s);
    co_await coax::sleep_for(-1h);
  });
}

TEST_CASE("a deadline beyond the end of time waits, and keeps nobody else") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([]() -> coax::task<> { co_await coax::sleep_until(coax::clock::time_point::max()); });
      s.spawn(
          []() -> coax::task<> { co_await coax::sleep_for(std::chrono::hours(24 * 365 * 300)); });
      s.spawn([]() -> coax::task<> {
        const fd_pair pipe = pipe_to_us();
        std::array<std::byte, 1> some;
        auto n = co_await coax::within(std::chrono::hours(24 * 365 * 300),
                                       coax::read(pipe.ours.get(), some));
        FAIL("it has ended: " << n.error());
      });
      co_await turns();
      co_await coax::sleep_for(1ms);
      const fd_pair pipe = pipe_to_us();
      put(pipe.theirs, "x");
      std::array<std::byte, 1> some;
      auto n = co_await coax::within(std::chrono::hours(24 * 365 * 300),
                                     coax::read(pipe.ours.get(), some));
      CHECK(n);
      s.cancel();
    };
    co_await coax::with_scope(body);
  });
}

TEST_CASE("epoll without epoll_pwait2 still keeps time") {
  const int refusal = GENERATE(ENOSYS, EPERM);
  const ending child = ending_of([&] {
    refuse(SYS_epoll_pwait2, refusal);
    const auto reactor = reactor_of(coax::backend::epoll);
    bool early = false;
    int turned = 0;
    const coax::reactor::session session(*reactor);
    bool done = false;
    const auto sleeps = [&]() -> coax::task<> {
      for (const coax::clock::duration d :
           {coax::clock::duration(1ms), coax::clock::duration(1500us), coax::clock::duration(300us),
            coax::clock::duration(1)}) {
        const auto before = coax::now();
        co_await coax::sleep_for(d);
        early = early || coax::now() - before < d;
      }
      // A deadline that milliseconds cannot hold must not turn into a short one.
      const fd_pair pipe = pipe_to_us();
      put(pipe.theirs, "x");
      std::array<std::byte, 1> some;
      auto n = co_await coax::within(std::chrono::hours(24 * 365 * 290),
                                     coax::read(pipe.ours.get(), some));
      early = early || !n;
      done = true;
    };
    reactor->serve(sleeps());
    while (!done) {
      reactor->turn();
      ++turned;
    }
    if (early) std::fprintf(stderr, "a sleep was short\n");
    if (turned > 50) std::fprintf(stderr, "%d turns: it spins instead of waiting\n", turned);
  });
  CHECK(child.was_orderly());
  CHECK(child.words == "");
}
