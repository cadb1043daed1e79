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

/// Waits of coax in coroutines of other libraries: they work, and are in no scope, so that nobody cancels them.

using namespace std::chrono_literals;
using coax::task;

namespace {

/// The least that another library could have: it starts at once, and its owner destroys it.
class foreign {
 public:
  struct promise_type {
    foreign get_return_object() { return foreign(std::coroutine_handle<promise_type>::from_promise(*this)); }
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

task<int> after(coax::timeout delay, int value) {
  co_await coax::sleep_for(delay);
  co_return value;
}

foreign sleeps(coax::timeout how_long) { co_await coax::sleep_for(how_long); }

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

TEST_CASE("destroying a foreign coroutine while tasks that it awaits run aborts with a message", "[foreign]") {
  const auto destroys = [] {
    manual_loop loop;
    loop.inside([] {
      const auto body = []() -> foreign { co_await coax::race(after(1s, 1), after(2s, 2)); };
      { const foreign f = body(); }
    });
  };
  CHECK(ending_of(destroys).aborted_saying("was destroyed while"));
}

TEST_CASE("destroying a foreign coroutine while it waits aborts with a message", "[foreign]") {
  const auto destroys_waiting = [] {
    manual_loop loop;
    loop.inside([] { const foreign f = sleeps(1s); });
  };
  CHECK(ending_of(destroys_waiting).aborted_saying("was destroyed while"));
}

TEST_CASE("destroying a foreign coroutine that is about to be resumed aborts with a message", "[foreign]") {
  const auto destroys_ready = [] {
    manual_loop loop;
    loop.inside([&] {
      const foreign f = sleeps(1s);
      loop.pass_time();
    });
  };
  CHECK(ending_of(destroys_ready).aborted_saying("was destroyed while"));
}
