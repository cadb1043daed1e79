#include <coax/sync/event.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/when_all.hpp>

#include "probes.hpp"

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

task<> throws_now() {
  throw std::runtime_error("now");
  co_return;
}
task<> writes(std::string& log, char name, counted = counted()) {
  log += name;
  co_return;
}

}  // namespace

TEST_CASE("a scope ends after its last child", "[scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(sleeps, std::ref(log), '3', 3s);
      s.spawn(sleeps, std::ref(log), '1', 1s);
      s.spawn(sleeps, std::ref(log), '2', 2s);
      CHECK(s.size() == 3);
      log += 'b';
      co_return;
    });
    CHECK(log == "b123");
  });
  CHECK(loop.elapsed() == 3s);
}

TEST_CASE("an empty scope ends at once, and so does one whose children do", "[scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([](scope&) -> task<> { co_return; });
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(writes, std::ref(log), 'a', counted());
      co_return;
    });
  });
  CHECK(log == "a");
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("a child first runs at the next turn, in the order of spawning", "[scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      for (const char name : {'a', 'b', 'c'}) s.spawn(writes, std::ref(log), name, counted());
      log += '-';
      co_await coax::yield();
      log += '-';
    });
  });
  CHECK(log == "-abc-");
}

TEST_CASE(
    "a child that throws cancels its siblings and the scope rethrows after the last has ended",
    "[scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    try {
      co_await coax::with_scope([&](scope& s) -> task<> {
        const named body(log, 'b');
        s.spawn(sleeps, std::ref(log), '1', 9s);
        s.spawn(throws_after, 1s, "child");
        s.spawn(sleeps, std::ref(log), '2', 9s);
        co_await coax::sleep_for(9s);
        log += "resumed";
      });
      log += "returned";
    } catch (const std::runtime_error& e) {
      CHECK(std::string(e.what()) == "child");
      CHECK(log.size() == 3);
    }
  });
  CHECK(log.size() == 3);
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("of several exceptions in a scope the first wins", "[scope]") {
  test_loop loop;
  CHECK_THROWS_WITH(loop.run([]() -> task<> {
    co_await coax::with_scope([](scope& s) -> task<> {
      s.spawn(throws_after, 2s, "later");
      s.spawn(throws_after, 1s, "first");
      s.spawn(throws_after, 1s, "second");
      co_await throws_after(1s, "body");
    });
  }),
                    "body");  // its sleep began first: children run at the next turn
  CHECK_THROWS_WITH(loop.run([]() -> task<> {
    co_await coax::with_scope([](scope& s) -> task<> {
      s.spawn(throws_after, 1s, "first");
      s.spawn(throws_after, 1s, "second");
      co_return;
    });
  }),
                    "first");
}

TEST_CASE("a body that throws cancels the children, and destroys those unrun that have not started",
          "[scope]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  CHECK_THROWS_WITH(loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(sleeps, std::ref(log), '1', 9s);
      co_await coax::yield();
      s.spawn(writes, std::ref(log), 'x', counted());
      co_await throws_now();
    });
  }),
                    "now");
  CHECK(log == "1");
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("a child may spawn, also after the body has ended", "[scope]") {
  test_loop loop;
  std::string log;
  struct recursion {
    static task<> spawns(scope& s, std::string& l, char name) {
      co_await coax::sleep_for(1s);
      l += name;
      if (name < 'e') s.spawn(spawns, std::ref(s), std::ref(l), static_cast<char>(name + 1));
    }
  };
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(recursion::spawns, std::ref(s), std::ref(log), 'a');
      co_return;
    });
  });
  CHECK(log == "abcde");
  CHECK(loop.elapsed() == 5s);
}

TEST_CASE("what a child was given may spawn when it is destroyed, be it the last child's",
          "[scope]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  struct spawns_at_end {
    spawns_at_end(scope& s, std::string& l) : own(s), log(l) {}
    spawns_at_end(spawns_at_end&& other) noexcept
        : own(other.own), log(other.log), moved_on(other.moved_on) {
      other.moved_on = true;
    }
    spawns_at_end& operator=(spawns_at_end&&) = delete;
    ~spawns_at_end() {
      if (moved_on) return;
      CHECK(own.size() == 1);
      own.spawn(writes, std::ref(log), 'x', counted());
    }
    scope& own;
    std::string& log;
    bool moved_on = false;
  };
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const auto child = [](const spawns_at_end&, std::string& l) -> task<> {
        l += 'c';
        co_return;
      };
      s.spawn(child, spawns_at_end(s, log), std::ref(log));
      co_return;
    });
    log += 'e';
  });
  CHECK(log == "cxe");
}

TEST_CASE("a scope inside a scope ends first", "[scope]") {
  test_loop loop;
  std::string log;
  const auto nest = [](std::string& l, char first) -> task<> {
    const named n(l, first);
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(sleeps, std::ref(l), static_cast<char>(first + 1), 1s);
      co_await coax::with_scope([&](scope& inner) -> task<> {
        inner.spawn(sleeps, std::ref(l), static_cast<char>(first + 2), 2s);
        co_return;
      });
      l += '-';
    });
  };
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(nest, std::ref(log), 'a');
      co_return;
    });
  });
  CHECK(log == "bc-a");
}

TEST_CASE("an exception in an inner scope cancels the outer one too, unless it is caught",
          "[scope]") {
  for (const bool catches : {false, true}) {
    test_loop loop;
    std::string log;
    const auto body = [&]() -> task<> {
      co_await coax::with_scope([&](scope& s) -> task<> {
        s.spawn(sleeps, std::ref(log), 'o', 5s);
        try {
          co_await coax::with_scope([&](scope& inner) -> task<> {
            inner.spawn(sleeps, std::ref(log), 'i', 5s);
            inner.spawn(throws_after, 1s, "inner");
            co_return;
          });
        } catch (const std::runtime_error&) {
          if (!catches) throw;
        }
        log += '-';
      });
    };
    if (catches) {
      loop.run(body());
      CHECK(log == "i-o");
      CHECK(loop.elapsed() == 5s);
    } else {
      CHECK_THROWS_WITH(loop.run(body()), "inner");
      CHECK(log == "io");
      CHECK(loop.elapsed() == 1s);
    }
  }
}

TEST_CASE("spawning into a scope that has ended, and is about to return, has no effect",
          "[scope]") {
  test_loop loop;
  bool ran = false;
  loop.run([&]() -> task<> {
    coax::event leave;
    scope* current = nullptr;
    const auto owner = [&]() -> task<> {
      co_await coax::with_scope([&](scope& s) -> task<> {
        current = &s;
        co_await leave.wait();
      });
      current = nullptr;
    };
    const auto user = [&]() -> task<> {
      co_await leave.wait();
      REQUIRE(current != nullptr);
      current->spawn([&]() -> task<> {
        ran = true;
        co_return;
      });
    };
    const auto opener = [&]() -> task<> {
      co_await coax::sleep_for(1s);
      leave.set();
    };
    co_await coax::when_all(owner(), user(), opener());
  });
  CHECK_FALSE(ran);
}
