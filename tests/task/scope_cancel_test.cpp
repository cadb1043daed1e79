#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include "probes.hpp"

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

task<> writes(std::string& log, char name, counted = counted()) {
  log += name;
  co_return;
}

}  // namespace

TEST_CASE("a scope that cancels itself returns as usual, and what is around it goes on",
          "[scope]") {
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

TEST_CASE(
    "what is spawned into a scope that is being cancelled is destroyed unrun, with its arguments",
    "[scope]") {
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

TEST_CASE("a function that cancels the scope before it gives its task has spawned nothing",
          "[scope]") {
  const counted::census counts;
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const int before = counts.alive();
      const auto cancels = [](scope& own, std::string& l, const counted& c) -> task<> {
        own.cancel();
        return writes(l, 'x', c);
      };
      s.spawn(cancels, std::ref(s), std::ref(log), counted());
      CHECK(s.size() == 0);
      CHECK(counts.alive() == before);
      co_return;
    });
  });
  CHECK(log.empty());
}

TEST_CASE("a scope cancelled from outside unwinds body and children, then what awaits it",
          "[scope]") {
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
        own.spawn(
            [](script& waits) -> task<> {
              co_await scripted_wait(waits);
              throw std::runtime_error("all the same");
            },
            std::ref(s));
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
      s.spawn(
          [](scope& own, std::string& l) -> task<> {
            const busy in_child(own, l);
            co_await coax::sleep_for(9s);
          },
          std::ref(s), std::ref(log));
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

TEST_CASE("once a scope is cancelled, spawn does not even call its function", "[scope]") {
  test_loop loop;
  int called = 0;
  loop.run([&]() -> task<> {
    const auto gives_task = [&]() -> task<> {
      ++called;
      return []() -> task<> { co_return; }();
    };
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.cancel();
      s.spawn(gives_task);
      co_return;
    });
  });
  CHECK(called == 0);
}
