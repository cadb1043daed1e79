#include <coax/task/race.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "death.hpp"
#include "probes.hpp"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

using namespace std::chrono_literals;
using coax::task;

static_assert(!std::is_copy_constructible_v<task<>> && !std::is_copy_assignable_v<task<int>>);
static_assert(std::is_nothrow_move_constructible_v<task<>> &&
              std::is_nothrow_move_assignable_v<task<int>>);
static_assert(!std::is_default_constructible_v<task<>>);
static_assert(std::is_same_v<task<>, task<void>>);
static_assert(std::is_same_v<task<std::string>::value_type, std::string>);

namespace {

task<int> give(int value) { co_return value; }

task<counted> give_counted(int value) { co_return counted(value); }

task<> mark(bool& ran, counted) {
  ran = true;
  co_return;
}

task<int> fail(bool late) {
  if (late) co_await coax::sleep_for(1s);
  throw std::runtime_error("as told");
}

task<int> add_one(task<int> to) {
  const int below = co_await std::move(to);
  co_return below + 1;
}

// What is aligned like this is as far as frames go, and moves what is in them.
struct alignas(16) aligned {
  explicit aligned(int n) : number(n) {}
  bool is_in_place() const {
    return reinterpret_cast<std::uintptr_t>(this) % alignof(aligned) == 0;
  }
  int number;
};

task<aligned> give_aligned(int number, int depth) {
  if (depth > 0) {
    const aligned below = co_await give_aligned(number, depth - 1);
    CHECK(below.is_in_place());
    co_await coax::yield();
    co_return aligned(below.number + 1);
  }
  co_await coax::sleep_for(1s);
  co_return aligned(number);
}

}  // namespace

TEST_CASE("a task may give what is aligned to 16 bytes, and is resumed and unwound as others",
          "[task]") {
  const int depth = GENERATE(0, 1, 3);
  CAPTURE(depth);
  test_loop loop;
  loop.run([&]() -> task<> {
    const aligned got = co_await give_aligned(5, depth);
    CHECK(got.is_in_place());
    CHECK(got.number == 5 + depth);
    const auto cut_off = co_await coax::within(500ms, give_aligned(5, depth));
    CHECK(cut_off.error() == std::errc::timed_out);
  });
}

TEST_CASE("a task runs nothing until it is awaited", "[task]") {
  test_loop loop;
  loop.run([]() -> task<> {
    bool ran = false;
    task<> lazy = mark(ran, counted());
    co_await coax::sleep_for(1s);
    CHECK_FALSE(ran);
    co_await std::move(lazy);
    CHECK(ran);
  });
}

TEST_CASE("a task that is never awaited is destroyed with its parameters", "[task]") {
  const counted::census counts;
  const frame_census frames;
  bool ran = false;
  {
    const task<> never = mark(ran, counted());
  }
  CHECK_FALSE(ran);
  CHECK(counts.alive() == 0);
}

TEST_CASE("a task that is assigned over is destroyed", "[task]") {
  const counted::census counts;
  const frame_census frames;
  bool first = false;
  bool second = false;
  task<> t = mark(first, counted());
  t = mark(second, counted());
  CHECK(counts.alive() == 1);
  task<>& itself = t;
  t = std::move(itself);
  CHECK(counts.alive() == 1);
}

TEST_CASE("a task gives its value, at once or later", "[task]") {
  test_loop loop;
  CHECK(loop.run(give(1)) == 1);
  CHECK(loop.run(after(1s, 2)) == 2);
  CHECK(loop.run(add_one(give(3))) == 4);
  CHECK(loop.run(add_one(add_one(after(1s, 5)))) == 7);
}

TEST_CASE("a result that can only be moved is moved out", "[task]") {
  test_loop loop;
  const auto box = loop.run([]() -> task<std::unique_ptr<int>> {
    auto inner =
        co_await []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(3); }();
    ++*inner;
    co_return inner;
  });
  CHECK(*box == 4);
}

TEST_CASE("a result is never copied, and destroyed once", "[task]") {
  const counted::census counts;
  test_loop loop;
  loop.run([&]() -> task<> {
    const counted kept = co_await give_counted(6);
    CHECK(kept.value == 6);
    CHECK(counts.alive() == 1);
    co_await give_counted(7);
    CHECK(counts.alive() == 1);
  });
  CHECK(counted::copied == 0);
}

TEST_CASE("the locals of a task are gone when its awaiter goes on", "[task]") {
  const counted::census counts;
  test_loop loop;
  for (const bool late : {false, true}) {
    loop.run([&]() -> task<> {
      co_await [](bool waits) -> task<> {
        const counted local;
        if (waits) co_await coax::yield();
      }(late);
      CHECK(counts.alive() == 0);
    });
  }
}

TEST_CASE("an exception is rethrown where the task is awaited", "[task]") {
  for (const bool late : {false, true}) {
    test_loop loop;
    CHECK_THROWS_AS(loop.run(fail(late)), std::runtime_error);
    CHECK_THROWS_AS(loop.run(add_one(add_one(fail(late)))), std::runtime_error);
    const bool caught = loop.run([&]() -> task<bool> {
      try {
        co_await fail(late);
      } catch (const std::runtime_error& e) {
        co_return std::string_view(e.what()) == "as told";
      }
      co_return false;
    });
    CHECK(caught);
  }
}

TEST_CASE("a task that caught an exception waits and goes on as usual", "[task]") {
  test_loop loop;
  const int total = loop.run([]() -> task<int> {
    int sum = 0;
    for (const bool late : {true, false, true}) {
      try {
        sum += co_await fail(late);
      } catch (const std::runtime_error&) {
        sum += 10;
      }
      sum += co_await after(1s, 1);
    }
    co_return sum;
  });
  CHECK(total == 33);
}

TEST_CASE("what the destructor of a local throws takes the place of the result", "[task]") {
  struct thrower {
    thrower() {}
    ~thrower() noexcept(false) { throw std::logic_error("from a destructor"); }
  };
  const counted::census counts;
  test_loop loop;
  CHECK_THROWS_AS(loop.run([]() -> task<counted> {
    const thrower last_word;
    co_return counted(1);
  }),
                  std::logic_error);
}

TEST_CASE("an await inside the arguments of an await is done first", "[task]") {
  test_loop loop;
  CHECK(loop.run([]() -> task<int> {
    const int sum =
        co_await after(1s, co_await after(1s, 1) + co_await give(2)) + co_await after(1s, 4);
    co_return sum;
  }) == 7);
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("a task knows the file and line of its await", "[task]") {
  test_loop loop;
  unsigned line = 0;
  const auto waits = [](unsigned& at) -> task<> {
    co_await give(1);
    at = __LINE__ + 1;
    co_await coax::sleep_for(1s);
    at = __LINE__ + 1;
    co_await [](int) -> task<> { co_await coax::yield(); }(co_await after(1s, 5));
  };
  watched<> w(*loop, waits(line));
  loop->settle();
  CHECK(line != 0);
  CHECK(w.where().line() == line);
  CHECK(std::string_view(w.where().file_name()).ends_with("task_test.cpp"));
  CHECK(std::string_view(w.where().function_name()) != "");
  const unsigned before = line;
  loop->pass_time();
  loop->settle();
  CHECK(line > before);
  CHECK(w.where().line() == line);
  w.run_to_end();
}

// --- misuse ends with a message ---

TEST_CASE("a task awaited twice aborts with a message", "[task]") {
  const auto twice = [](bool late) {
    manual_loop().run([](bool waits) -> task<> {
      task<int> once = waits ? after(1s, 1) : give(1);
      co_await std::move(once);
      co_await std::move(once);
    }(late));
  };
  CHECK(ending_of([&] { twice(false); }).aborted_saying("a task was awaited twice"));
  CHECK(ending_of([&] { twice(true); }).aborted_saying("a task was awaited twice"));
}

TEST_CASE("awaiting a task that has been moved from aborts with a message", "[task]") {
  const auto moved_from = [] {
    manual_loop().run([]() -> task<> {
      task<int> here = give(1);
      const task<int> there = std::move(here);
      co_await std::move(here);
    }());
  };
  CHECK(ending_of(moved_from).aborted_saying("after it had been moved from"));
}

TEST_CASE("a branch that has been moved from aborts with a message", "[task]") {
  const auto in_a_race = [] {
    manual_loop().run([]() -> task<> {
      task<int> here = give(1);
      const task<int> there = std::move(here);
      co_await coax::race(std::move(here), give(2));
    }());
  };
  CHECK(ending_of(in_a_race).aborted_saying("after it had been moved from"));
}

TEST_CASE("copying a wait that has begun aborts with a message", "[task]") {
  const auto copied = [] {
    manual_loop loop;
    script s;
    watched<> w(loop, [](script& waits) -> task<> { co_await scripted_wait(waits); }(s));
    loop.settle();
    const scripted_wait second(*s.waiting);
  };
  CHECK(ending_of(copied).aborted_saying("was copied or moved"));
}

TEST_CASE("awaiting a wait a second time aborts with a message", "[task]") {
  const auto again = [] {
    manual_loop().run([]() -> task<> {
      auto sleep = coax::sleep_for(1s);
      co_await sleep;
      co_await sleep;
    }());
  };
  CHECK(ending_of(again).aborted_saying("something was awaited twice"));
}

TEST_CASE("using the loop of a thread that runs none aborts with a message", "[task]") {
  CHECK(ending_of([] { coax::loop::current(); }).aborted_saying("no reactor runs on this thread"));
}

// --- any number in constant stack ---

namespace {

constexpr int deep = 100'000;

task<int> descend(int below, bool late, bool throws) {
  if (below == 0) {
    if (late) co_await coax::sleep_for(1s);
    if (throws) throw std::runtime_error("from the bottom");
    co_return 0;
  }
  const int depth = co_await descend(below - 1, late, throws);
  co_return depth + 1;
}

}  // namespace

TEST_CASE("a million synchronous completions take constant stack", "[task]") {
  int sum = 0;
  on_small_stack([&] {
    manual_loop loop;
    sum = loop.run([]() -> task<int> {
      int total = 0;
      for (int i = 0; i < 1'000'000; ++i) total += co_await give(1);
      co_return total;
    }());
  });
  CHECK(sum == 1'000'000);
}

TEST_CASE("a million waits that complete at once take constant stack", "[task]") {
  script s;
  s.completes_at_once = true;
  on_small_stack([&] {
    manual_loop loop;
    loop.run([](script& at_once) -> task<> {
      for (int i = 0; i < 1'000'000; ++i) co_await scripted_wait(at_once);
    }(s));
  });
  CHECK(s.begun == 1'000'000);
}

TEST_CASE("a chain of 100,000 tasks completes in constant stack", "[task]") {
  for (const bool late : {false, true}) {
    int depth = 0;
    on_small_stack([&] { depth = manual_loop().run(descend(deep, late, false)); });
    CHECK(depth == deep);
  }
}

TEST_CASE("an exception rises through a chain of 100,000 tasks in constant stack", "[task]") {
  for (const bool late : {false, true}) {
    bool thrown = false;
    on_small_stack([&] {
      try {
        manual_loop().run(descend(deep, late, true));
      } catch (const std::runtime_error&) {
        thrown = true;
      }
    });
    CHECK(thrown);
  }
}

TEST_CASE("one cancel unwinds a chain of 100,000 tasks in constant stack", "[task]") {
  bool unwound = false;
  std::ptrdiff_t left = -1;
  on_small_stack([&] {
    manual_loop loop;
    watched<int> w(loop, descend(deep, true, false));
    loop.settle();
    w.cancel_from_outside();
    loop.settle();
    unwound = w.unwound();
    left = coax::detail::frames::live();
  });
  CHECK(unwound);
  CHECK(left == 0);
}
