#include <coax/task/when_all.hpp>

#include <coax/task/race.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

using namespace std::chrono_literals;
using coax::task;

static_assert(
    std::is_same_v<
        coax::await_result_t<decltype(coax::when_all(coax::yield(), std::declval<task<int>>()))>,
        std::tuple<std::monostate, int>>);

namespace {

task<std::unique_ptr<int>> owned_after(coax::timeout delay, int value) {
  co_await coax::sleep_for(delay);
  co_return std::make_unique<int>(value);
}

/// A parameter that says when it is destroyed.
class closes_at_end {
 public:
  explicit closes_at_end(std::string& log) : log_(&log) {}
  closes_at_end(closes_at_end&& other) noexcept : log_(std::exchange(other.log_, nullptr)) {}
  ~closes_at_end() {
    if (log_ != nullptr) *log_ += ')';
  }

 private:
  std::string* log_;
};

}  // namespace

TEST_CASE("when_all gives the result of each, after the last has ended", "[when_all]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto all = co_await coax::when_all(after(3s, 3), owned_after(1s, 1), coax::sleep_for(2s));
    CHECK(std::get<0>(all) == 3);
    CHECK(*std::get<1>(all) == 1);
  });
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("when_all of a vector gives the results in the order of the vector", "[when_all]") {
  test_loop loop;
  loop.run([]() -> task<> {
    std::vector<task<int>> tasks;
    for (int i = 0; i < 100; ++i) tasks.push_back(after((100 - i) * 1ms, i));
    const auto all = co_await coax::when_all(std::move(tasks));
    REQUIRE(all.size() == 100);
    for (int i = 0; i < 100; ++i) CHECK(all[static_cast<std::size_t>(i)] == i);
  });
  CHECK(loop.elapsed() == 100ms);
}

TEST_CASE("when_all of no tasks, and of tasks without a result", "[when_all]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto none = co_await coax::when_all(std::vector<task<int>>());
    CHECK(none.empty());
    std::vector<task<>> tasks;
    tasks.push_back(sleeps(log, 'b', 2s));
    tasks.push_back(sleeps(log, 'a', 1s));
    co_await coax::when_all(std::move(tasks));
    CHECK(log == "ab");
  });
}

TEST_CASE("an exception in when_all cancels the others and is rethrown after they have ended",
          "[when_all]") {
  test_loop loop;
  std::string log;
  std::string caught;
  loop.run([&]() -> task<> {
    try {
      co_await coax::when_all(sleeps(log, 'x', 1h), throws_after(1s, "first"),
                              throws_after(2s, "never"));
    } catch (const std::runtime_error& e) {
      caught = e.what();
      CHECK(log == "x");
    }
  });
  CHECK(caught == "first");
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("cancelling what awaits when_all unwinds the branches, then the awaiting task",
          "[when_all]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    const named outer(log, 'o');
    co_await coax::when_all(sleeps(log, 'a', 1h), sleeps(log, 'b', 1h));
    log += '!';
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log.size() == 3);
  CHECK(log.back() == 'o');
}

TEST_CASE("when one of all throws before it waits, those behind it never begin", "[when_all]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto throws = []() -> task<> {
      throw std::runtime_error("at once");
      co_return;
    };
    int caught = 0;
    try {
      co_await coax::when_all(sleeps(log, 'a', 1h), throws(), sleeps(log, 'b', 1h));
    } catch (const std::runtime_error&) {
      ++caught;
    }
    std::vector<task<>> tasks;
    tasks.push_back(sleeps(log, 'c', 1h));
    tasks.push_back(throws());
    tasks.push_back(sleeps(log, 'd', 1h));
    try {
      co_await coax::when_all(std::move(tasks));
    } catch (const std::runtime_error&) {
      ++caught;
    }
    CHECK(caught == 2);
  });
  CHECK(log == "ac");
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("when_all that runs out of time has no task left", "[when_all]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    auto all = co_await coax::within(1s, coax::when_all(after(2s, 1), sleeps(log, 'x', 1h)));
    CHECK(all.error() == std::errc::timed_out);
    CHECK(log == "x");
  });
}

TEST_CASE("a race of a vector gives an optional for each", "[race]") {
  test_loop loop;
  loop.run([]() -> task<> {
    std::vector<task<int>> tasks;
    for (int i = 0; i < 5; ++i) tasks.push_back(after((i == 3 ? 1s : 2s), i));
    const auto ends = co_await coax::race(std::move(tasks));
    REQUIRE(ends.size() == 5);
    for (std::size_t i = 0; i < 5; ++i) CHECK(ends[i].has_value() == (i == 3));
    CHECK(ends[3] == 3);
    const auto none = co_await coax::race(std::vector<task<int>>());
    CHECK(none.empty());
  });
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a branch that has ended has given up what it was given, though others go on",
          "[when_all][race]") {
  const auto gives = [](closes_at_end, bool fails) -> task<int> {
    co_await coax::yield();
    if (fails) throw std::runtime_error("thrown");
    co_return 7;
  };
  for (const bool throws : {false, true}) {
    INFO("throws: " << throws);
    test_loop loop;
    std::string log;
    loop.run([&]() -> task<> {
      const auto other = [&]() -> task<> {
        co_await coax::shield(coax::sleep_for(1s));
        log += '.';
      };
      try {
        auto together = coax::when_all(gives(closes_at_end(log), throws), other());
        static_cast<void>(co_await together);
      } catch (const std::runtime_error&) {
        log += 't';
      }
      try {
        auto raced = coax::race(gives(closes_at_end(log), throws), other());
        const auto first = co_await raced;
        CHECK(std::get<0>(first) == 7);
      } catch (const std::runtime_error&) {
        log += 't';
      }
    });
    CHECK(log == (throws ? ").t).t" : ").)."));
  }
}
