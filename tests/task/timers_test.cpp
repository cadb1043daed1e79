#include <coax/task/clock.hpp>
#include <coax/task/timers.hpp>

#include "../catch.hpp"

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using point = coax::clock::time_point;

namespace {

constexpr point at(std::int64_t ns) { return point(coax::clock::duration(ns)); }
constexpr point never = point::max();

/// A timer that does as the test says when it fires.
class probe final : public coax::timer {
 public:
  explicit probe(std::function<void()> then) : then_(std::move(then)) {}
  using timer::limit;

 private:
  void expired() noexcept override { then_(); }
  std::function<void()> then_;
};

/// Timers with numbers, and the order in which they fired.
class numbered {
 public:
  explicit numbered(point start = at(0)) : timers(start) {}
  numbered(const numbered&) = delete;
  numbered& operator=(const numbered&) = delete;
  ~numbered() {
    for (const auto& p : probes_) timers.drop(*p);
  }

  /// Sets one more timer, which also does `then` when it fires. Gives its number.
  int set(point deadline, std::function<void()> then = [] {}) {
    const int number = static_cast<int>(probes_.size());
    probes_.push_back(std::make_unique<probe>([this, number, then = std::move(then)] {
      fired.push_back(number);
      then();
    }));
    timers.set(*probes_.back(), deadline);
    return number;
  }
  /// The same with a limit, which does not count yet.
  int set_limit(coax::timeout limit) {
    const int number = static_cast<int>(probes_.size());
    probes_.push_back(std::make_unique<probe>([this, number] { fired.push_back(number); }));
    probes_.back()->limit(limit);
    timers.set_later(*probes_.back());
    return number;
  }
  probe& operator[](int number) { return *probes_[static_cast<std::size_t>(number)]; }

  coax::timers timers;
  std::vector<int> fired;

 private:
  std::vector<std::unique_ptr<probe>> probes_;
};

using order = std::vector<int>;

}  // namespace

TEST_CASE("a timer fires at its deadline, not before, and once", "[timers]") {
  numbered n;
  n.set(at(100));
  n.timers.expire(at(99));
  CHECK(n.fired.empty());
  n.timers.expire(at(100));
  CHECK(n.fired == order{0});
  n.timers.expire(never);
  CHECK(n.fired == order{0});
  CHECK(n.timers.size() == 0);
}

TEST_CASE("a timer that was dropped does not fire, and dropping it again has no effect",
          "[timers]") {
  numbered n;
  n.set(at(5));
  n.set(at(5));
  n.timers.drop(n[0]);
  n.timers.drop(n[0]);
  CHECK(n.timers.size() == 1);
  n.timers.expire(at(10));
  CHECK(n.fired == order{1});
}

TEST_CASE("timers with one deadline fire in the order of setting, however far away they were set",
          "[timers]") {
  numbered n;
  const point deadline = at(1'000'000'007);
  n.set(deadline);
  n.set(deadline);
  for (const std::int64_t nearer : {999'999'000, 1'000'000'000, 1'000'000'006}) {
    n.timers.expire(at(nearer));
    n.set(deadline);
    n.set(deadline);
  }
  n.timers.expire(deadline);
  CHECK(n.fired == order{0, 1, 2, 3, 4, 5, 6, 7});
}

TEST_CASE("a burst after a stall fires in the order of deadlines", "[timers]") {
  numbered n;
  const std::int64_t deadlines[] = {5'000'000, 70, 3, 4'096, 64, 4'095, 63, 1'000'000'000'000, 3};
  for (const std::int64_t d : deadlines) n.set(at(d));
  n.timers.expire(at(2'000'000'000'000));
  CHECK(n.fired == order{2, 8, 6, 4, 1, 5, 3, 0, 7});
}

TEST_CASE("a deadline that has passed fires next, in the order of setting", "[timers]") {
  numbered n(at(1'000));
  n.set(at(999));
  n.set(at(-7));
  n.set(point::min());
  n.set(at(1'000));
  CHECK(n.timers.next() == at(1'000));
  n.timers.expire(at(1'000));
  CHECK(n.fired == order{0, 1, 2, 3});
}

TEST_CASE("the end of time is a deadline like any other", "[timers]") {
  numbered n(at(3'600'000'000'000));
  n.set(never);
  n.set(never - 1ns);
  n.set(never);
  CHECK(n.timers.next() == never - 1ns);
  n.timers.expire(never - 1ns);
  CHECK(n.fired == order{1});
  CHECK(n.timers.next() == never);
  n.timers.expire(never);
  CHECK(n.fired == order{1, 0, 2});
  n.set(never);
  n.timers.expire(never);
  CHECK(n.fired == order{1, 0, 2, 3});
}

TEST_CASE("time does not go back", "[timers]") {
  numbered n;
  n.timers.expire(at(500));
  n.timers.expire(at(100));
  n.set(at(200));
  n.timers.expire(at(150));
  CHECK(n.fired == order{0});
  n.set_limit(50ns);
  n.timers.count_from(at(100));
  CHECK(n.timers.next() == at(550));
}

TEST_CASE("a timer may drop others when it fires, due at the same time or later", "[timers]") {
  numbered n;
  n.set(at(10), [&] {
    for (int other = 0; other < 4; ++other) n.timers.drop(n[other]);
  });
  n.set(at(10));
  n.set(at(11));
  n.set(at(1'000'000));
  n.set(at(10));
  n.timers.expire(at(2'000'000));
  CHECK(n.fired == order{0, 4});
  CHECK(n.timers.size() == 0);
}

TEST_CASE("a timer set when another fires takes its place in the order", "[timers]") {
  numbered n;
  n.set(at(10), [&] {
    n.set(at(0));        // 3: has passed, so it is due now, after what was set before
    n.set(at(30));       // 4
    n.set(at(1'000));    // 5: after the time that is expired
    n.set(at(10), [&] {  // 6
      n.set(at(20));     // 7
    });
  });
  n.set(at(10));
  n.set(at(20));
  n.timers.expire(at(500));
  CHECK(n.fired == order{0, 1, 3, 6, 2, 7, 4});
  CHECK(n.timers.next() == at(1'000));
}

TEST_CASE("a timer may be set again when it has fired", "[timers]") {
  numbered n;
  int rounds = 0;
  n.set(at(100), [&] {
    if (++rounds < 5) n.timers.set(n[0], at(100 * (rounds + 1)));
  });
  n.timers.expire(at(350));
  CHECK(rounds == 3);
  n.timers.expire(at(10'000));
  CHECK(rounds == 5);
  CHECK(n.timers.size() == 0);
}

TEST_CASE("without timers there is nothing to look for", "[timers]") {
  numbered n;
  CHECK_FALSE(n.timers.next());
  CHECK_FALSE(n.timers.look_by());
  n.set(at(5));
  n.timers.drop(n[0]);
  CHECK_FALSE(n.timers.look_by());
  CHECK_FALSE(n.timers.next());
}

TEST_CASE(
    "whatever was dropped, a look is due by the first deadline, and once it was taken no sooner",
    "[timers]") {
  numbered n;
  n.set(at(10));
  n.set(at(20));
  n.timers.drop(n[0]);
  CHECK(n.timers.look_by() <= at(20));
  n.timers.expire(at(10));
  CHECK(n.fired.empty());
  CHECK(n.timers.look_by() == at(20));
  n.set(at(15));
  CHECK(n.timers.look_by() == at(15));
  n.timers.expire(at(20));
  CHECK(n.fired == order{2, 1});
}

TEST_CASE("time that passes with nothing due counts for deadlines that have passed", "[timers]") {
  numbered n;
  n.set(at(1'000));
  n.timers.expire(at(500));
  n.set(at(400));
  n.set(at(300));
  n.timers.expire(at(2'000));
  CHECK(n.fired == order{1, 2, 0});
}

TEST_CASE("when to look next is exact while few timers are set", "[timers]") {
  constexpr std::int64_t distances[] = {
      1, 63, 64, 65, 4'095, 4'096, 1'000'003, 60'000'000'000, 1'000'000'000'000'000'000};
  for (const std::int64_t far : distances) {
    numbered n(at(12'345));
    for (int i = 15; i >= 0; --i) n.set(at(12'345 + far + i));
    CHECK(n.timers.next() == at(12'345 + far));
  }
}

TEST_CASE("however many are set, looking next is never late and comes to an end", "[timers]") {
  numbered n;
  for (int i = 0; i < 1'000; ++i) n.set(at(1'000'000'000 + i));
  int looks = 0;
  while (n.fired.empty()) {
    const std::optional<point> next = n.timers.next();
    REQUIRE(next);
    REQUIRE(*next <= at(1'000'000'000));
    REQUIRE(++looks < 100);
    n.timers.expire(*next);
  }
  CHECK(n.fired.size() == 1);
}

TEST_CASE("however many are set, looking next is not late for the one that was set last",
          "[timers]") {
  numbered n;
  for (int i = 1'000; i > 0; --i) n.set(at(1'000'000'000 + i));
  while (n.fired.empty()) {
    const std::optional<point> next = n.timers.next();
    REQUIRE(next);
    REQUIRE(*next <= at(1'000'000'001));
    n.timers.expire(*next);
  }
  CHECK(n.fired == order{999});
}

// --- limits ---

TEST_CASE("a limit counts from when the next look is taken, not from when it was set", "[timers]") {
  numbered n(at(1'000));
  n.set_limit(50ns);
  CHECK(n.timers.size() == 1);
  CHECK(n.timers.has_uncounted());
  n.timers.count_from(at(3'000));
  CHECK_FALSE(n.timers.has_uncounted());
  CHECK(n.timers.next() == at(3'050));
  n.timers.expire(at(3'049));
  CHECK(n.fired.empty());
  n.timers.expire(at(3'050));
  CHECK(n.fired == order{0});
  CHECK(n.timers.size() == 0);
}

TEST_CASE("limits fire in the order of deadlines, ties in the order of setting", "[timers]") {
  numbered n;
  n.set_limit(20ns);
  n.set_limit(10ns);
  n.set_limit(20ns);
  n.timers.count_from(at(100));
  n.set(at(120));
  n.timers.expire(at(200));
  CHECK(n.fired == order{1, 0, 2, 3});
}

TEST_CASE("a limit that is dropped before it counts does not fire", "[timers]") {
  numbered n;
  n.set_limit(10ns);
  n.set_limit(10ns);
  n.timers.drop(n[0]);
  CHECK(n.timers.size() == 1);
  n.timers.count_from(at(5));
  n.timers.expire(at(1'000));
  CHECK(n.fired == order{1});
}

TEST_CASE("a limit that has passed fires at once, and a long one ends at the end of time",
          "[timers]") {
  numbered n(at(1'000));
  n.set_limit(-1s);
  n.set_limit(coax::clock::duration::max() - 1ns);
  n.timers.count_from(at(2'000));
  n.timers.expire(at(2'000));
  CHECK(n.fired == order{0});
  CHECK(n.timers.next() == never);
}

// --- durations as parameters ---

TEST_CASE("a duration saturates where nanoseconds would overflow", "[timers]") {
  constexpr auto longest = coax::clock::duration::max();
  CHECK(coax::timeout(std::chrono::hours(24 * 365 * 300)).value() == longest);
  CHECK(coax::timeout(std::chrono::hours::max()).value() == longest);
  CHECK(coax::timeout(std::chrono::duration<double>(1e300)).value() == longest);
  CHECK(coax::timeout(std::chrono::duration<double>(std::numeric_limits<double>::infinity()))
            .value() == longest);
  CHECK(coax::timeout(coax::clock::duration::max()).value() == longest);
  CHECK(coax::timeout(std::chrono::duration<std::uint64_t, std::nano>(UINT64_MAX)).value() ==
        longest);
  CHECK(coax::timeout(1s).value() == 1s);
  CHECK(coax::timeout(std::chrono::duration<float>(0.5F)).value() == 500ms);
  constexpr coax::timeout nearly(std::chrono::duration<float>(9223371776.F));
  CHECK(nearly.value() > std::chrono::hours(24 * 365 * 290));
  // Units that are no number of nanoseconds: a timer of 3.58 MHz, samples, frames.
  using timer_ticks = std::chrono::duration<std::int64_t, std::ratio<1, 3'579'545>>;
  constexpr coax::timeout four_hours(timer_ticks(4 * 3'600 * std::int64_t{3'579'545}));
  CHECK(four_hours.value() == 4h);
  using samples = std::chrono::duration<std::uint64_t, std::ratio<1, 44'100>>;
  constexpr coax::timeout a_year(samples(std::uint64_t{44'100} * 3'600 * 24 * 365));
  CHECK(a_year.value() == std::chrono::hours(24 * 365));
  CHECK(coax::timeout(samples(1)).value() == 22'675ns);
  using frames = std::chrono::duration<std::int64_t, std::ratio<1'001, 30'000>>;
  constexpr coax::timeout long_film(frames(30'000 * std::int64_t{9'000'000}));
  CHECK(long_film.value() == 1'001s * 9'000'000);
  CHECK(coax::timeout(frames::max()).value() == longest);
  CHECK(coax::timeout(frames::min()).value() < 0s);
  CHECK(coax::timeout(0s).value() == 0s);
  CHECK(coax::timeout(-1s).value() < 0s);
  CHECK(coax::timeout(std::chrono::hours::min()).value() < 0s);
}

TEST_CASE("a timeout ends at most at the end of time", "[timers]") {
  CHECK(coax::timeout(std::chrono::hours::max()).after(at(0)) == never);
  CHECK(coax::timeout(std::chrono::hours::max()).after(never) == never);
  CHECK(coax::timeout(1ns).after(never) == never);
  CHECK(coax::timeout(1ns).after(never - 1ns) == never);
  CHECK(coax::timeout(2s).after(at(1)) == at(2'000'000'001));
  CHECK(coax::timeout(-1s).after(at(5)) < at(5));
}
