#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/sync/event.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>

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

namespace {

std::uint64_t turns_so_far() { return coax::loop::current().counted().turns; }
std::uint64_t calls_so_far() { return coax::reactor::current().system().count(); }

/// Something is received so often, each time within a limit if there is one. Result: the system calls.
coax::task<std::uint64_t> calls_for(int times, std::optional<coax::clock::duration> limit) {
  fd_pair p = unix_pair();
  const taken_over socket(std::move(p.ours));
  std::array<std::byte, 1> some;
  std::uint64_t before = 0;
  for (int i = 0; i < times; ++i) {
    if (i == 1) before = calls_so_far();  // the first may have more to do
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        co_await turns(2);
        put(p.theirs, "x");
      });
      if (limit) {
        auto n = co_await coax::within(*limit, receive(socket.get(), some));
        CHECK(n);
      } else {
        auto n = co_await receive(socket.get(), some);
        CHECK(n);
      }
    };
    co_await coax::with_scope(body);
  }
  co_return calls_so_far() - before;
}

}  // namespace

TEST_CASE("deadlines are met in any order of setting, and the reactor sleeps until then") {
  on_each_backend([]() -> coax::task<> {
    const auto before = turns_so_far();
    auto body = [&](coax::scope& s) -> coax::task<> {
      for (const auto far : {coax::clock::duration(1h), coax::clock::duration(30min)})
        s.spawn([](coax::clock::duration d) -> coax::task<> { co_await coax::sleep_for(d); }, far);
      for (const auto near : {3ms, 1ms, 2ms, 1ms}) {
        const auto began = coax::now();
        co_await coax::sleep_for(near);
        CHECK(coax::now() - began >= near);
        coax::event never;
        auto waited = co_await coax::within(near, never.wait());
        CHECK_FALSE(waited);
        CHECK(coax::now() - began >= 2 * near);
      }
      s.cancel();
    };
    co_await coax::with_scope(body);
    CHECK(turns_so_far() - before < 60);  // it does not look again and again
  });
}

TEST_CASE("a deadline is met that is sooner than the one the reactor slept for before") {
  on_each_backend([]() -> coax::task<> {
    const fd_pair there = pipe_from_us();
    const fd_pair back = pipe_to_us();
    std::thread echo([&] {
      char c = 0;
      while (::read(there.theirs.get(), &c, 1) == 1 && c == 'x')
        if (::write(back.theirs.get(), &c, 1) != 1) break;
    });
    for (int i = 0; i < 20; ++i) {
      std::array<std::byte, 1> some;
      REQUIRE(::write(there.ours.get(), "x", 1) == 1);
      auto n = co_await coax::within(1h, coax::read(back.ours.get(), some));
      CHECK(n);
      co_await coax::sleep_for(100us);  // else this takes an hour
    }
    REQUIRE(::write(there.ours.get(), "e", 1) == 1);
    echo.join();
  });
}

TEST_CASE("a deadline that was dropped does not end what is waited for next") {
  on_each_backend([]() -> coax::task<> {
    const auto before = turns_so_far();
    for (int i = 0; i < 3; ++i) {
      fd_pair p = unix_pair();
      const taken_over socket(std::move(p.ours));
      std::array<std::byte, 1> some;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          co_await turns(3);
          put(p.theirs, "x");
        });
        auto n = co_await coax::within(5ms, receive(socket.get(), some));
        const bool in_time = n || n.error() == std::errc::timed_out;
        CHECK(in_time);
        const auto began = coax::now();
        co_await coax::sleep_for(8ms);  // the alarm of the limit goes off meanwhile
        CHECK(coax::now() - began >= 8ms);
      };
      co_await coax::with_scope(body);
    }
    CHECK(turns_so_far() - before < 100);
  });
}

TEST_CASE("a limit that is not reached costs no system call") {
  on_each_backend([]() -> coax::task<> {
    const auto without = co_await calls_for(50, std::nullopt);
    const auto with = co_await calls_for(50, 1h);
    CHECK(with <= without + 2);
  });
}
