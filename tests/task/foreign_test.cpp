#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/task_local.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include "death.hpp"
#include "foreign.hpp"
#include "manual_loop.hpp"
#include "probes.hpp"

#include <chrono>
#include <coroutine>
#include <cstdlib>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

/// Waits of coax in coroutines of other libraries, which are in no scope, so that nobody cancels them.

using namespace std::chrono_literals;

namespace {

foreign rests(coax::timeout how_long) { co_await coax::sleep_for(how_long); }

/// Starts what `make` gives and runs `loop` while time has to pass for it.
template <class Make>
bool runs_to_its_end(manual_loop& loop, const Make& make) {
  bool done = false;
  loop.inside([&] {
    const foreign f = make();
    while (!f.is_done() && !loop.is_idle()) {
      loop.settle();
      if (!loop.is_idle()) loop.pass_time();
    }
    loop.settle();
    done = f.is_done();
  });
  return done;
}

}  // namespace

TEST_CASE("a foreign coroutine sleeps and yields", "[foreign]") {
  test_loop loop;
  const auto body = []() -> foreign {
    co_await coax::sleep_for(1s);
    co_await coax::yield();
    co_await coax::sleep_until(coax::now() + 2s);
  };
  CHECK(runs_to_its_end(*loop, body));
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("destroying a foreign coroutine that has yielded aborts with a message", "[foreign]") {
  const ending child = ending_of([] {
    manual_loop loop;
    loop.inside([] { const foreign gone = []() -> foreign { co_await coax::yield(); }(); });
  });
  CHECK(child.aborted_saying("was destroyed while it waited"));
}

TEST_CASE("a foreign coroutine races, and awaits tasks within a timeout", "[foreign]") {
  test_loop loop;
  const auto body = []() -> foreign {
    auto race = coax::race(after(2s, 1), after(1s, 2), coax::sleep_for(3s));
    const auto raced = co_await std::move(race);
    CHECK(std::get<1>(raced) == 2);
    auto limited = coax::within(1s, after(2s, 1));
    const auto late = co_await std::move(limited);
    CHECK(late.error() == std::errc::timed_out);
    const auto single = co_await coax::within(1s, coax::sleep_for(2s));
    CHECK(single.error() == std::errc::timed_out);
  };
  CHECK(runs_to_its_end(*loop, body));
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("a foreign coroutine waits for all of several, under shield and in nested timeouts",
          "[foreign]") {
  test_loop loop;
  const auto body = []() -> foreign {
    auto all = coax::when_all(after(2s, 1), after(1s, 2));
    const auto both = co_await std::move(all);
    CHECK(both == std::tuple(1, 2));
    auto shielded = coax::shield(coax::sleep_for(1s));
    co_await std::move(shielded);
    auto nested = coax::within(5s, coax::within(1s, after(10s, 1)));
    const auto late = co_await std::move(nested);
    CHECK(late.error() == std::errc::timed_out);
  };
  CHECK(runs_to_its_end(*loop, body));
  CHECK(loop.elapsed() == 4s);
}

TEST_CASE("what a task throws comes out in the foreign coroutine that raced it", "[foreign]") {
  test_loop loop;
  std::string caught;
  const auto body = [&]() -> foreign {
    try {
      auto race = coax::race(throws_after(1s, "out"), coax::sleep_for(2s));
      co_await std::move(race);
    } catch (const std::runtime_error& e) {
      caught = e.what();
    }
  };
  CHECK(runs_to_its_end(*loop, body));
  CHECK(caught == "out");
}

TEST_CASE("destroying a foreign coroutine while tasks that it awaits run aborts with a message",
          "[foreign]") {
  const auto destroys = [] {
    manual_loop loop;
    loop.inside([] {
      const auto body = []() -> foreign { co_await coax::race(after(1s, 1), after(2s, 2)); };
      {
        const foreign f = body();
      }
    });
  };
  CHECK(ending_of(destroys).aborted_saying("was destroyed while"));
}

TEST_CASE("destroying a foreign coroutine while it waits aborts with a message", "[foreign]") {
  const auto destroys_waiting = [] {
    manual_loop loop;
    loop.inside([] { const foreign f = rests(1s); });
  };
  CHECK(ending_of(destroys_waiting).aborted_saying("was destroyed while"));
}

TEST_CASE("destroying a foreign coroutine that is about to be resumed aborts with a message",
          "[foreign]") {
  const auto destroys_ready = [] {
    manual_loop loop;
    loop.inside([&] {
      const foreign f = rests(1s);
      loop.pass_time();
    });
  };
  CHECK(ending_of(destroys_ready).aborted_saying("was destroyed while"));
}

// --- and the other way round: a task awaits what another library offers ---

namespace {

/// Gives the handle away to whoever will resume it.
class handed_over {
 public:
  explicit handed_over(std::coroutine_handle<>& to) : to_(to) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept { to_ = h; }
  int await_resume() const noexcept { return 5; }

 private:
  std::coroutine_handle<>& to_;
};

struct by_member {
  explicit by_member(std::coroutine_handle<>& t) : to(t) {}
  handed_over operator co_await() const { return handed_over(to); }
  std::coroutine_handle<>& to;
};
struct by_function {
  explicit by_function(std::coroutine_handle<>& t) : to(t) {}
  std::coroutine_handle<>& to;
};
handed_over operator co_await(const by_function& f) { return handed_over(f.to); }

template <class Awaitable>
coax::task<int> awaits(std::coroutine_handle<>& h) {
  const int direct = co_await Awaitable(h);
  const auto limited = co_await coax::within(1s, Awaitable(h));
  co_return direct + *limited;
}

}  // namespace

TEST_CASE("a task awaits what another library offers", "[foreign]") {
  for (const auto make : {awaits<handed_over>, awaits<by_member>, awaits<by_function>}) {
    test_loop loop;
    std::coroutine_handle<> h;
    watched<int> w(*loop, make(h));
    for (int awaited = 0; awaited < 2; ++awaited) {
      loop->settle();
      REQUIRE(h);
      loop->inside([&] { std::exchange(h, nullptr).resume(); });
    }
    loop->settle();
    REQUIRE(w.finished());
    CHECK(w.take() == 10);
  }
}

TEST_CASE("several tasks that another library resumes at once all end", "[foreign]") {
  test_loop loop;
  std::coroutine_handle<> one;
  std::coroutine_handle<> other;
  const auto waits = [](std::coroutine_handle<>& h) -> coax::task<> {
    const int five = co_await handed_over(h);
    CHECK(five == 5);
  };
  const auto resumes_both = [&]() -> coax::task<> {
    one.resume();
    other.resume();
    co_return;
  };
  watched<> first(*loop, waits(one));
  watched<> second(*loop, waits(other));
  loop->settle();
  watched<> third(*loop, resumes_both());
  loop->settle();
  CHECK(first.finished());
  CHECK(second.finished());
  CHECK(third.finished());
}

TEST_CASE("a task cancelled in a wait that is not of coax unwinds at the next one that is",
          "[foreign]") {
  test_loop loop;
  std::coroutine_handle<> h;
  bool went_on = false;
  const auto body = [&]() -> coax::task<> {
    co_await handed_over(h);
    went_on = true;
    co_await coax::yield();
    FAIL_CHECK("nothing waits once it was cancelled");
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  loop->settle();
  CHECK_FALSE(w.has_ended());
  loop->inside([&] { h.resume(); });
  loop->settle();
  CHECK(went_on);
  CHECK(w.unwound());
}

TEST_CASE("what another library completes after its timeout is given, not lost", "[foreign]") {
  test_loop loop;
  std::coroutine_handle<> h;
  int got = 0;
  const auto body = [&]() -> coax::task<> {
    auto limited = co_await coax::within(1s, handed_over(h));
    got = limited ? *limited : 0;
    auto raced = co_await coax::race(handed_over(h), coax::sleep_for(1s));
    got += std::get<0>(raced).value_or(0);
  };
  watched<> w(*loop, body());
  for (int wait = 0; wait < 2; ++wait) {
    loop->settle();
    loop->advance(2s);
    loop->settle();
    CHECK_FALSE(w.has_ended());  // there is no way to stop it
    loop->inside([&] { std::exchange(h, nullptr).resume(); });
  }
  loop->settle();
  CHECK(w.finished());
  CHECK(got == 10);
}

TEST_CASE("a task that another library has resumed is still itself", "[foreign]") {
  test_loop loop;
  std::coroutine_handle<> h;
  const coax::task_local<int> number;
  int of_task = 0;
  int of_child = 0;
  const auto body = [&]() -> coax::task<> {
    number.set(7);
    co_await handed_over(h);
    const int* const mine = number.get();
    of_task = mine == nullptr ? 0 : *mine;
    number.set(8);
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        const int* const inherited = number.get();
        of_child = inherited == nullptr ? 0 : *inherited;
        co_return;
      });
      co_return;
    });
  };
  watched<> w(*loop, body());
  loop->settle();
  loop->inside([&] { h.resume(); });
  loop->settle();
  CHECK(w.finished());
  CHECK(of_task == 7);
  CHECK(of_child == 8);
}

namespace {

/// Ends at once, or gives nothing to resume: counts how often it is asked.
class counted_wait {
 public:
  explicit counted_wait(int& asked) : asked_(asked) {}
  counted_wait(const counted_wait&) = delete;  // awaited where it is
  counted_wait& operator=(const counted_wait&) = delete;
  bool await_ready() const noexcept { return ++asked_ % 2 == 0; }
  bool await_suspend(std::coroutine_handle<>) const noexcept { return false; }
  int& await_resume() const noexcept { return asked_; }

 private:
  int& asked_;
};

struct gives_reference {
  counted_wait& wait;
  counted_wait& operator co_await() const noexcept { return wait; }
};

}  // namespace

TEST_CASE("foreign awaiters stay where they are, and may give references", "[foreign]") {
  test_loop loop;
  int asked = 0;
  const auto body = [&]() -> coax::task<> {
    counted_wait wait(asked);
    int& first = co_await wait;
    int& second = co_await gives_reference{wait};
    int& third = co_await counted_wait(asked);
    CHECK(&first == &asked);
    CHECK(&second == &asked);
    CHECK(&third == &asked);
  };
  loop.run(body);
  CHECK(asked == 3);
}

#ifndef NDEBUG
TEST_CASE("a task that is resumed on another thread aborts with a message", "[foreign]") {
  const auto resumes = [] {
    manual_loop loop;
    std::coroutine_handle<> h;
    const auto body = [&]() -> coax::task<> { co_await handed_over(h); };
    watched<> w(loop, body());
    loop.settle();
    std::thread([&] { h.resume(); }).join();
  };
  CHECK(ending_of(resumes).aborted_saying("from a thread that is not its reactor's"));
}
#endif

namespace {

/// A coroutine waits here until another one resumes it, on that one's stack.
struct gate {
  std::coroutine_handle<> waits;

  void open() { std::exchange(waits, nullptr).resume(); }

  struct wait {
    gate& at;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) const noexcept { at.waits = coroutine; }
    void await_resume() const noexcept {}
  };
  /// Waits at `own`, and opens `other` before it lets go of the stack.
  struct swap {
    gate& other;
    gate& own;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) const {
      own.waits = coroutine;
      other.open();
    }
    void await_resume() const noexcept {}
  };
};

}  // namespace

TEST_CASE("a task that ends below a task that is started on its own stack is not resumed twice",
          "[foreign]") {
  manual_loop loop;
  gate receives;
  gate sends;
  std::string log;
  const auto opens = [](gate& g) -> coax::task<> {
    g.open();
    co_return;
  };
  const auto receiver = [&]() -> coax::task<> {
    co_await gate::wait{receives};
    co_await opens(sends);
    log += "received ";
  };
  const auto swaps = [&]() -> coax::task<int> {
    co_await gate::swap{receives, sends};
    co_return 7;
  };
  const auto sender = [&]() -> coax::task<> {
    co_await coax::sleep_for(std::chrono::milliseconds(1));
    const int got = co_await swaps();
    log += "got " + std::to_string(got);
    co_await coax::sleep_for(std::chrono::milliseconds(20));
    log += " slept";
    co_await coax::sleep_for(std::chrono::milliseconds(20));
    log += " sent";
  };
  const auto body = [&](coax::scope& s) -> coax::task<> {
    s.spawn(std::ref(receiver));
    s.spawn(std::ref(sender));
    co_return;
  };
  loop.run(coax::with_scope(body));
  CHECK(log == "received got 7 slept sent");
}
