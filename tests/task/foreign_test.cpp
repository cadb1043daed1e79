#include <coax/task/race.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "death.hpp"
#include "probes.hpp"

#include <coroutine>
#include <cstdlib>
#include <system_error>
#include <utility>

/// Waits of coax in coroutines of other libraries, which are in no scope, so that nobody cancels them.

using namespace std::chrono_literals;

namespace {

/// The least that another library could have: it starts at once, and its owner destroys it.
class foreign {
 public:
  struct promise_type {
    foreign get_return_object() {
      return foreign(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::abort(); }
  };

  foreign(foreign&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
  foreign& operator=(foreign&&) = delete;
  ~foreign() {
    if (coroutine_) coroutine_.destroy();
  }
  bool is_done() const { return coroutine_.done(); }

 private:
  explicit foreign(std::coroutine_handle<promise_type> c) : coroutine_(c) {}
  std::coroutine_handle<promise_type> coroutine_;
};

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
