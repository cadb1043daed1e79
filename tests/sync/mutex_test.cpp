#include <coax/sync/mutex.hpp>

#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../task/death.hpp"
#include "../task/manual_loop.hpp"
#include "../task/probes.hpp"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

using namespace std::chrono_literals;

namespace {

/// Holds the lock until it is told to go on; its name in the log says that it has it.
coax::task<> holds(coax::mutex& m, std::string& log, char name, script& until) {
  const auto held = co_await m.lock();
  log += name;
  co_await scripted_wait(until);
}

/// Gives what it holds to the test.
coax::task<> takes(coax::mutex& m, std::optional<coax::mutex::guard>& into) {
  into = co_await m.lock();
}

}  // namespace

TEST_CASE("a mutex is held by one at a time, in the order they came", "[mutex]") {
  test_loop loop;
  coax::mutex m;
  std::string log;
  script ends[3];
  watched<> a(*loop, holds(m, log, 'a', ends[0]));
  watched<> b(*loop, holds(m, log, 'b', ends[1]));
  watched<> c(*loop, holds(m, log, 'c', ends[2]));
  const char* const so_far[] = {"a", "ab", "abc"};
  for (int i = 0; i < 3; ++i) {
    loop->settle();
    CHECK(log == so_far[i]);
    loop->inside([&] { ends[i].complete(0); });
  }
  loop->settle();
  CHECK(c.finished());
}

TEST_CASE("who unlocks and locks again waits behind those who waited: nobody comes in between",
          "[mutex]") {
  test_loop loop;
  coax::mutex m;
  std::string log;
  script more[2];
  watched<> a(*loop, [](coax::mutex& lock, std::string& says, script* until) -> coax::task<> {
    for (int i = 0; i < 2; ++i) {
      auto held = co_await lock.lock();
      says += 'a';
      co_await scripted_wait(until[i]);
    }
  }(m, log, more));
  script end;
  loop->settle();
  watched<> b(*loop, holds(m, log, 'b', end));
  loop->settle();
  loop->inside([&] { more[0].complete(0); });
  loop->settle();
  CHECK(log == "ab");
  // and not while it is on its way to the next either
  script last;
  loop->inside([&] { end.complete(0); });
  watched<> c(*loop, holds(m, log, 'c', last));
  loop->settle();
  CHECK(log == "aba");
  loop->inside([&] { more[1].complete(0); });
  loop->settle();
  CHECK(log == "abac");
  c.cancel_from_outside();
  loop->settle();
}

TEST_CASE("a wait for a mutex that is cancelled leaves the queue", "[mutex]") {
  for (int gone = 1; gone < 4; ++gone) {
    test_loop loop;
    coax::mutex m;
    std::string log;
    script ends[5];
    std::unique_ptr<watched<>> all[5];
    for (int i = 0; i < 4; ++i)
      all[i] =
          std::make_unique<watched<>>(*loop, holds(m, log, static_cast<char>('a' + i), ends[i]));
    loop->settle();
    all[gone]->cancel_from_outside();
    loop->settle();
    CHECK(all[gone]->unwound());
    all[4] = std::make_unique<watched<>>(*loop, holds(m, log, 'e', ends[4]));
    std::string expected = "a";
    for (int i = 0; i < 5; ++i) {
      if (i == gone) continue;
      if (i != 0) expected += static_cast<char>('a' + i);
      loop->settle();
      CHECK(log == expected);
      loop->inside([&] { ends[i].complete(0); });
    }
    loop->settle();
    CHECK(all[4]->finished());
  }
}

TEST_CASE("a lock that is handed over in the turn of a cancellation is not lost", "[mutex]") {
  for (const bool cancelled_first : {false, true}) {
    test_loop loop;
    coax::mutex m;
    std::string log;
    script never;
    std::optional<coax::mutex::guard> held;
    watched<> a(*loop, takes(m, held));
    watched<> b(*loop, holds(m, log, 'b', never));
    watched<> c(*loop, holds(m, log, 'c', never));
    loop->settle();
    loop->inside([&] {
      if (cancelled_first) b.cancel();
      held->unlock();
      b.cancel();
    });
    CHECK(log.empty());
    loop->settle();
    CHECK(log == (cancelled_first ? "c" : "bc"));
    CHECK(b.unwound());
    c.cancel_from_outside();
    loop->settle();
  }
}

TEST_CASE("a wait for a mutex times out, holds nothing then, and is no longer in the queue",
          "[mutex]") {
  test_loop loop;
  coax::mutex m;
  std::string log;
  loop.run([&]() -> coax::task<> {
    std::optional<coax::mutex::guard> held = co_await m.lock();
    auto late = co_await coax::within(1s, m.lock());
    CHECK(late.error() == std::errc::timed_out);
    held.reset();
    auto in_time = co_await coax::within(0s, m.lock());
    CHECK(in_time);
  });
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a lock that was handed over in time beats the limit", "[mutex]") {
  test_loop loop;
  coax::mutex m;
  std::string log;
  std::optional<coax::mutex::guard> held;
  watched<> a(*loop, takes(m, held));
  watched<> b(*loop, [](coax::mutex& lock, std::string& says) -> coax::task<> {
    const auto got = co_await coax::within(1s, lock.lock());
    says += got ? "locked" : "timed out";
  }(m, log));
  loop->settle();
  loop->inside([&] { held->unlock(); });
  loop->advance(1s);  // before b runs
  loop->settle();
  CHECK(log == "locked");
}

TEST_CASE(
    "a mutex that is free is locked even while the task is being cancelled, one that is not is not waited for",
    "[mutex]") {
  test_loop loop;
  coax::mutex m;
  std::string log;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.cancel();
      const auto held = co_await m.lock();
      log += "locked";
      const auto again = co_await m.lock();
      log += " twice";
    });
    const auto held = co_await m.lock();
    log += ", free again";
  });
  CHECK(log == "locked, free again");
}

TEST_CASE("an exception in a holder unlocks", "[mutex]") {
  test_loop loop;
  coax::mutex m;
  loop.run([&]() -> coax::task<> {
    auto fails = [&]() -> coax::task<> {
      const auto held = co_await m.lock();
      co_await coax::yield();
      throw std::runtime_error("as it was told");
    };
    bool thrown = false;
    try {
      co_await fails();
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
    const auto held = co_await m.lock();
  });
}

TEST_CASE("a guard moves, unlocks when told, and unlocks what it held when it is assigned to",
          "[mutex]") {
  test_loop loop;
  coax::mutex m;
  coax::mutex other;
  loop.run([&]() -> coax::task<> {
    auto first = co_await m.lock();
    auto second = std::move(first);
    first.unlock();  // holds nothing
    auto busy = co_await coax::within(0s, m.lock());
    CHECK_FALSE(busy);
    auto& self = second;
    second = std::move(self);
    auto still = co_await coax::within(0s, m.lock());
    CHECK_FALSE(still);
    second = co_await other.lock();
    auto third = co_await coax::within(0s, m.lock());
    CHECK(third);
    third->unlock();
    third->unlock();
    auto fourth = co_await coax::within(0s, m.lock());
    CHECK(fourth);
  });
}

TEST_CASE("a race that a lock and another branch both win loses nothing", "[mutex]") {
  test_loop loop;
  coax::mutex m;
  std::string log;
  std::optional<coax::mutex::guard> held;
  watched<> a(*loop, takes(m, held));
  loop->settle();
  watched<> b(*loop, [](coax::mutex& lock, std::string& says) -> coax::task<> {
    const auto won = co_await coax::race(lock.lock(), coax::sleep_for(1s));
    if (std::get<0>(won)) says += "locked ";
    if (std::get<1>(won)) says += "slept";
  }(m, log));
  loop->settle();
  loop->inside([&] { held->unlock(); });
  loop->advance(1s);
  loop->settle();
  CHECK(log == "locked slept");
  loop.run([&]() -> coax::task<> { const auto free = co_await m.lock(); });
}

TEST_CASE("a million locks of a free mutex take constant stack, and let others run", "[mutex]") {
  bool others_ran = false;
  on_small_stack([&] {
    test_loop loop;
    coax::mutex m;
    loop.run([&]() -> coax::task<> {
      co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
        auto other = [&]() -> coax::task<> {
          others_ran = true;
          co_return;
        };
        s.spawn(std::ref(other));
        for (int i = 0; i < 1'000; ++i) const auto held = co_await m.lock();
        CHECK(others_ran);
        for (int i = 0; i < 1'000'000; ++i) const auto held = co_await m.lock();
      });
    });
  });
}

TEST_CASE("a mutex that is destroyed while it is in use aborts and says why", "[mutex]") {
  const auto says_why = [](coax::task<> (*use)(coax::mutex&), bool while_used) {
    return ending_of([&] {
             manual_loop loop;
             std::optional<coax::mutex> m(std::in_place);
             watched<> one(loop, use(*m));
             watched<> two(loop, use(*m));
             loop.settle();
             if (while_used) m.reset();
             one.cancel_from_outside();
             two.cancel_from_outside();
             loop.settle();
             m.reset();
           })
        .aborted_saying("destroyed while somebody held it or waited for it");
  };
  const auto holds_it = [](coax::mutex& m) -> coax::task<> {
    const auto held = co_await m.lock();
    co_await coax::sleep_for(1s);
  };
  CHECK(says_why(holds_it, true));
  CHECK_FALSE(says_why(holds_it, false));
}
