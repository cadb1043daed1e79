#include <coax/sync/limited_scope.hpp>

#include <coax/task/race.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task_local.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../task/manual_loop.hpp"
#include "../task/probes.hpp"
#include "dice.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

using namespace std::chrono_literals;

TEST_CASE("a limited scope runs at most so many children at a time; who spawns waits its turn",
          "[limited_scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope(2, [&](coax::limited_scope& s) -> coax::task<> {
      co_await s.spawn(sleeps, std::ref(log), 'a', 3s);
      co_await s.spawn(sleeps, std::ref(log), 'b', 1s);
      CHECK(loop.elapsed() == 0s);
      CHECK(s.size() == 2);
      co_await s.spawn(sleeps, std::ref(log), 'c', 1s);  // in the place of b
      CHECK(loop.elapsed() == 1s);
      CHECK(s.size() == 2);
      co_await s.spawn(sleeps, std::ref(log), 'd', 4s);  // in the place of c
      CHECK(loop.elapsed() == 2s);
      CHECK(log == "bc");
    });
  });
  CHECK(log == "bcad");
  CHECK(loop.elapsed() == 6s);
}

TEST_CASE("the limit holds, and all children run, whatever they do", "[limited_scope]") {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    test_loop loop;
    dice random(seed);
    const std::size_t limit = 1 + random(4);
    const std::size_t wanted = random(30);
    std::size_t alive = 0, most = 0, begun = 0, spawned = 0;
    bool in_order = true;
    auto child = [&](std::size_t me, coax::timeout how_long, bool fails) -> coax::task<> {
      in_order = in_order && me == begun;
      ++begun;
      most = std::max(most, ++alive);
      struct on_end {
        std::size_t& alive_now;
        ~on_end() { --alive_now; }
      } const end{alive};
      co_await coax::sleep_for(how_long);
      if (fails) throw std::runtime_error("as it was told");
    };
    const std::size_t fails_at = random(3) == 0 ? random(30) : 1'000;
    bool thrown = false;
    loop.run([&]() -> coax::task<> {
      auto body = [&](coax::limited_scope& s) -> coax::task<> {
        for (; spawned < wanted; ++spawned) {
          co_await s.spawn(std::ref(child), spawned, (1 + random(5)) * 1s, spawned == fails_at);
          CHECK(s.size() <= limit);
        }
      };
      try {
        co_await coax::with_scope(limit, body);
      } catch (const std::runtime_error&) {
        thrown = true;
      }
    });
    CHECK(alive == 0);
    CHECK(most <= limit);
    CHECK(in_order);
    CHECK(thrown == (fails_at < wanted));
    if (!thrown) {
      CHECK(begun == wanted);
      CHECK(most == std::min(limit, wanted));
    }
  }
}

TEST_CASE("when a limited scope is cancelled, a spawn that waits unwinds and spawns nothing",
          "[limited_scope]") {
  const counted::census census;
  test_loop loop;
  std::string log;
  bool ran = false;
  loop.run([&]() -> coax::task<> {
    auto never = [&](counted) -> coax::task<> {
      ran = true;
      co_return;
    };
    co_await coax::with_scope(1, [&](coax::limited_scope& s) -> coax::task<> {
      auto cancels = [&]() -> coax::task<> {
        const named here(log, 'c');
        co_await coax::sleep_for(1s);
        s.cancel();
        co_await coax::sleep_for(1s);
      };
      const named body(log, 'b');
      co_await s.spawn(std::ref(cancels));
      co_await s.spawn(std::ref(never), counted(1));
      log += "spawned";
    });
  });
  CHECK_FALSE(ran);
  CHECK(log == "bc");
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a spawn that was given its place just before the cancellation spawns nothing",
          "[limited_scope]") {
  const counted::census census;
  test_loop loop;
  std::string log;
  script child_end, now;
  coax::limited_scope* scope = nullptr;
  auto child = [&](counted) -> coax::task<> {
    log += "child, ";
    co_await scripted_wait(child_end);
  };
  auto body = [&](coax::limited_scope& s) -> coax::task<> {
    scope = &s;
    co_await s.spawn(std::ref(child), counted(1));
    co_await s.spawn(std::ref(child), counted(2));
    log += "body, ";
    co_await coax::yield();
    log += "?";
  };
  auto cancels = [&]() -> coax::task<> {
    co_await scripted_wait(now);
    CHECK(scope->size() == 0);
    scope->cancel();
  };
  watched<> a(*loop, coax::with_scope(1, body));
  watched<> b(*loop, cancels());
  loop->settle();
  loop->inside([&] {
    child_end.complete(0);
    now.complete(0);  // runs when the child has ended, before the body goes on
  });
  loop->settle();
  CHECK(log == "child, body, ");
  CHECK(a.finished());
}

TEST_CASE("the exception of a child cancels the others and a spawn that waits", "[limited_scope]") {
  test_loop loop;
  std::string log;
  bool thrown = false;
  loop.run([&]() -> coax::task<> {
    try {
      co_await coax::with_scope(2, [&](coax::limited_scope& s) -> coax::task<> {
        co_await s.spawn(sleeps, std::ref(log), 'a', 10s);
        co_await s.spawn(throws_after, 1s, "as it was told");
        co_await s.spawn(sleeps, std::ref(log), 'b', 10s);
        co_await coax::yield();
        log += "the body goes on";
      });
    } catch (const std::runtime_error&) {
      thrown = true;
    }
  });
  CHECK(thrown);
  CHECK(log == "a");
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a spawn whose wait times out spawns nothing, and its place is not lost",
          "[limited_scope]") {
  const counted::census census;
  test_loop loop;
  std::string log;
  loop.run([&]() -> coax::task<> {
    auto child = [&](counted c) -> coax::task<> {
      log += std::to_string(c.value);
      co_await coax::sleep_for(3s);
    };
    co_await coax::with_scope(1, [&](coax::limited_scope& s) -> coax::task<> {
      co_await s.spawn(std::ref(child), counted(1));
      auto late = co_await coax::within(1s, s.spawn(std::ref(child), counted(2)));
      CHECK(late.error() == std::errc::timed_out);
      co_await s.spawn(std::ref(child), counted(3));
    });
  });
  CHECK(log == "13");
}

namespace {

/// A function that is a child, with something of its own.
class callable {
 public:
  explicit callable(int n) : own_(n) {}
  coax::task<> operator()(const counted&) { co_await coax::sleep_for(1s); }

 private:
  counted own_;
};

}  // namespace

TEST_CASE("a child makes room when its function and arguments are gone", "[limited_scope]") {
  const counted::census census;
  test_loop loop;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope(1, [&](coax::limited_scope& s) -> coax::task<> {
      for (int i = 0; i < 3; ++i) {
        const callable child(i);
        co_await s.spawn(child, counted(i));
        CHECK(census.alive() == 3);  // `child`, and what the one child has
      }
    });
  });
}

TEST_CASE("a child of a limited scope inherits the variables of who spawned it",
          "[limited_scope]") {
  test_loop loop;
  coax::task_local<int> request;
  std::string log;
  loop.run([&]() -> coax::task<> {
    auto child = [&]() -> coax::task<> {
      const int* number = request.get();
      log += number == nullptr ? "?" : std::to_string(*number);
      co_await coax::sleep_for(1s);
    };
    co_await coax::with_scope(1, [&](coax::limited_scope& s) -> coax::task<> {
      for (int i = 1; i <= 3; ++i) {
        request.set(i);
        co_await s.spawn(std::ref(child));
      }
    });
  });
  CHECK(log == "123");
}

TEST_CASE("a function that throws before it gives its task leaves its place free",
          "[limited_scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> coax::task<> {
    auto no_task = []() -> coax::task<> { throw std::runtime_error("as it was told"); };
    auto refuses = [&](bool really) -> coax::task<> {
      if (really) throw std::runtime_error("as it was told");
      return no_task();
    };
    co_await coax::with_scope(1, [&](coax::limited_scope& s) -> coax::task<> {
      bool thrown = false;
      try {
        co_await s.spawn(std::ref(refuses), true);
      } catch (const std::runtime_error&) {
        thrown = true;
      }
      CHECK(thrown);
      CHECK(s.size() == 0);
      co_await s.spawn(sleeps, std::ref(log), 'a', 1s);
    });
  });
  CHECK(log == "a");
}

TEST_CASE("children spawn too, and outlive the body", "[limited_scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope(2, [&](coax::limited_scope& s) -> coax::task<> {
      auto parent = [](coax::limited_scope& in, std::string& says) -> coax::task<> {
        for (const char name : {'a', 'b', 'c'}) co_await in.spawn(sleeps, std::ref(says), name, 1s);
      };
      co_await s.spawn(parent, std::ref(s), std::ref(log));
    });
  });
  CHECK(log == "abc");
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("join_within of a limited scope: in time, or those that are left are cancelled",
          "[limited_scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope(3, [&](coax::limited_scope& s) -> coax::task<> {
      co_await s.spawn(sleeps, std::ref(log), 'a', 1s);
      const bool in_time = co_await s.join_within(2s);
      CHECK(in_time);
      co_await s.spawn(sleeps, std::ref(log), 'b', 10s);
      const bool late = co_await s.join_within(2s);
      CHECK_FALSE(late);
      CHECK(log == "ab");
      co_await s.spawn(sleeps, std::ref(log), 'c', 1s);  // no effect any more
      CHECK(s.size() == 0);
    });
  });
  CHECK(log == "ab");
}

TEST_CASE("a limit that is not positive is refused", "[limited_scope]") {
  auto body = [](coax::limited_scope&) -> coax::task<> { co_return; };
  CHECK_THROWS_AS(coax::with_scope(0, body), std::invalid_argument);
  CHECK_THROWS_AS(coax::with_scope(static_cast<std::size_t>(-1), body), std::invalid_argument);
}

TEST_CASE("a hundred thousand children in a limited scope take constant stack", "[limited_scope]") {
  int ran = 0;
  on_small_stack([&] {
    test_loop loop;
    loop.run([&]() -> coax::task<> {
      auto child = [&]() -> coax::task<> {
        ++ran;
        co_return;
      };
      co_await coax::with_scope(3, [&](coax::limited_scope& s) -> coax::task<> {
        for (int i = 0; i < 100'000; ++i) co_await s.spawn(std::ref(child));
      });
    });
  });
  CHECK(ran == 100'000);
}
