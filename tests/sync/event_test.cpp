#include <coax/sync/event.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include <functional>
#include <string>

#include "../catch.hpp"
#include "../task/manual_loop.hpp"

using namespace std::chrono_literals;

namespace {

coax::task<> waits(coax::event& e, std::string& log, char name) {
  co_await e.wait();
  log += name;
}

template <class Body>
void play(Body body) {
  const auto frames = coax::detail::frames::live();
  manual_loop loop;
  loop.run(body());
  CHECK(coax::detail::frames::live() == frames);
  CHECK(loop.timers_set() == 0);
}

}  // namespace

TEST_CASE("a set event lets everybody pass, in the order they came", "[event]") {
  play([]() -> coax::task<> {
    coax::event e;
    std::string log;
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      for (const char name : {'a', 'b', 'c'}) s.spawn(waits, std::ref(e), std::ref(log), name);
      co_await coax::yield();
      CHECK(log.empty());
      e.set();
      e.set();
    });
    CHECK(log == "abc");
    CHECK(e.is_set());
    co_await e.wait();
  });
}

TEST_CASE("a reset event holds who comes later, not who was let pass", "[event]") {
  play([]() -> coax::task<> {
    coax::event e;
    std::string log;
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.spawn(waits, std::ref(e), std::ref(log), 'a');
      co_await coax::yield();
      e.set();
      e.reset();
      s.spawn(waits, std::ref(e), std::ref(log), 'b');
      co_await coax::sleep_for(1s);
      CHECK(log == "a");
      e.set();
    });
    CHECK(log == "ab");
  });
}

TEST_CASE("a wait for an event that is cancelled or times out leaves the queue", "[event]") {
  play([]() -> coax::task<> {
    coax::event e;
    std::string log;
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.spawn(waits, std::ref(e), std::ref(log), 'a');
      co_await coax::race(waits(e, log, 'b'), coax::sleep_for(1s));
      s.spawn(waits, std::ref(e), std::ref(log), 'c');
      auto late = co_await coax::within(1s, e.wait());
      CHECK(late.error() == std::errc::timed_out);
      e.set();
    });
    CHECK(log == "ac");
  });
}

TEST_CASE("an event that is set completes a wait even while its task is being cancelled",
          "[event]") {
  play([]() -> coax::task<> {
    coax::event e;
    e.set();
    bool passed = false;
    bool went_on = false;
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.cancel();
      co_await e.wait();
      passed = true;
      co_await coax::yield();
      went_on = true;
    });
    CHECK(passed);
    CHECK_FALSE(went_on);
  });
}

TEST_CASE("a loop of waits for an event that is set lets others run", "[event]") {
  play([]() -> coax::task<> {
    coax::event e;
    e.set();
    bool stop = false;
    auto looping = [&]() -> coax::task<> {
      while (!stop) co_await e.wait();
    };
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.spawn(std::ref(looping));
      co_await coax::yield();
      stop = true;
    });
  });
}
