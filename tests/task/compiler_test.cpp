#include <coax/task/race.hpp>
#include <coax/task/result.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "death.hpp"
#include "probes.hpp"

#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

/// What g++ 12 gets wrong about coroutines, and what keeps it from doing harm.

// Parameters, the optimization level and sanitizers make no difference to the defect of the frame layout.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ == 12 && __GNUC_MINOR__ <= 2
constexpr bool lays_frames_out_wrongly = true;
#else
constexpr bool lays_frames_out_wrongly = false;
#endif

// Of g++ 12, 14, 15 and 16 it was seen.
#if defined(__GNUC__) && !defined(__clang__)
constexpr int made_though_not_chosen_max = 1;
#else
constexpr int made_though_not_chosen_max = 0;
#endif

using namespace std::chrono_literals;
using coax::task;

namespace {

task<bool> yes() { co_return true; }
task<bool> counts_down(int& n) { co_return --n > 0; }

// --- an awaited value is tested directly, and there is no local: each of these gives 1 where it runs ---

task<> tests_in_if(int& out) {
  if (co_await yes()) ++out;
}
task<int> tests_in_if_and_returns() {
  if (co_await yes()) co_return 1;
  co_return 0;
}
task<> tests_in_if_with_value_parameters(int& out, std::string text) {
  if (co_await yes()) out += static_cast<int>(text.size());
}
task<> tests_negated(int& out) {
  if (!co_await yes())
    --out;
  else
    ++out;
}
task<> tests_two(int& out) {
  if (co_await yes() && co_await yes()) ++out;
}
task<> tests_in_while(int& out, int n) {
  while (co_await counts_down(n)) ++out;
}
task<> tests_in_do(int& out, int n) {
  do ++out;
  while (co_await counts_down(n));
}
task<> tests_in_for(int& out, int n) {
  for (; co_await counts_down(n);) ++out;
}
task<> tests_in_switch(int& out) {
  switch (co_await yes()) {
    case true:
      ++out;
      break;
    default:
      break;
  }
}
task<> tests_a_result(int& out) {
  if (co_await coax::within(1s, yes())) ++out;
}
template <class Number>
task<> tests_in_template(Number& out) {
  if (co_await yes()) ++out;
}
struct object {
  task<> tests_in_member(int& out) {
    if (co_await yes()) out += step;
  }
  int step = 1;
};

/// Runs the task that `make` gives: a compiler with the defect ends it with the message, any other gives 1.
template <class Make>
void runs_or_is_stopped(Make make) {
  const ending seen = ending_of([&] {
    int out = 0;
    manual_loop().run(make(out));
    if (out != 1) coax::detail::fatal("the coroutine ran, and wrongly");
  });
  INFO(seen.words);
  if (lays_frames_out_wrongly)
    CHECK(seen.aborted_saying("this compiler has laid out a coroutine frame wrongly"));
  else
    CHECK((seen.was_orderly() || seen.aborted_saying("this compiler has laid out")));
}

}  // namespace

TEST_CASE("a coroutine laid out wrongly is stopped before it runs: if", "[compiler]") {
  runs_or_is_stopped([](int& out) { return tests_in_if(out); });
  runs_or_is_stopped([](int& out) { return tests_in_if_with_value_parameters(out, "1"); });
  runs_or_is_stopped([](int& out) { return tests_negated(out); });
  runs_or_is_stopped([](int& out) { return tests_two(out); });
  runs_or_is_stopped([](int& out) { return tests_a_result(out); });
  runs_or_is_stopped([](int& out) { return tests_in_template(out); });
  runs_or_is_stopped([](int& out) -> task<> { out = co_await tests_in_if_and_returns(); });
  object o;
  runs_or_is_stopped([&](int& out) { return o.tests_in_member(out); });
}

TEST_CASE("a coroutine laid out wrongly is stopped before it runs: loops", "[compiler]") {
  runs_or_is_stopped([](int& out) { return tests_in_while(out, 2); });
  runs_or_is_stopped([](int& out) { return tests_in_do(out, 1); });
  runs_or_is_stopped([](int& out) { return tests_in_for(out, 2); });
}

TEST_CASE("a coroutine laid out wrongly is stopped before it runs: switch", "[compiler]") {
  runs_or_is_stopped([](int& out) { return tests_in_switch(out); });
}

// --- what to write instead ---

namespace {

task<> names_in_if(int& out) {
  if (const bool good = co_await yes()) out += good;
}
task<> names_before_if(int& out) {
  if (const auto good = co_await coax::within(1s, yes()); good && *good) ++out;
}
task<> names_in_while(int& out, int n) {
  while (const auto more = co_await counts_down(n)) out += more;
}
task<> has_a_local(int& out) {
  const int step = 1;
  if (co_await yes()) out += step;
}
task<> has_a_local_in_a_branch(int& out) {
  if (co_await yes()) {
    const int step = 1;
    out += step;
  }
}
task<> tests_in_a_ternary(int& out) { out = co_await yes() ? 1 : 2; }
task<> tests_nothing(int& out) {
  co_await yes();
  ++out;
}
task<> does_nothing(int& out) {
  ++out;
  co_return;
}

}  // namespace

TEST_CASE("coroutines that name what they await run on every compiler", "[compiler]") {
  test_loop loop;
  for (const auto& good : {names_in_if, names_before_if, has_a_local, has_a_local_in_a_branch,
                           tests_in_a_ternary, tests_nothing, does_nothing}) {
    int out = 0;
    loop.run(good(out));
    CHECK(out == 1);
  }
  int out = 0;
  loop.run(names_in_while(out, 2));
  CHECK(out == 1);
}

TEST_CASE("a coroutine lambda that tests what it awaits runs on every compiler", "[compiler]") {
  test_loop loop;
  int out = 0;
  const auto lambda = [&out]() -> task<> {
    if (co_await yes()) ++out;
  };
  loop.run(lambda());
  CHECK(out == 1);
}

// --- g++ 12 copies an awaiter that it is given by reference ---

namespace {

/// Counts its copies, each of which would wait in place of the one that the test knows.
class copies_counted {
 public:
  explicit copies_counted(int& copies) : copies_(copies) {}
  copies_counted(const copies_counted& other) : copies_(other.copies_) { ++copies_; }
  copies_counted& operator=(const copies_counted&) = delete;
  ~copies_counted() = default;

  bool await_ready() const noexcept { return true; }
  void await_suspend(std::coroutine_handle<>) const noexcept {}
  const copies_counted* await_resume() const noexcept { return this; }

 private:
  int& copies_;
};

class cannot_be_moved : public copies_counted {
 public:
  explicit cannot_be_moved(int& copies) : copies_counted(copies) {}
  cannot_be_moved(cannot_be_moved&&) = delete;
};

}  // namespace

TEST_CASE("what is awaited is not copied, and need not be movable", "[compiler]") {
  test_loop loop;
  int copies = 0;
  loop.run([&]() -> task<> {
    copies_counted named(copies);
    const copies_counted* const awaited = co_await named;
    CHECK(awaited == &named);
    const copies_counted* const moved = co_await std::move(named);
    CHECK(moved == &named);
    co_await copies_counted(copies);
    cannot_be_moved stays(copies);
    const copies_counted* const unmovable = co_await stays;
    CHECK(unmovable == &stays);
    co_await cannot_be_moved(copies);
    auto sleep = coax::sleep_for(1s);
    co_await sleep;
  });
  CHECK(copies == 0);
}

// --- values written inside an await expression: g++ 12 destroys some of them twice ---

// A closure would be, unless it is trivially destructible; so would an aggregate. These are neither, or trivial.
static_assert(std::is_trivially_destructible_v<coax::timeout>);
static_assert(std::is_trivially_destructible_v<coax::clock::time_point>);
static_assert(!std::is_aggregate_v<task<>> && !std::is_aggregate_v<coax::result<counted>>);
static_assert(std::is_trivially_destructible_v<decltype(coax::yield())>);
static_assert(!std::is_aggregate_v<decltype(coax::sleep_for(1s))>);
static_assert(!std::is_aggregate_v<decltype(coax::within(1s, coax::yield()))>);
static_assert(!std::is_aggregate_v<decltype(coax::within(1s, yes()))>);
static_assert(!std::is_aggregate_v<decltype(coax::race(yes(), coax::yield()))>);

namespace {

task<int> take(counted by_value) { co_return by_value.value; }
task<int> borrow(const counted& by_reference, bool late = false) {
  if (late) co_await coax::sleep_for(1s);
  co_return by_reference.value;
}
task<int> take_task(task<counted> inner) {
  const counted got = co_await std::move(inner);
  co_return got.value;
}
task<int> take_result(coax::result<counted> r) { co_return r->value; }
task<int> take_optional(std::optional<counted> o) { co_return o->value; }
task<counted> give(int value) { co_return counted(value); }
task<coax::result<counted>> give_result(int value) { co_return counted(value); }

}  // namespace

TEST_CASE("values, tasks and results written inside an await are destroyed once", "[compiler]") {
  const counted::census counts;
  test_loop loop;
  loop.run([]() -> task<> {
    int sum = co_await take(counted(1));
    sum += co_await borrow(counted(2));
    sum += co_await borrow(counted(3), true);
    sum += co_await take_task(give(4));
    sum += co_await take_result(counted(5));
    sum += co_await take_optional(counted(6));
    CHECK(sum == 21);
    const int nested = co_await take(counted(3)) + co_await borrow(co_await give(4), true);
    CHECK(nested == 7);
  });
  CHECK(counts.alive() == 0);
}

TEST_CASE("values written inside an await of within and race are destroyed once", "[compiler]") {
  const counted::census counts;
  test_loop loop;
  loop.run([]() -> task<> {
    const auto taken = co_await coax::within(1s, take(counted(1)));
    CHECK(*taken == 1);
    const auto given = co_await coax::within(1s, give(2));
    CHECK(given->value == 2);
    const auto flat = co_await coax::within(1s, give_result(3));
    CHECK(flat->value == 3);
    const auto late = co_await coax::within(1ms, borrow(counted(4), true));
    CHECK(late.error() == std::errc::timed_out);
    const auto raced =
        co_await coax::race(give(5), borrow(counted(6), true), coax::within(2s, take(counted(7))));
    CHECK(std::get<0>(raced)->value == 5);
  });
  CHECK(counts.alive() == 0);
}

TEST_CASE(
    "the body of a scope that captures by reference is destroyed once, a named one as often as copied",
    "[compiler]") {
  const counted::census counts;
  test_loop loop;
  int ran = 0;
  loop.run([&]() -> task<> {
    const counted outside(1);
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(
          [](const counted& c, int& n) -> task<> {
            n += c.value;
            co_return;
          },
          std::ref(outside), std::ref(ran));
      co_return;
    });
    const auto named = [held = counted(2), &ran](coax::scope&) -> task<> {
      ran += held.value;
      co_return;
    };
    co_await coax::with_scope(named);
    CHECK(counts.alive() == 2);
  });
  CHECK(ran == 3);
}

// --- ?:, && and || in what is awaited: g++ 12 destroys twice what ?: gives, and every g++ makes the temporaries of
// operands that were not chosen ---

namespace {

/// Counts without harm what such a compiler does.
struct tallied {
  static inline int made = 0;
  static inline int ended = 0;
  tallied() noexcept { ++made; }
  tallied(const tallied&) noexcept { ++made; }
  ~tallied() { ++ended; }
  bool ok() const noexcept { return true; }
};
task<bool> take_tallied(tallied t) { co_return t.ok(); }
task<bool> take_bool(bool value) { co_return value; }

}  // namespace

TEST_CASE("what a conditional gives is destroyed once where it is named before it is awaited",
          "[compiler]") {
  const counted::census counts;
  test_loop loop;
  for (const bool first : {true, false})
    loop.run([&]() -> task<> {
      auto value = first ? counted(1) : counted(2);
      auto chosen = first ? take(std::move(value)) : borrow(value, true);
      const int got = co_await std::move(chosen);
      CHECK(got == (first ? 1 : 2));
      auto asked = first ? give(3) : give(4);
      const auto given = co_await coax::within(1s, std::move(asked));
      CHECK(given->value == (first ? 3 : 4));
    });
  CHECK(counts.alive() == 0);
}

TEST_CASE(
    "operands inside an await are destroyed once, but by g++ 12, and made only if chosen, but by g++",
    "[compiler]") {
  test_loop loop;
  tallied::made = tallied::ended = 0;
  loop.run([first = true]() -> task<> {
    const bool got = co_await take_tallied(first ? tallied() : tallied());
    CHECK(got);
  });
  CHECK(tallied::ended == tallied::made + (lays_frames_out_wrongly ? 1 : 0));
  tallied::made = tallied::ended = 0;
  loop.run([no = false]() -> task<> {
    const bool got = co_await take_bool(no && tallied().ok());
    CHECK_FALSE(got);
  });
  CHECK(tallied::made <= made_though_not_chosen_max);
  CHECK(tallied::ended == tallied::made);
}

TEST_CASE("awaited values kept in locals leak nothing, on return and when unwound", "[compiler]") {
  struct both {
    both(counted a, counted b) : first(std::move(a)), second(std::move(b)) {}
    counted first;
    counted second;
  };
  for (const bool cancel : {false, true}) {
    const counted::census counts;
    test_loop loop;
    watched<> w(*loop, []() -> task<> {
      const both pair =
          co_await []() -> task<both> { co_return both(counted(1), co_await give(2)); }();
      const auto raced = co_await coax::race(give(3), give(4));
      const auto result = co_await give_result(5);
      const std::string text =
          co_await []() -> task<std::string> { co_return std::string(100, 'x'); }();
      co_await coax::sleep_for(1s);
      CHECK(pair.first.value + pair.second.value + std::get<0>(raced)->value + result->value == 11);
      CHECK(text.size() == 100);
    }());
    loop->settle();
    CHECK(counts.alive() == 4);
    if (cancel) w.cancel_from_outside();
    w.run_to_end();
    CHECK(w.unwound() == cancel);
    CHECK(counts.alive() == 0);
  }
}
