#include <coax/process/post.hpp>
#include <coax/process/run.hpp>
#include <coax/process/threads.hpp>
#include <coax/sync/event.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../io/each_backend.hpp"
#include "../io/sockets.hpp"
#include "../sim/conformance.hpp"
#include "../task/death.hpp"
#include "across_threads.hpp"
#include "by_environment.hpp"

#include <sys/wait.h>

#include <array>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

// How other threads get into a reactor, and what becomes of those that try without asking.

namespace {

using namespace std::chrono_literals;
using coax::task;

task<> sleeps_for_ever() { co_await coax::sleep_for(1h); }

}  // namespace

TEST_CASE("a posted function runs on the reactor's thread") {
  on_each_backend([]() -> task<> {
    coax::reactor& here = coax::reactor::current();
    coax::event ran;
    std::thread::id where;
    std::thread other([&] {
      coax::post(here, [&] {
        where = std::this_thread::get_id();
        ran.set();
      });
    });
    co_await ran.wait();
    other.join();
    CHECK(where == std::this_thread::get_id());
  });
}

TEST_CASE("what a task posts to its own reactor runs at a later turn, in order") {
  on_each_backend_and_simulation([]() -> task<> {
    coax::reactor& here = coax::reactor::current();
    std::string log;
    coax::event last;
    for (const char c : {'a', 'b', 'c'}) coax::post(here, [&log, c] { log += c; });
    coax::post(here, [&] {
      coax::post(here, [&] {
        log += 'e';
        last.set();
      });
      log += 'd';
    });
    CHECK(log.empty());
    co_await last.wait();
    CHECK(log == "abcde");
  });
}

TEST_CASE("post takes whatever can be called without arguments") {
  on_each_backend([]() -> task<> {
    coax::reactor& here = coax::reactor::current();
    static int calls;
    calls = 0;
    coax::event last;
    coax::post(here, +[] { ++calls; });
    coax::post(here, [owned = std::make_unique<int>(5)] { calls += *owned; });
    const std::function<void()> twice = [] { calls *= 2; };
    coax::post(here, twice);
    const auto ends = [&] { last.set(); };
    coax::post(here, std::ref(ends));
    co_await last.wait();
    CHECK(calls == 12);
  });
}

namespace {

/// What a library with threads of its own offers: it calls back on one of them.
class answered_elsewhere {
 public:
  explicit answered_elsewhere(int answer) : answer_(answer) {}
  answered_elsewhere(answered_elsewhere&& other) noexcept : answer_(other.answer_) {}
  answered_elsewhere& operator=(const answered_elsewhere&) = delete;
  ~answered_elsewhere() {
    if (thread_.joinable()) thread_.join();
  }
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiting) {
    coax::reactor& here = coax::reactor::current();
    thread_ = std::thread([&here, waiting] { coax::post(here, [waiting] { waiting.resume(); }); });
  }
  int await_resume() const noexcept { return answer_; }

 private:
  int answer_;
  std::thread thread_;
};

}  // namespace

TEST_CASE("an awaitable of a library with threads resumes a task by post") {
  on_each_backend([]() -> task<> {
    const std::thread::id here = std::this_thread::get_id();
    int sum = 0;
    for (int i = 1; i <= 20; ++i) sum += co_await answered_elsewhere(i);
    CHECK(sum == 210);
    auto in_time = co_await coax::within(1h, answered_elsewhere(7));
    REQUIRE(in_time);
    CHECK(*in_time == 7);
    auto raced = co_await coax::race(answered_elsewhere(8), answered_elsewhere(9));
    CHECK((std::get<0>(raced) == 8 || std::get<1>(raced) == 9));
    CHECK(std::this_thread::get_id() == here);
  });
}

TEST_CASE("a million functions that four threads post arrive, those of each thread in order") {
  on_each_backend([]() -> task<> {
    constexpr std::size_t threads = 4;
    constexpr std::size_t each = 250'000;
    coax::reactor& here = coax::reactor::current();
    std::array<std::size_t, threads> arrived{};
    std::size_t out_of_order = 0;
    std::size_t ended = 0;
    coax::event all_arrived;
    std::vector<std::thread> posting;
    for (std::size_t t = 0; t < threads; ++t)
      posting.emplace_back([&, t] {
        for (std::size_t i = 0; i < each; ++i)
          coax::post(here, [&, t, i] {
            if (arrived[t]++ != i) ++out_of_order;
            if (i + 1 == each && ++ended == threads) all_arrived.set();
          });
      });
    co_await all_arrived.wait();
    for (std::thread& thread : posting) thread.join();
    CHECK(arrived == std::array{each, each, each, each});
    CHECK(out_of_order == 0);
  });
}

TEST_CASE("a storm of posts wakes the reactor once for all that it finds") {
  counting_reactor reactor;
  int ran = 0;
  coax::detail::run_on(reactor, [&]() -> task<> {
    for (const int storm : {1, 2, 3}) {
      std::thread([&] {
        for (int i = 0; i < 10'000; ++i) coax::post(reactor, [&] { ++ran; });
      }).join();
      while (ran < storm * 10'000) co_await coax::yield();
      CHECK(reactor.wakes == storm);
    }
  });
  CHECK(ran == 30'000);
}

TEST_CASE("what a posted function throws ends the run, which throws it") {
  by_environment([](const std::string&) {
    for (const bool from_outside : {false, true}) {
      bool unwound = false;
      struct on_exit {
        bool& flag;
        ~on_exit() { flag = true; }
      };
      const auto main_task = [&]() -> task<int> {
        const on_exit noted{unwound};
        coax::reactor& here = coax::reactor::current();
        const auto posts = [&] {
          coax::post(here, [] { throw std::out_of_range("from a posted function"); });
          coax::post(here, [] { throw std::logic_error("from the second one"); });
        };
        if (from_outside)
          std::thread(posts).join();
        else
          posts();
        co_await sleeps_for_ever();
        co_return 1;
      };
      CHECK_THROWS_AS(coax::run(main_task), std::out_of_range);
      CHECK(unwound);
    }
  });
}

TEST_CASE("what a posted function throws is not lost when the task of the run ends meanwhile") {
  const auto main_task = []() -> task<int> {
    bool thrown = false;
    coax::post(coax::reactor::current(), [&] {
      thrown = true;
      throw std::out_of_range("from a posted function");
    });
    // Does not wait once it is cancelled, and so it finishes.
    while (!thrown) co_await coax::yield();
    co_return 1;
  };
  by_environment(
      [&](const std::string&) { CHECK_THROWS_AS(coax::run(main_task), std::out_of_range); });
}

TEST_CASE("what a posted function throws in one of several threads cancels the others") {
  by_environment([](const std::string&) {
    std::atomic<int> first{0};
    const auto life = [&]() -> task<> {
      if (first++ == 0)
        coax::post(coax::reactor::current(), [] { throw std::out_of_range("from one"); });
      co_await sleeps_for_ever();
    };
    CHECK_THROWS_AS(coax::run_threads(3, life), std::out_of_range);
  });
}

TEST_CASE("posted functions that never ran are destroyed when the run ends") {
  for (const bool from_outside : {false, true}) {
    std::atomic<int> alive{0};
    std::atomic<int> ran{0};
    on_each_backend([&]() -> task<> {
      coax::reactor& here = coax::reactor::current();
      const auto posts = [&] {
        // More than a turn has room for.
        for (int i = 0; i < 1000; ++i) coax::post(here, [held = living(alive), &ran] { ++ran; });
      };
      if (from_outside)
        std::thread(posts).join();
      else
        posts();
      CHECK(alive == 1000);
      co_return;
    });
    CHECK(alive == 0);
    CHECK(ran == 0);  // what they would have used may be gone
  }
}

TEST_CASE("what is posted after the end of the run, or without a run, is destroyed unrun") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    std::atomic<int> alive{0};
    int ran = 0;
    auto reactor = reactor_of(b);
    const auto posts = [&] {
      std::thread([&] { coax::post(*reactor, [held = living(alive), &ran] { ++ran; }); }).join();
    };
    coax::detail::run_on(*reactor, []() -> task<> { co_return; });
    posts();
    CHECK(alive == 0);
    reactor = reactor_of(b);
    posts();
    CHECK(alive == 1);
    reactor.reset();
    CHECK(alive == 0);
    CHECK(ran == 0);
  }
}

TEST_CASE("a reactor may be gone as soon as a posted function has run") {
  by_environment([](const std::string&) {
    for (int round = 0; round < 300; ++round) {
      std::thread other;
      const auto main_task = [&]() -> task<> {
        coax::event over;
        coax::reactor& here = coax::reactor::current();
        other = std::thread([&] { coax::post(here, [&] { over.set(); }); });
        co_await over.wait();
      };
      coax::run(main_task);
      other.join();
    }
  });
}

TEST_CASE("threads post while the run comes to its end") {
  by_environment([](const std::string&) {
    for (int round = 0; round < 100; ++round) {
      std::atomic<int> alive{0};
      std::atomic<bool> enough{false};
      const std::unique_ptr<coax::reactor> reactor = coax::make_reactor();
      std::thread other([&] {
        while (!enough) coax::post(*reactor, [held = living(alive)] {});
      });
      coax::detail::run_on(*reactor, [&]() -> task<> {
        for (int i = 0; i < round % 7; ++i) co_await coax::yield();
      });
      enough = true;
      other.join();
      CHECK(alive == 0);
    }
  });
}

TEST_CASE("a post wakes a reactor that others post to without end") {
  on_each_backend([]() -> task<> {
    coax::reactor& here = coax::reactor::current();
    std::atomic<bool> enough{false};
    std::atomic<int> waiting{0};
    std::thread other([&] {
      while (!enough) {
        if (waiting > 1000) {
          std::this_thread::yield();
          continue;
        }
        ++waiting;
        coax::post(here, [&] { --waiting; });
      }
    });
    const fd_pair p = unix_pair();
    for (int i = 0; i < 100; ++i) {
      put(p.theirs, "x");
      std::array<std::byte, 1> some;
      auto n = co_await coax::read(p.ours.get(), some);
      REQUIRE(n);
      co_await coax::sleep_for(10us);
    }
    enough = true;
    other.join();
  });
}

#ifndef NDEBUG

namespace {

struct idle_node final : coax::ready_node {
 private:
  void run() noexcept override {}
};

/// How a child ends whose run has `intrude(reactor)` called in another thread.
template <class Intrude>
ending ending_with_intruder(coax::backend b, const Intrude& intrude) {
  return ending_of([&] {
    const auto reactor = reactor_of(b);
    coax::detail::run_on(*reactor, [&]() -> task<> {
      std::thread([&] { intrude(*reactor); }).join();
      co_return;
    });
  });
}

}  // namespace

TEST_CASE("a reactor used from another thread aborts with a message") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    CHECK(ending_with_intruder(b, [](coax::reactor& r) {
            r.turn();
          }).aborted_saying("from a thread that is not its own"));
    CHECK(ending_with_intruder(b, [](coax::reactor& r) {
            coax::operations::poll op(0, POLLIN);
            r.start(op);
          }).aborted_saying("from a thread that is not its own"));
    CHECK(ending_with_intruder(b, [](coax::reactor& r) {
            coax::operations::poll op(0, POLLIN);
            r.stop(op);
          }).aborted_saying("from a thread that is not its own"));
    CHECK(ending_with_intruder(b, [](coax::reactor& r) {
            idle_node node;
            r.make_ready(node);
          }).aborted_saying("does not run on this thread"));
    const ending runs_elsewhere = ending_of([b] {
      const auto reactor = reactor_of(b);
      std::thread([&] { coax::detail::run_on(*reactor, []() -> task<> { co_return; }); }).join();
    });
    CHECK(runs_elsewhere.aborted_saying("from a thread that is not its own"));
  }
}

TEST_CASE("a task woken or cancelled from another reactor's thread aborts with a message") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending woken = ending_of([b] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, [b]() -> task<> {
        coax::event shared;
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn([&]() -> task<> { co_await shared.wait(); });
          co_await turns();
          std::thread([&] {
            const auto other = reactor_of(b);
            coax::detail::run_on(*other, [&]() -> task<> {
              shared.set();
              co_return;
            });
          }).join();
        });
      });
    });
    CHECK(woken.aborted_saying("woken or cancelled from a thread that is not its reactor's"));
    const ending cancelled = ending_of([b] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> task<> {
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(sleeps_for_ever);
          co_await turns();
          std::thread([&] { s.cancel(); }).join();
        });
      });
    });
    CHECK(cancelled.aborted_saying("woken or cancelled from a thread that is not its reactor's"));
  }
}

TEST_CASE("a reactor used in a child of a fork aborts with a message") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending goes_on = ending_of([b] {
      const auto reactor = reactor_of(b);
      int status = 0;
      coax::detail::run_on(*reactor, [&]() -> task<> {
        const pid_t child = ::fork();
        if (child != 0) {
          ::waitpid(child, &status, 0);
          co_return;
        }
        co_await coax::yield();
      });
      if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) ::_exit(1);
    });
    INFO(goes_on.words);
    CHECK(goes_on.was_orderly());
    CHECK(goes_on.said("both sides of a fork"));
    const ending begins = ending_of([reactor = reactor_of(b)] {
      coax::detail::run_on(*reactor, []() -> task<> { co_return; });
    });
    CHECK(begins.aborted_saying("both sides of a fork"));
    const ending posts = ending_of([reactor = reactor_of(b)] { coax::post(*reactor, [] {}); });
    CHECK(posts.aborted_saying("both sides of a fork"));
  }
}

TEST_CASE("a run in a child of a fork is a run of its own") {
  by_environment([](const std::string&) {
    const auto parent_runs = []() -> task<> {
      const ending child = ending_of([] {
        // The parent's run is on the stack of the child, too, which makes nothing of it.
        std::thread([] { coax::run([]() -> task<> { co_await coax::yield(); }); }).join();
      });
      CHECK(child.was_orderly());
      co_await coax::yield();
    };
    coax::run(parent_runs);
  });
}

#endif
