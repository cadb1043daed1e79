#include <coax/task/race.hpp>
#include <coax/task/result.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

using namespace std::chrono_literals;
using coax::task;

static_assert(std::is_same_v<
              coax::await_result_t<decltype(coax::race(coax::yield(), std::declval<task<int>>()))>,
              std::tuple<std::optional<std::monostate>, std::optional<int>>>);

namespace {

task<int> at_once(int value) { co_return value; }
task<int> notes_its_end(coax::timeout delay, int value, std::string& log, counted = counted()) {
  const named n(log, static_cast<char>('0' + value));
  co_await coax::sleep_for(delay);
  co_return value;
}

}  // namespace

TEST_CASE("the first to end wins a race, and the losers have unwound when it returns", "[race]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto ends = co_await coax::race(notes_its_end(3s, 3, log), notes_its_end(1s, 1, log),
                                          notes_its_end(2s, 2, log));
    CHECK_FALSE(std::get<0>(ends));
    CHECK(std::get<1>(ends) == 1);
    CHECK_FALSE(std::get<2>(ends));
    CHECK(log.size() == 3);
    CHECK(log.front() == '1');
  });
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("all that finished at once are delivered by a race", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto ends = co_await coax::race(after(1s, 1), after(2s, 2), after(1s, 3));
    CHECK(std::get<0>(ends) == 1);
    CHECK_FALSE(std::get<1>(ends));
    CHECK(std::get<2>(ends) == 3);
  });
}

TEST_CASE("what completes although its race is lost is delivered", "[race]") {
  test_loop loop;
  script late;
  late.stops_at_once = false;
  std::optional<int> winner;
  std::optional<int> loser;
  const auto body = [&]() -> task<> {
    std::tie(winner, loser) = co_await coax::race(after(1s, 1), waits_for(late));
  };
  watched<> w(*loop, body());
  loop->settle();
  loop->pass_time();
  loop->settle();
  CHECK(late.stops == 1);
  CHECK_FALSE(w.has_ended());
  loop->inside([&] { late.complete(2); });
  w.run_to_end();
  CHECK(winner == 1);
  CHECK(loser == 2);
}

TEST_CASE("branches of a race after one that ended at once never begin", "[race]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto ends =
        co_await coax::race(notes_its_end(1s, 1, log), at_once(2), notes_its_end(1s, 3, log));
    CHECK_FALSE(std::get<0>(ends));
    CHECK(std::get<1>(ends) == 2);
    CHECK_FALSE(std::get<2>(ends));
  });
  CHECK(log == "1");
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("a branch that gives nothing has a monostate when it ended", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto ends = co_await coax::race(coax::sleep_for(1s), coax::sleep_for(2s),
                                          []() -> task<> { co_return; }());
    CHECK_FALSE(std::get<0>(ends));
    CHECK_FALSE(std::get<1>(ends));
    CHECK(std::get<2>(ends) == std::monostate{});
    co_await coax::race(coax::yield(), coax::sleep_for(2s));  // may be ignored
  });
}

TEST_CASE("a race of one is that one", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto only = co_await coax::race(
        []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(1); }());
    CHECK(**std::get<0>(only) == 1);
  });
}

TEST_CASE("an exception of a branch ends the race and is rethrown after the others have unwound",
          "[race]") {
  for (const auto delay : {coax::timeout(0s), coax::timeout(1s)}) {
    test_loop loop;
    std::string log;
    loop.run([&]() -> task<> {
      try {
        co_await coax::race(notes_its_end(5s, 1, log), throws_after(delay, "as told"),
                            notes_its_end(6s, 2, log));
        FAIL_CHECK("nothing was thrown");
      } catch (const std::runtime_error&) {
        CHECK(log.size() == 2);
      }
    });
    CHECK(loop.elapsed() <= 1s);
  }
}

TEST_CASE("of two exceptions in a race the first is rethrown", "[race]") {
  test_loop loop;
  const auto throws_text = [](const char* text) -> task<> {
    co_await coax::sleep_for(1s);
    throw std::runtime_error(text);
  };
  CHECK_THROWS_WITH(loop.run([&]() -> task<> {
    co_await coax::race(throws_text("first"), throws_text("second"));
  }),
                    "first");
}

TEST_CASE("a race that is cancelled unwinds its branches first", "[race]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    const counted outer;
    co_await coax::race(notes_its_end(1s, 1, log), notes_its_end(2s, 2, log));
    log += "resumed";
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  CHECK(log.empty());
  loop->settle();
  CHECK(w.unwound());
  CHECK(log.size() == 2);
}

TEST_CASE("what a branch has completed is given though the race is cancelled before the others end",
          "[race]") {
  const counted::census counts;
  test_loop loop;
  script winner;
  script loser;
  loser.stops_at_once = false;
  std::optional<int> given;
  bool went_on = false;
  const auto body = [&]() -> task<> {
    const auto ends = co_await coax::race(waits_for(winner), waits_for(loser));
    given = std::get<0>(ends);
    co_await coax::yield();
    went_on = true;
  };
  watched<> w(*loop, body());
  loop->settle();
  SECTION("after it") {
    loop->inside([&] { winner.complete(42); });
    loop->settle();
    w.cancel_from_outside();
  }
  SECTION("in the same turn") {
    loop->inside([&] { winner.complete(42); });
    w.cancel_from_outside();
    loop->settle();
  }
  loop->inside([&] { loser.acknowledge_stop(); });
  loop->settle();
  CHECK(given == 42);
  CHECK_FALSE(went_on);
  CHECK(w.unwound());
}

TEST_CASE("what a branch has completed is given though the race has run out of time", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    script slow;
    slow.stops_at_once = false;
    const auto acknowledges = [](script& s) -> task<> {
      co_await coax::sleep_for(3s);
      s.acknowledge_stop();
    };
    co_await coax::when_all(
        [](script& s) -> task<> {
          const auto ends = co_await coax::within(2s, coax::race(after(1s, 7), waits_for(s)));
          REQUIRE(ends);
          CHECK(std::get<0>(*ends) == 7);
        }(slow),
        acknowledges(slow));
  });
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("a race of a hundred thousand ends as fast as it begins", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    std::vector<task<int>> many;
    for (int i = 0; i < 100'000; ++i) many.push_back(after(1s * (1 + i % 100), i));
    const auto ends = co_await coax::race(std::move(many));
    CHECK(std::count_if(ends.begin(), ends.end(), [](const auto& e) { return e.has_value(); }) ==
          1'000);
  });
}

TEST_CASE("races and timeouts nest", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto ends = co_await coax::race(
        coax::within(5s, coax::race(after(3s, 1), coax::within(1s, after(9s, 2)))), after(4s, 3));
    CHECK_FALSE(std::get<1>(ends));
    const auto& outer_within = std::get<0>(ends);
    REQUIRE(outer_within);
    REQUIRE(*outer_within);
    CHECK_FALSE(std::get<0>(**outer_within));
    CHECK(std::get<1>(**outer_within)->error() == std::errc::timed_out);
  });
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("in a race of a vector too, branches after one that ended at once never begin",
          "[race]") {
  test_loop loop;
  bool begun = false;
  loop.run([&]() -> task<> {
    const auto begins = [&]() -> task<int> {
      begun = true;
      co_return 2;
    };
    std::vector<task<int>> both;
    both.push_back(at_once(1));
    both.push_back(begins());
    const auto ends = co_await coax::race(std::move(both));
    CHECK(ends[0] == 1);
    CHECK_FALSE(ends[1]);
  });
  CHECK_FALSE(begun);
}
