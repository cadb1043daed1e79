#include <coax/task/race.hpp>
#include <coax/task/result.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

using namespace std::chrono_literals;
using coax::result;
using coax::task;

static_assert(
    std::is_same_v<coax::await_result_t<decltype(coax::within(1s, std::declval<task<int>>()))>,
                   result<int>>);
static_assert(
    std::is_same_v<coax::await_result_t<decltype(coax::within(1s, std::declval<task<>>()))>,
                   result<void>>);
static_assert(std::is_same_v<
              coax::await_result_t<decltype(coax::within(1s, std::declval<task<result<int>>>()))>,
              result<int>>);
static_assert(
    std::is_same_v<coax::await_result_t<decltype(coax::within(1s, coax::yield()))>, result<void>>);

namespace {

task<int> at_once(int value) { co_return value; }
task<result<int>> gives_error() { co_return std::errc::connection_reset; }

/// Yields within `limit`, so many awaits deep.
task<bool> yields_within(coax::timeout limit, int depth) {
  if (depth > 0) {
    const bool in_time = co_await yields_within(limit, depth - 1);
    co_return in_time;
  }
  const auto yielded = co_await coax::within(limit, coax::yield());
  co_return static_cast<bool>(yielded);
}

}  // namespace

TEST_CASE("within gives the result of what ends in time", "[within]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto slept = co_await coax::within(2s, coax::sleep_for(1s));
    CHECK(slept);
    const auto late = co_await coax::within(2s, after(1s, 1));
    CHECK(late.value() == 1);
    const auto now = co_await coax::within(2s, at_once(2));
    CHECK(now.value() == 2);
    const auto box = co_await coax::within(
        2s, []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(3); }());
    CHECK(**box == 3);
  });
  CHECK(loop.elapsed() == 2s);
}

TEST_CASE("within gives timed_out when time ran out, after what it held has unwound", "[within]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto single = co_await coax::within(1s, coax::sleep_for(5s));
    CHECK(single.error() == std::errc::timed_out);
    const auto whole = co_await coax::within(1s, sleeps(log, '1', 5s));
    CHECK(whole.error() == std::errc::timed_out);
    CHECK(log == "1");
  });
  CHECK(loop.elapsed() == 2s);
}

TEST_CASE("a result within a timeout stays one result", "[within]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto failed = co_await coax::within(1s, gives_error());
    CHECK(failed.error() == std::errc::connection_reset);
    const auto twice = co_await coax::within(2s, coax::within(1s, after(5s, 1)));
    CHECK(twice.error() == std::errc::timed_out);
    const auto good = co_await coax::within(2s, coax::within(1s, after(1ms, 1)));
    CHECK(good.value() == 1);
  });
  CHECK(loop.elapsed() == 1s + 1ms);
}

TEST_CASE("an exception passes through within", "[within]") {
  test_loop loop;
  CHECK_THROWS_AS(loop.run([]() -> task<> {
    static_cast<void>(co_await coax::within(2s, throws_after(1s, "as told")));
  }),
                  std::runtime_error);
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("what completes after its time ran out, but was not stopped, is delivered", "[within]") {
  for (const bool as_task : {false, true}) {
    test_loop loop;
    script late;
    late.stops_at_once = false;
    const auto body = [&]() -> task<result<int>> {
      if (as_task) {
        const auto r = co_await coax::within(1s, waits_for(late));
        co_return r;
      }
      const auto r = co_await coax::within(1s, scripted_wait(late));
      co_return r;
    };
    watched<result<int>> w(*loop, body());
    loop->settle();
    loop->pass_time();
    loop->settle();
    CHECK(late.stops == 1);
    CHECK_FALSE(w.has_ended());
    loop->inside([&] { late.complete(7); });
    w.run_to_end();
    REQUIRE(w.finished());
    CHECK(w.take().value() == 7);
  }
}

TEST_CASE("however short a timeout is, the wait is tried", "[within]") {
  for (const coax::timeout limit :
       {coax::timeout(0s), coax::timeout(-5s), coax::timeout(std::chrono::hours::min())}) {
    test_loop loop;
    script s;
    script completes;
    completes.completes_at_once = true;
    loop.run([&]() -> task<> {
      const auto now = co_await coax::within(limit, at_once(1));
      CHECK(now.value() == 1);
      const auto completed = co_await coax::within(limit, scripted_wait(completes));
      CHECK(completed);
      const auto yielded = co_await coax::within(limit, coax::yield());
      CHECK(yielded);
      const auto never = co_await coax::within(limit, scripted_wait(s));
      CHECK(never.error() == std::errc::timed_out);
      const auto nor_as_task = co_await coax::within(limit, waits_for(s));
      CHECK(nor_as_task.error() == std::errc::timed_out);
    });
    CHECK(s.begun == 2);
    CHECK(loop.elapsed() == 0s);
  }
}

TEST_CASE("a yield within a timeout takes one turn, however short that is, and however deep",
          "[within]") {
  test_loop loop;
  loop.run([]() -> task<> {
    for (int depth = 0; depth < 100; ++depth) {
      CAPTURE(depth);
      const auto before = coax::loop::current().counted().turns;
      const bool in_time = co_await yields_within(0s, depth);
      CHECK(in_time);
      const auto turns = coax::loop::current().counted().turns - before;
      if (depth < 32) CHECK(turns == 1);  // deeper, tasks take turns to be started
    }
  });
}

TEST_CASE("a timeout of centuries does not overflow into the past", "[within]") {
  test_loop loop;
  loop.run([]() -> task<> {
    for (const auto centuries : {std::chrono::hours(24 * 365 * 300), std::chrono::hours::max()}) {
      const auto year =
          co_await coax::within(centuries, coax::sleep_for(std::chrono::hours(24 * 365)));
      CHECK(year);
      const auto second = co_await coax::within(centuries, after(1s, 1));
      CHECK(second);
    }
  });
}

TEST_CASE("of nested timeouts the one that ends first fires", "[within]") {
  test_loop loop;
  loop.run([]() -> task<> {
    int inner_ends = 0;
    const auto held = [&](coax::timeout limit) -> task<std::string> {
      const auto inner = co_await coax::within(limit, coax::sleep_for(100s));
      ++inner_ends;
      co_return inner ? "slept" : "inner";
    };
    const auto by_inner = co_await coax::within(2s, held(1s));
    CHECK(by_inner.value() == "inner");
    CHECK(inner_ends == 1);
    const auto by_outer = co_await coax::within(1s, held(2s));
    CHECK(by_outer.error() == std::errc::timed_out);
    CHECK(inner_ends == 1);
  });
  CHECK(loop.elapsed() == 2s);
}

TEST_CASE("deadlines at one instant: what was set first decides, and nothing hangs", "[within]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto single = co_await coax::within(1s, coax::sleep_for(1s));
    CHECK(single);
    const auto same = co_await coax::within(1s, after(1s, 1));
    CHECK(same.value() == 1);
    const auto nested = co_await coax::within(1s, coax::within(1s, coax::within(1s, after(5s, 1))));
    CHECK(nested.error() == std::errc::timed_out);
    const auto raced =
        co_await coax::race(coax::within(1s, after(9s, 1)), after(1s, 2), coax::sleep_for(1s));
    CHECK(std::get<1>(raced) == 2);
    CHECK(std::get<2>(raced));
  });
  CHECK(loop.elapsed() == 4s);
}

TEST_CASE("a wait within a timeout that is cancelled unwinds and takes its timer with it",
          "[within]") {
  for (const bool as_task : {false, true}) {
    test_loop loop;
    script s;
    const auto body = [&]() -> task<> {
      if (as_task)
        static_cast<void>(co_await coax::within(1s, waits_for(s)));
      else
        static_cast<void>(co_await coax::within(1s, scripted_wait(s)));
      FAIL_CHECK("resumed");
    };
    watched<> w(*loop, body());
    loop->settle();
    CHECK(loop->timers_set() == 1);
    w.cancel_from_outside();
    loop->settle();
    CHECK(w.unwound());
    CHECK(s.stops == 1);
    CHECK(loop->timers_set() == 0);
  }
}

TEST_CASE("a limit and a sleep that end at one instant end in the order in which they began",
          "[within]") {
  test_loop loop;
  script never;
  std::string order;
  loop.run([&]() -> task<> {
    const auto limited = [&]() -> task<> {
      const auto late = co_await coax::within(1s, scripted_wait(never));
      CHECK(late.error() == std::errc::timed_out);
      order += "limit ";
    };
    co_await coax::when_all(limited(), sleeps(order, 's', 1s));
  });
  CHECK(order == "limit s");
}
