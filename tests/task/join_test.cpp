#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "death.hpp"
#include "probes.hpp"

#include <functional>
#include <system_error>

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

task<> rests(coax::timeout how_long) { co_await coax::sleep_for(how_long); }
task<> counts(int& n) {
  ++n;
  co_return;
}

}  // namespace

TEST_CASE("join_within gives true when all children end in time, after the last of them",
          "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, 1s);
      s.spawn(rests, 2s);
      const bool all = co_await s.join_within(10s);
      CHECK(all);
      CHECK(s.size() == 0);
      CHECK(loop.elapsed() == 2s);
      CHECK(loop->timers_set() == 0);
    });
  });
}

TEST_CASE("join_within gives false when time runs out, after those that are left have unwound",
          "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, 1s);
      s.spawn(rests, 20s);
      const bool all = co_await s.join_within(10s);
      CHECK_FALSE(all);
      CHECK(s.size() == 0);
    });
  });
  CHECK(loop.elapsed() == 10s);
}

TEST_CASE("a join that runs out cancels the children only: the body goes on", "[join]") {
  test_loop loop;
  int ran = 0;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, 20s);
      const bool all = co_await s.join_within(10s);
      CHECK_FALSE(all);
      co_await coax::sleep_for(1s);
      co_await coax::yield();
      ++ran;
    });
  });
  CHECK(ran == 1);
  CHECK(loop.elapsed() == 11s);
}

TEST_CASE("children that were cancelled have not ended by themselves", "[join]") {
  test_loop loop;
  loop.run([]() -> task<> {
    co_await coax::with_scope([](coax::scope& s) -> task<> {
      s.spawn([]() -> task<> { co_await coax::sleep_for(1h); });
      co_await coax::yield();
      s.cancel();
      const auto joined = [](coax::scope& of) -> task<bool> {
        const bool by_themselves = co_await of.join_within(1s);
        co_return by_themselves;
      };
      const bool by_themselves = co_await coax::shield(joined(s));
      CHECK_FALSE(by_themselves);
    });
  });
}

TEST_CASE("what is spawned after a join ran out is destroyed unrun", "[join]") {
  test_loop loop;
  int ran = 0;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, 20s);
      const bool all = co_await s.join_within(10s);
      CHECK_FALSE(all);
      s.spawn(counts, std::ref(ran));
      CHECK(s.size() == 0);
      const bool again = co_await s.join_within(10s);
      CHECK(again);
    });
  });
  CHECK(ran == 0);
  CHECK(loop.elapsed() == 10s);
}

TEST_CASE("a join without children ends at once", "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const bool all = co_await s.join_within(-1s);
      CHECK(all);
    });
  });
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("a scope may be joined again, and be spawned into in between", "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      for (int i = 0; i < 3; ++i) {
        s.spawn(rests, 1s);
        const bool all = co_await s.join_within(2s);
        CHECK(all);
      }
    });
  });
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("a join waits for what children spawn meanwhile", "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(
          [](scope& own) -> task<> {
            co_await coax::sleep_for(1s);
            own.spawn(rests, 3s);
          },
          std::ref(s));
      const bool all = co_await s.join_within(10s);
      CHECK(all);
      CHECK(loop.elapsed() == 4s);
    });
  });
}

TEST_CASE("a join of no time cancels children that wait, and lets those end that are ready",
          "[join]") {
  test_loop loop;
  int ran = 0;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, 1s);
      s.spawn(counts, std::ref(ran));
      const bool all = co_await s.join_within(0s);
      CHECK_FALSE(all);
    });
  });
  CHECK(ran == 1);
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("a join of centuries waits for the children", "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, std::chrono::hours(24 * 365));
      const bool all = co_await s.join_within(std::chrono::hours(24 * 365 * 300));
      CHECK(all);
    });
  });
  CHECK(loop.elapsed() == std::chrono::hours(24 * 365));
}

TEST_CASE(
    "a child that completes although it was cancelled by the join keeps it waiting until then",
    "[join]") {
  test_loop loop;
  script late;
  late.stops_at_once = false;
  int value = 0;
  const auto body = [&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn([](script& waits, int& out) -> task<> { out = co_await scripted_wait(waits); },
              std::ref(late), std::ref(value));
      const bool all = co_await s.join_within(1s);
      CHECK_FALSE(all);
      CHECK(value == 5);
    });
  };
  watched<> w(*loop, body());
  loop->settle();
  loop->pass_time();
  loop->settle();
  CHECK(late.stops == 1);
  CHECK_FALSE(w.has_ended());
  loop->inside([&] { late.complete(5); });
  w.run_to_end();
  CHECK(w.finished());
}

TEST_CASE("a child that throws while another is joined unwinds the body, and the scope rethrows",
          "[join]") {
  test_loop loop;
  CHECK_THROWS_WITH(loop.run([]() -> task<> {
    co_await coax::with_scope([](scope& s) -> task<> {
      s.spawn(rests, 5s);
      s.spawn(throws_after, 1s, "as told");
      static_cast<void>(co_await s.join_within(10s));
      FAIL_CHECK("the body went on");
    });
  }),
                    "as told");
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a join that is cancelled from outside unwinds with its timer", "[join]") {
  test_loop loop;
  const auto body = []() -> task<> {
    co_await coax::with_scope([](scope& s) -> task<> {
      s.spawn(rests, 5s);
      static_cast<void>(co_await s.join_within(10s));
      FAIL_CHECK("the body went on");
    });
  };
  watched<> w(*loop, body());
  loop->settle();
  CHECK(loop->timers_set() == 2);
  w.cancel_from_outside();
  loop->settle();
  CHECK(w.unwound());
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("a join may stand within a timeout", "[join]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(rests, 5s);
      const coax::result<bool> none = co_await coax::within(1s, s.join_within(10s));
      CHECK(none.error() == std::errc::timed_out);
      CHECK(s.size() == 1);
      const coax::result<bool> all = co_await coax::within(10s, s.join_within(7s));
      CHECK(all.value());
    });
  });
  CHECK(loop.elapsed() == 5s);
}

TEST_CASE("two joins of one scope at a time abort with a message", "[join]") {
  const auto twice = [] {
    manual_loop().run([]() -> task<> {
      co_await coax::with_scope([](scope& s) -> task<> {
        s.spawn([](scope& own) -> task<> { static_cast<void>(co_await own.join_within(1s)); },
                std::ref(s));
        static_cast<void>(co_await s.join_within(2s));
      });
    }());
  };
  CHECK(ending_of(twice).aborted_saying("two tasks wait in join_within"));
}
