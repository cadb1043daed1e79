#include <coax/process/signals.hpp>
#include <coax/process/threads.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "by_environment.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

// Signals to a process whose threads come to wait for them at different times.

namespace {

using namespace std::chrono_literals;
using coax::task;

/// Threads that wait until all of them have come this far.
task<> until(const std::atomic<int>& count, int wanted) {
  while (count < wanted) co_await coax::yield();
}

bool has_default_action(int number) {
  struct sigaction now{};
  ::sigaction(number, nullptr, &now);
  return (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL;
}

void raise_here() { ::kill(::getpid(), SIGUSR1); }

/// Counts when a thread has ended: as the last of its thread_local objects.
class counts_the_end {
 public:
  explicit counts_the_end(std::atomic<int>* gone) noexcept : gone_(gone) {}
  counts_the_end(const counts_the_end&) = delete;
  counts_the_end& operator=(const counts_the_end&) = delete;
  ~counts_the_end() {
    if (gone_ != nullptr) ++*gone_;
  }

 private:
  std::atomic<int>* gone_;
};

std::atomic<int> calls_of_own_handler{0};

/// Gives SIGUSR1 a handler of the test's for a while.
class own_handler {
 public:
  own_handler() : before_(std::signal(SIGUSR1, [](int) { ++calls_of_own_handler; })) {
    calls_of_own_handler = 0;
  }
  own_handler(const own_handler&) = delete;
  own_handler& operator=(const own_handler&) = delete;
  ~own_handler() { std::signal(SIGUSR1, before_); }

 private:
  void (*before_)(int);
};

}  // namespace

TEST_CASE("every thread is told of a signal") {
  by_environment([](const std::string&) {
    for (int round = 0; round < 20; ++round) {
      constexpr int n = 5;
      std::atomic<int> waiting{0};
      std::atomic<int> told{0};
      const auto life = [&]() -> task<> {
        auto first = coax::signals({SIGUSR1});
        const auto announce = [&]() -> task<> {
          if (++waiting == n) ::kill(::getpid(), SIGUSR1);
          co_return;
        };
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(std::ref(announce));  // its turn comes when the body waits
          const int number = co_await std::move(first);
          told += number == SIGUSR1 ? 1 : 0;
        });
      };
      coax::run_threads(n, life);
      CHECK(told == n);
    }
    struct sigaction now{};
    ::sigaction(SIGUSR1, nullptr, &now);
    CHECK(now.sa_handler == SIG_DFL);
  });
}

TEST_CASE("a thread that waits for a signal only after it came is told too") {
  by_environment([](const std::string&) {
    for (const bool had_asked : {true, false}) {
      INFO("the late ones " << (had_asked ? "had" : "had not") << " called signals before");
      std::atomic<int> turn{0};
      std::atomic<int> asked{0};
      std::atomic<int> told{0};
      std::atomic<int> told_once{0};
      const auto life = [&]() -> task<> {
        if (turn++ == 0) {
          auto first = coax::signals({SIGUSR1});
          ++asked;
          co_await until(asked, 3);
          raise_here();
          const int number = co_await std::move(first);
          told += number == SIGUSR1 ? 1 : 0;
          co_return;  // others of the run have not heard of it yet
        }
        std::optional<task<int>> first;
        if (had_asked) first = coax::signals({SIGUSR1});
        ++asked;
        co_await until(told, 1);
        if (!had_asked) first = coax::signals({SIGUSR1});
        auto number = co_await coax::within(10s, std::move(*first));
        told += number && *number == SIGUSR1 ? 1 : 0;
        auto again = co_await coax::within(1ms, coax::signals({SIGUSR1}));
        told_once += again.error() == std::errc::timed_out ? 1 : 0;
      };
      coax::run_threads(3, life);
      CHECK(told == 3);
      CHECK(told_once == 2);
      CHECK(has_default_action(SIGUSR1));
    }
  });
}

TEST_CASE("each thread hears a signal as often as every other") {
  by_environment([](const std::string&) {
    constexpr int n = 3;
    constexpr int times = 20;
    std::atomic<int> heard{0};
    std::atomic<int> right{0};
    std::atomic<int> turn{0};
    const auto life = [&]() -> task<> {
      const int mine = turn++;
      auto next = coax::signals({SIGUSR1});
      co_await until(turn, n);
      for (int time = 0; time < times; ++time) {
        if (mine == time % n) raise_here();
        // One may wait already when it comes; the others come to it when that one has heard it.
        co_await until(heard, time * n + (mine + time) % n);
        auto number = co_await coax::within(10s, std::move(next));
        right += number && *number == SIGUSR1 ? 1 : 0;
        next = coax::signals({SIGUSR1});
        ++heard;
        co_await until(heard, (time + 1) * n);
      }
    };
    coax::run_threads(n, life);
    CHECK(right == n * times);
  });
}

TEST_CASE("a signal that one thread took is taken, though another never waits") {
  const own_handler mine;
  by_environment([](const std::string&) {
    std::atomic<int> turn{0};
    std::atomic<int> asked{0};
    std::atomic<int> told{0};
    const auto life = [&]() -> task<> {
      const bool waits = turn++ == 0;
      auto first = coax::signals({SIGUSR1});
      ++asked;
      if (waits) {
        co_await until(asked, 2);
        raise_here();
        const int number = co_await std::move(first);
        told += number == SIGUSR1 ? 1 : 0;
      } else {
        co_await until(told, 1);
      }
    };
    coax::run_threads(2, life);
    CHECK(told == 1);
    CHECK(calls_of_own_handler == 0);
  });
}

TEST_CASE("signals stay caught until the last thread has ended") {
  const own_handler mine;
  by_environment([](const std::string&) {
    calls_of_own_handler = 0;
    std::atomic<int> turn{0};
    std::atomic<int> gone{0};
    bool stayed_caught = false;
    const auto life = [&]() -> task<> {
      const bool stays = turn++ > 0;
      thread_local const counts_the_end of_this_thread(stays ? nullptr : &gone);
      if (!stays) {
        auto never_awaited = coax::signals({SIGUSR1});
        co_return;
      }
      co_await until(gone, 1);  // nobody is left who had asked for it
      raise_here();
      stayed_caught = calls_of_own_handler == 0;
    };
    coax::run_threads(2, life);
    CHECK(stayed_caught);
    CHECK(calls_of_own_handler == 1);  // nobody took it
    raise_here();
    CHECK(calls_of_own_handler == 2);
  });
}

TEST_CASE("a thread that begins only after a signal came is told too") {
  by_environment([](const std::string&) {
    coax::detail::thread_group group;  // of threads that never live at the same time
    int told = 0;
    const auto life = [&](bool raises) -> task<> {
      auto wait = coax::signals({SIGUSR1});
      if (raises) raise_here();
      auto number = co_await coax::within(10s, std::move(wait));
      told += number && *number == SIGUSR1 ? 1 : 0;
    };
    for (const bool raises : {true, false})
      std::thread([&] { coax::detail::run_member(group, [&] { return life(raises); }); }).join();
    group.rethrow_failure();
    CHECK(told == 2);
  });
}

TEST_CASE(
    "a signal that was blocked before run_threads, and that nobody took, is pending after it") {
  const sigset_t one = coax::detail::set_of(coax::detail::signal_bit(SIGUSR1));
  REQUIRE(::pthread_sigmask(SIG_BLOCK, &one, nullptr) == 0);
  by_environment([&](const std::string&) {
    coax::run_threads(1, []() -> task<> {
      auto never_awaited = coax::signals({SIGUSR1});
      ::kill(::getpid(), SIGUSR1);
      co_return;
    });
    const timespec at_once{};
    CHECK(::sigtimedwait(&one, nullptr, &at_once) == SIGUSR1);
  });
  ::pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
}
