#include <coax/io/statistics.hpp>
#include <coax/process/run.hpp>
#include <coax/process/signals.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../io/each_backend.hpp"
#include "../turns.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

namespace {

using namespace std::chrono_literals;
using coax::task;

/// The descriptor that signals come through stays open as long as the process: open it before any
/// are counted.
[[maybe_unused]] const coax::detail::signal_hub& opened = coax::detail::signal_hub::instance();

void raise_here(int number) { REQUIRE(::kill(::getpid(), number) == 0); }

task<> wait_for(coax::signal_set wanted, int& into) {
  const int number = co_await coax::signals(wanted);
  into = number;
}

bool has_default_action(int number) {
  struct sigaction now{};
  ::sigaction(number, nullptr, &now);
  return (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL;
}

}  // namespace

TEST_CASE("a signal wakes the task that waits for it") {
  on_each_backend([]() -> task<> {
    for (int i = 0; i < 3; ++i) {
      int got = 0;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(wait_for, coax::signal_set(SIGUSR1, SIGUSR2), std::ref(got));
        co_await turns(i);
        CHECK(got == 0);
        if (i == 0) co_await coax::yield();  // it has to have begun
        raise_here(i % 2 == 0 ? SIGUSR1 : SIGUSR2);
      });
      CHECK(got == (i % 2 == 0 ? SIGUSR1 : SIGUSR2));
    }
  });
  CHECK(has_default_action(SIGUSR1));
  CHECK(has_default_action(SIGUSR2));
}

TEST_CASE("those who wait for a signal wake in the order they came") {
  on_each_backend([]() -> task<> {
    std::string order;
    const auto wait = [&order](char name) -> task<> {
      const int number = co_await coax::signals({SIGUSR1});
      CHECK(number == SIGUSR1);
      order += name;
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (const char name : {'a', 'b', 'c'}) s.spawn(std::ref(wait), name);
      co_await turns(2);
      raise_here(SIGUSR1);
    });
    CHECK(order == "abc");
  });
}

TEST_CASE("everybody who waits for a signal is told") {
  on_each_backend([]() -> task<> {
    int both[2] = {};
    int other = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(both[0]));
      s.spawn(wait_for, coax::signal_set(SIGUSR1, SIGUSR2), std::ref(both[1]));
      s.spawn(wait_for, coax::signal_set(SIGUSR2), std::ref(other));
      co_await turns(2);
      raise_here(SIGUSR1);
      while (both[0] == 0 || both[1] == 0) co_await coax::yield();
      co_await turns(5);
      CHECK(other == 0);
      raise_here(SIGUSR2);
    });
    CHECK((both[0] == SIGUSR1 && both[1] == SIGUSR1));
    CHECK(other == SIGUSR2);
  });
}

TEST_CASE("everybody is told in every thread") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    for (int round = 0; round < 10; ++round) {
      std::atomic<int> waiting{0};
      std::atomic<int> told{0};
      const auto life = [&] {
        const auto reactor = reactor_of(b);
        coax::detail::run_on(*reactor, [&]() -> task<> {
          auto first = coax::signals({SIGUSR1});
          const auto announce = [&]() -> task<> {
            ++waiting;
            co_return;
          };
          co_await coax::with_scope([&](coax::scope& s) -> task<> {
            s.spawn(std::ref(announce));  // its turn comes when the body waits
            const int number = co_await std::move(first);
            if (number == SIGUSR1) ++told;
          });
        });
      };
      std::thread one(life);
      std::thread another(life);
      while (waiting != 2) std::this_thread::yield();
      raise_here(SIGUSR1);
      one.join();
      another.join();
      CHECK(told == 2);
    }
  }
  CHECK(has_default_action(SIGUSR1));
}

TEST_CASE("a signal that comes while nobody waits is kept for the next who does") {
  on_each_backend([]() -> task<> {
    auto later = coax::signals({SIGUSR1, SIGUSR2});
    raise_here(SIGUSR2);
    raise_here(SIGUSR1);
    co_await turns(3);
    raise_here(SIGUSR1);  // twice is once, as everywhere with signals
    const int first = co_await std::move(later);
    const int second = co_await coax::signals({SIGUSR1, SIGUSR2});
    CHECK(((first == SIGUSR1 && second == SIGUSR2) || (first == SIGUSR2 && second == SIGUSR1)));
    auto third = co_await coax::within(1ms, coax::signals({SIGUSR1, SIGUSR2}));
    CHECK(third.error() == std::errc::timed_out);
  });
}

TEST_CASE("a signal that comes while nobody waits is kept in each run that has asked for it") {
  on_each_backend([]() -> task<> {
    auto later = coax::signals({SIGUSR1});
    std::atomic<bool> asked{false};
    std::atomic<bool> raised{false};
    std::thread other([&] {
      coax::run([&]() -> task<> {
        auto theirs = coax::signals({SIGUSR1});
        asked = true;
        while (!raised) co_await coax::yield();
        const int number = co_await std::move(theirs);
        CHECK(number == SIGUSR1);
      });
    });
    while (!asked) co_await coax::yield();
    raise_here(SIGUSR1);
    raised = true;
    other.join();
    auto ours = co_await coax::within(1ms, std::move(later));
    CHECK((ours && *ours == SIGUSR1));
  });
}

TEST_CASE("a signal that nobody has taken is told to a run that asks for it only later") {
  on_each_backend([]() -> task<> {
    auto later = coax::signals({SIGUSR1});
    raise_here(SIGUSR1);
    co_await turns(3);
    std::thread([] {
      coax::run([]() -> task<> {
        auto theirs = co_await coax::within(1ms, coax::signals({SIGUSR1}));
        CHECK((theirs && *theirs == SIGUSR1));
      });
    }).join();
    const int ours = co_await std::move(later);
    CHECK(ours == SIGUSR1);
  });
}

TEST_CASE("after a signal the reactor sleeps again") {
  on_each_backend([]() -> task<> {
    auto later = coax::signals({SIGUSR1});
    raise_here(SIGUSR1);
    const int number = co_await std::move(later);
    CHECK(number == SIGUSR1);
    co_await turns(3);
    const coax::reactor& here = coax::reactor::current();
    const auto before = coax::statistics(here).turns;
    co_await coax::sleep_for(5ms);
    CHECK(coax::statistics(here).turns - before < 10);
  });
}

TEST_CASE("signals race with other things") {
  on_each_backend([]() -> task<> {
    const auto slow = co_await coax::race(coax::signals({SIGUSR1}), coax::sleep_for(1ms));
    CHECK(!std::get<0>(slow));
    CHECK(std::get<1>(slow));
    int told = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      const auto raise_soon = []() -> task<> {
        co_await turns(3);
        raise_here(SIGUSR1);
      };
      s.spawn(raise_soon);
      const auto fast = co_await coax::race(coax::sleep_for(1h), coax::signals({SIGUSR1, SIGTERM}));
      CHECK(!std::get<0>(fast));
      told = std::get<1>(fast).value_or(0);
    });
    CHECK(told == SIGUSR1);
  });
}

TEST_CASE("a timeout ends the wait for a signal, and the next one is told") {
  on_each_backend([]() -> task<> {
    for (int i = 0; i < 3; ++i) {
      auto none = co_await coax::within(1ms, coax::signals({SIGUSR1}));
      CHECK(none.error() == std::errc::timed_out);
    }
    raise_here(SIGUSR1);
    auto kept = co_await coax::within(1h, coax::signals({SIGUSR1}));
    REQUIRE(kept);
    CHECK(*kept == SIGUSR1);
  });
}

TEST_CASE(
    "a signal that comes together with a cancellation is told once, to the one or to the next") {
  on_each_backend([]() -> task<> {
    for (int before = 0; before < 4; ++before) {
      for (int between = 0; between < 4; ++between) {
        INFO(before << " turns before, " << between << " between");
        int first = 0;
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(first));
          auto caught = coax::signals({SIGUSR1});  // should the child not have begun
          co_await turns(before);
          raise_here(SIGUSR1);
          co_await turns(between);
          co_await s.join_within(0ms);
        });
        auto next = co_await coax::within(2ms, coax::signals({SIGUSR1}));
        CHECK((first == SIGUSR1) != static_cast<bool>(next));
      }
    }
  });
}

TEST_CASE("a number that is no signal to wait for is refused at the call") {
  on_each_backend([]() -> task<> {
    for (const int number :
         {0, -1, 65, 1000, SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, 32, 33}) {
      INFO("number " << number);
      CHECK_THROWS_AS(coax::signals({number}), std::invalid_argument);
      CHECK_THROWS_AS(coax::signals({SIGUSR1, number}), std::invalid_argument);
    }
    co_return;
  });
  CHECK(has_default_action(SIGUSR1));  // refused before anything was done
}

TEST_CASE("the last of the real-time signals can be waited for") {
  on_each_backend([]() -> task<> {
    auto later = coax::signals({SIGRTMAX});
    raise_here(SIGRTMAX);
    const int number = co_await std::move(later);
    CHECK(number == SIGRTMAX);
  });
}
