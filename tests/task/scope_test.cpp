#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include "death.hpp"
#include "probes.hpp"

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

/// Writes its name when it is destroyed, so that a log tells who ended when.
class named {
 public:
  named(std::string& log, char name) : log_(log), name_(name) {}
  named(const named&) = delete;
  named& operator=(const named&) = delete;
  ~named() { log_ += name_; }

 private:
  std::string& log_;
  char name_;
};

task<> sleeps(std::string& log, char name, coax::timeout how_long) {
  const named n(log, name);
  co_await coax::sleep_for(how_long);
}
task<> throws_after(coax::timeout delay, const char* what) {
  co_await coax::sleep_for(delay);
  throw std::runtime_error(what);
}
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

TEST_CASE("a child that throws cancels its siblings and the scope rethrows after the last has ended", "[scope]") {
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

TEST_CASE("a body that throws cancels the children, and destroys those unrun that have not started", "[scope]") {
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

TEST_CASE("a scope that cancels itself returns as usual, and what is around it goes on", "[scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const named body(log, 'b');
      s.spawn(sleeps, std::ref(log), '1', 9s);
      co_await coax::yield();
      s.cancel();
      s.cancel();
      log += '-';
      co_await coax::yield();
      log += "resumed";
    });
    co_await coax::sleep_for(1s);
    log += '.';
  });
  CHECK(log.size() == 4);
  CHECK(log.front() == '-');
  CHECK(log.back() == '.');
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a child may cancel its scope", "[scope]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const named body(log, 'b');
      s.spawn(sleeps, std::ref(log), '1', 9s);
      s.spawn(
          [](scope& own, std::string& l) -> task<> {
            const named n(l, 'c');
            co_await coax::sleep_for(1s);
            own.cancel();
            l += '-';
            co_await coax::sleep_for(1s);
            l += "resumed";
          },
          std::ref(s), std::ref(log));
      co_await coax::sleep_for(9s);
    });
  });
  CHECK(log.size() == 4);
  CHECK(log.front() == '-');
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("what is spawned into a scope that is being cancelled is destroyed unrun, with its arguments", "[scope]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(writes, std::ref(log), 'x', counted());
      s.cancel();
      CHECK(counts.alive() > 0);
      const int before = counts.alive();
      s.spawn(writes, std::ref(log), 'y', counted());
      CHECK(counts.alive() == before);
      CHECK(s.size() == 1);
      co_return;
    });
  });
  CHECK(log.empty());
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

TEST_CASE("an exception in an inner scope cancels the outer one too, unless it is caught", "[scope]") {
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

TEST_CASE("a scope cancelled from outside unwinds body and children, then what awaits it", "[scope]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    const named outer(log, 'o');
    co_await coax::with_scope([&](scope& s) -> task<> {
      const named inner(log, 'b');
      s.spawn(sleeps, std::ref(log), '1', 9s);
      s.spawn(sleeps, std::ref(log), '2', 9s);
      co_await sleeps(log, 'i', 9s);
    });
    log += "resumed";
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  loop->settle();
  CHECK(w.unwound());
  CHECK(log.size() == 5);
  CHECK(log.find("ib") != std::string::npos);
  CHECK(log.back() == 'o');
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("an exception is delivered even when the scope is being cancelled", "[scope]") {
  test_loop loop;
  script s;
  bool caught = false;
  const auto body = [&]() -> task<> {
    try {
      co_await coax::with_scope([&](scope& own) -> task<> {
        own.spawn([](script& waits) -> task<> {
          co_await scripted_wait(waits);
          throw std::runtime_error("all the same");
        }, std::ref(s));
        co_await coax::sleep_for(9s);
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    co_await coax::sleep_for(1s);
    FAIL_CHECK("resumed");
  };
  watched<> w(*loop, body());
  loop->settle();
  loop->inside([&] {
    s.complete(1);
    w.cancel();
  });
  loop->settle();
  CHECK(caught);
  CHECK(w.unwound());
}

TEST_CASE("destructors may cancel and spawn while their scope unwinds", "[scope]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  struct busy {
    busy(scope& s, std::string& l) : own(s), log(l) {}
    busy(const busy&) = delete;
    busy& operator=(const busy&) = delete;
    ~busy() {
      own.spawn(writes, std::ref(log), 'x', counted());
      own.cancel();
      log += 'd';
    }
    scope& own;
    std::string& log;
  };
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const busy in_body(s, log);
      s.spawn([](scope& own, std::string& l) -> task<> {
        const busy in_child(own, l);
        co_await coax::sleep_for(9s);
      }, std::ref(s), std::ref(log));
      co_await coax::yield();
      s.cancel();
      co_await coax::sleep_for(9s);
    });
  });
  CHECK(log == "dd");
}

TEST_CASE("100,000 children are cancelled at once, in constant stack", "[scope]") {
  std::ptrdiff_t left = -1;
  std::size_t children = 0;
  int unwound = 0;
  on_small_stack([&] {
    manual_loop loop;
    struct counts_end {
      explicit counts_end(int& n) : count(n) {}
      counts_end(const counts_end&) = delete;
      counts_end& operator=(const counts_end&) = delete;
      ~counts_end() { ++count; }
      int& count;
    };
    const auto child = [](int& ends) -> task<> {
      const counts_end at_end(ends);
      co_await coax::sleep_for(1s);
    };
    const auto body = [&]() -> task<> {
      co_await coax::with_scope([&](scope& s) -> task<> {
        for (int i = 0; i < 100'000; ++i) s.spawn(child, std::ref(unwound));
        co_await coax::sleep_for(1ms);
        children = s.size();
        s.cancel();
      });
    };
    loop.run(body());
    left = coax::detail::frames::live();
  });
  CHECK(children == 100'000);
  CHECK(unwound == 100'000);
  CHECK(left == 0);
}
