#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <functional>

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

/// Cancels itself, and goes on to what `then` awaits.
template <class Then>
task<> cancels_itself(coax::root* const& self, bool& went_on, Then then) {
  self->cancel();
  co_await then();
  went_on = true;
  co_await coax::yield();
  FAIL_CHECK("nothing waits once it was cancelled");
}

/// Whether a task that is cancelled goes on after what `then` awaits. It must end unwound in any case.
template <class Then>
bool goes_on_after(Then then) {
  test_loop loop;
  bool went_on = false;
  coax::root* self = nullptr;
  watched<> w(*loop, cancels_itself(self, went_on, then));
  self = &w;
  loop->settle();
  CHECK(w.unwound());
  CHECK(w.times_ended() == 1);
  CHECK(loop.elapsed() == 0s);
  return went_on;
}

}  // namespace

TEST_CASE("after a cancel the next wait unwinds without being tried", "[cancel]") {
  CHECK_FALSE(goes_on_after([]() -> task<> { co_await coax::sleep_for(1s); }));
  CHECK_FALSE(goes_on_after([]() -> task<> { co_await coax::sleep_for(-1s); }));
  CHECK_FALSE(goes_on_after([]() -> task<> { co_await coax::yield(); }));
  CHECK_FALSE(goes_on_after(
      []() -> task<> { static_cast<void>(co_await coax::within(1s, coax::yield())); }));
  script s;
  CHECK_FALSE(goes_on_after([&]() -> task<> { co_await scripted_wait(s); }));
  s.completes_at_once = true;
  CHECK_FALSE(goes_on_after([&]() -> task<> { co_await scripted_wait(s); }));
  CHECK_FALSE(goes_on_after(
      [&]() -> task<> { static_cast<void>(co_await coax::within(1s, scripted_wait(s))); }));
  CHECK_FALSE(
      goes_on_after([&]() -> task<> { co_await coax::race(scripted_wait(s), waits_for(s)); }));
  CHECK(s.begun == 0);
}

TEST_CASE("after a cancel what is ready at once still completes", "[cancel]") {
  script s;
  s.ready = true;
  CHECK(goes_on_after([&]() -> task<> { co_await scripted_wait(s); }));
  CHECK(goes_on_after([&]() -> task<> { static_cast<void>(co_await waits_for(s)); }));
  CHECK(goes_on_after(
      [&]() -> task<> { static_cast<void>(co_await coax::within(1s, scripted_wait(s))); }));
  CHECK(goes_on_after(
      [&]() -> task<> { static_cast<void>(co_await coax::within(1s, waits_for(s))); }));
  CHECK(goes_on_after([&]() -> task<> { co_await coax::race(waits_for(s), scripted_wait(s)); }));
  CHECK(goes_on_after([]() -> task<> { co_return; }));
  CHECK(goes_on_after([&]() -> task<> {
    co_await coax::with_scope([&](scope&) -> task<> { static_cast<void>(co_await waits_for(s)); });
  }));
  CHECK(s.begun == 0);
}

TEST_CASE("a scope begun after a cancel runs its body to the first wait, and none of its children",
          "[cancel]") {
  bool body_ran = false;
  bool child_ran = false;
  const counted::census counts;
  CHECK_FALSE(goes_on_after([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(
          [](bool& ran, counted) -> task<> {
            ran = true;
            co_return;
          },
          std::ref(child_ran), counted());
      body_ran = true;
      co_await coax::yield();
      FAIL_CHECK("the body went on");
    });
  }));
  CHECK(body_ran);
  CHECK_FALSE(child_ran);
}

TEST_CASE("a wait that has ended hears nothing of a later cancel", "[cancel]") {
  test_loop loop;
  script s;
  coax::root* self = nullptr;
  const auto body = [&]() -> task<> {
    co_await coax::yield();
    co_await coax::race(coax::sleep_for(1s), coax::yield());
    const int value = co_await waits_for(s);
    CHECK(value == 4);
    self->cancel();  // all that was awaited is gone by now
    self->cancel();
    co_await coax::yield();
    FAIL_CHECK("nothing waits once it was cancelled");
  };
  watched<> w(*loop, body());
  self = &w;
  loop->settle();
  loop->inside([&] { s.complete(4); });
  loop->settle();
  CHECK(w.unwound());
  CHECK(s.stops == 0);
}

TEST_CASE("cancelling twice is cancelling once", "[cancel]") {
  test_loop loop;
  script s;
  s.stops_at_once = false;
  watched<int> w(*loop, waits_for(s));
  loop->settle();
  w.cancel_from_outside();
  w.cancel_from_outside();
  CHECK(s.stops == 1);
  loop->inside([&] { s.acknowledge_stop(); });
  w.cancel_from_outside();
  loop->settle();
  CHECK(w.unwound());
  CHECK(w.times_ended() == 1);
}

TEST_CASE("a task cancelled before it started is destroyed unrun", "[cancel]") {
  const counted::census counts;
  test_loop loop;
  bool ran = false;
  const auto body = [&ran](counted) -> task<> {
    ran = true;
    co_return;
  };
  watched<> w(*loop, body(counted()));
  w.cancel_from_outside();
  CHECK(counts.alive() == 1);
  loop->settle();
  CHECK(w.unwound());
  CHECK_FALSE(ran);
}

TEST_CASE("a cancel neither resumes nor destroys by itself", "[cancel]") {
  const counted::census counts;
  test_loop loop;
  const auto body = []() -> task<> {
    const counted local;
    co_await coax::sleep_for(1s);
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  CHECK(counts.alive() == 1);
  CHECK_FALSE(w.has_ended());
  loop->settle();
  CHECK(w.unwound());
}

TEST_CASE("a task that finishes without another wait misses its cancel", "[cancel]") {
  test_loop loop;
  script s;
  watched<int> w(*loop, waits_for(s));
  loop->settle();
  loop->inside([&] {
    s.complete(5);
    w.cancel();
  });
  loop->settle();
  REQUIRE(w.finished());
  CHECK(w.take() == 5);
}

TEST_CASE("a catch-all sees nothing of a cancel", "[cancel]") {
  test_loop loop;
  bool caught = false;
  const auto body = [&]() -> task<> {
    try {
      co_await coax::sleep_for(1s);
    } catch (...) {
      caught = true;
    }
    co_await coax::sleep_for(1s);
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  loop->settle();
  CHECK(w.unwound());
  CHECK_FALSE(caught);
}

TEST_CASE("a thousand nested scopes and timeouts are unwound by one cancel", "[cancel]") {
  test_loop loop;
  struct recursion {
    static task<> nest(int below) {
      if (below == 0) {
        co_await coax::sleep_for(1s);
      } else if (below % 2 == 0) {
        co_await coax::with_scope([&](scope&) -> task<> { co_await nest(below - 1); });
      } else {
        static_cast<void>(co_await coax::within(9s, nest(below - 1)));
      }
    }
  };
  watched<> w(*loop, recursion::nest(1'000));
  loop->settle();
  CHECK(loop->timers_set() == 501);
  w.cancel_from_outside();
  loop->settle();
  CHECK(w.unwound());
}
