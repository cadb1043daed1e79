#include <coax/process/run.hpp>
#include <coax/process/signals.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>

#include "../catch.hpp"
#include "../io/each_backend.hpp"
#include "../task/death.hpp"
#include "../turns.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

// Signals before, after and beside a run: former handlers, blocked signals, forks.

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

std::atomic<int> calls_of_own_handler{0};
void own_handler(int) { ++calls_of_own_handler; }

/// Gives a signal a handler of the test's for a while.
class own_handler_for {
 public:
  explicit own_handler_for(int number)
      : number_(number), before_(std::signal(number, own_handler)) {
    calls_of_own_handler = 0;
  }
  own_handler_for(const own_handler_for&) = delete;
  own_handler_for& operator=(const own_handler_for&) = delete;
  ~own_handler_for() { std::signal(number_, before_); }

 private:
  int number_;
  void (*before_)(int);
};

}  // namespace

TEST_CASE("a signal that nobody asked for is left alone") {
  const own_handler_for mine(SIGUSR2);
  on_each_backend([]() -> task<> {
    calls_of_own_handler = 0;
    int got = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(got));
      co_await turns(2);
      raise_here(SIGUSR2);
      CHECK(calls_of_own_handler == 1);
      co_await turns(3);
      CHECK(got == 0);
      raise_here(SIGUSR1);
    });
    CHECK(got == SIGUSR1);
  });
}

TEST_CASE("a signal that nobody took has its former effect at the end of the run") {
  const own_handler_for mine(SIGUSR1);
  on_each_backend([]() -> task<> {
    const int calls = calls_of_own_handler;
    auto never_awaited = coax::signals({SIGUSR1});
    raise_here(SIGUSR1);
    co_await turns(3);
    CHECK(calls_of_own_handler == calls);
  });
  CHECK(calls_of_own_handler == static_cast<int>(backends_here().size()));

  const ending how = ending_of([] {
    coax::run([]() -> task<> {
      auto never_awaited = coax::signals({SIGTERM});
      ::kill(::getpid(), SIGTERM);
      co_await turns(3);
    });
    std::fprintf(stderr, "the run has ended, and the process has not");
  });
  CHECK(how.signal == SIGTERM);
  CHECK(how.words.empty());
}

TEST_CASE("a run that ends at once gives its signals back all the same") {
  for (int i = 0; i < 3; ++i)
    on_each_backend([]() -> task<> {
      auto never_awaited = coax::signals({SIGUSR1});
      CHECK(!has_default_action(SIGUSR1));
      co_return;  // before the reactor's own task for signals has begun
    });
  CHECK(has_default_action(SIGUSR1));
  // The next run may find its reactor where the last one's was.
  on_each_backend([]() -> task<> {
    int got = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(got));
      co_await turns(2);
      raise_here(SIGUSR1);
      for (int i = 0; i < 1000 && got == 0; ++i) co_await coax::yield();
      CHECK(got == SIGUSR1);
      s.cancel();
    });
  });
}

TEST_CASE(
    "signals that were blocked are waited for all the same, and blocked again after the run") {
  sigset_t blocked;
  sigset_t before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  const auto waits = []() -> task<int> {
    auto later = coax::signals({SIGUSR1});
    raise_here(SIGUSR1);
    const int number = co_await std::move(later);
    co_return number;
  };
  CHECK(coax::run(waits) == SIGUSR1);
  sigset_t after;
  ::pthread_sigmask(SIG_SETMASK, &before, &after);
  CHECK(sigismember(&after, SIGUSR1) == 1);
}

TEST_CASE(
    "a signal that was blocked before the run, and that nobody took, is still held after it") {
  const own_handler_for mine(SIGUSR1);
  sigset_t blocked;
  sigset_t before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  for (const coax::backend b : backends_here()) {
    for (const bool fails : {false, true}) {
      INFO("on " << name_of(b) << (fails ? ", with an exception" : ""));
      calls_of_own_handler = 0;
      coax::options o;
      o.backend = b;
      const auto life = [&]() -> task<> {
        auto never_awaited = coax::signals({SIGUSR1});
        raise_here(SIGUSR1);
        co_await turns(2);
        if (fails) throw std::domain_error("on the way");
      };
      if (fails)
        CHECK_THROWS_AS(coax::run(o, life), std::domain_error);
      else
        coax::run(o, life);
      CHECK(calls_of_own_handler == 0);
      sigset_t held;
      ::sigpending(&held);
      CHECK(sigismember(&held, SIGUSR1) == 1);
      ::pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
      CHECK(calls_of_own_handler == 1);
      ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    }
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_CASE("the former handler has its signals back after the run, and only then") {
  const own_handler_for mine(SIGUSR1);
  const auto waits = []() -> task<int> {
    auto later = coax::signals({SIGUSR1});
    raise_here(SIGUSR1);
    const int number = co_await std::move(later);
    co_return number;
  };
  CHECK(coax::run(waits) == SIGUSR1);
  CHECK(calls_of_own_handler == 0);
  raise_here(SIGUSR1);
  CHECK(calls_of_own_handler == 1);
}

TEST_CASE("after a fork the child's signals are its own") {
  const own_handler_for mine(SIGUSR1);
  on_each_backend([]() -> task<> {  // so that there is something to inherit
    auto later = coax::signals({SIGUSR1});
    raise_here(SIGUSR1);
    const int number = co_await std::move(later);
    CHECK(number == SIGUSR1);
  });
  for (const coax::backend b : backends_here()) {
    const ending how = ending_of([&] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> task<> {
        int got = 0;
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(got));
          co_await turns(2);
          raise_here(SIGUSR1);
        });
        ::_exit(got == SIGUSR1 ? 0 : 2);
      });
    });
    CHECK(how.was_orderly());
  }
  CHECK(calls_of_own_handler == 0);
}

TEST_CASE("a child forked in the middle of a run has neither its parent's waits nor its signals") {
  on_each_backend([]() -> task<> {
    int parents = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(parents));
      co_await turns(3);
      const ending how = ending_of([] {
        // A child as a program would fork it: without a reactor, until it makes one of its own.
        std::thread fresh([] {
          const int got = coax::run([]() -> task<int> {
            auto later = coax::signals({SIGUSR1});
            ::kill(::getpid(), SIGUSR1);
            const int number = co_await std::move(later);
            co_return number;
          });
          ::_exit(got == SIGUSR1 ? 0 : 2);
        });
        fresh.join();
      });
      CHECK(how.was_orderly());
      co_await turns(3);
      CHECK(parents == 0);
      raise_here(SIGUSR1);
    });
    CHECK(parents == SIGUSR1);
  });
}

TEST_CASE("a child forked while a signal is on its way, or waits to be taken, has not had it") {
  for (const int turns_before_the_fork : {0, 3}) {
    on_each_backend([turns_before_the_fork]() -> task<> {
      auto later = coax::signals({SIGUSR1});
      raise_here(SIGUSR1);
      co_await turns(turns_before_the_fork);
      const ending how = ending_of([] {
        std::thread fresh([] {
          int got = 0;
          coax::run([&]() -> task<> {
            co_await coax::with_scope([&](coax::scope& s) -> task<> {
              s.spawn(wait_for, coax::signal_set(SIGUSR1), std::ref(got));
              co_await turns(3);
              s.cancel();
            });
          });
          ::_exit(got == 0 ? 0 : 2);
        });
        fresh.join();
      });
      CHECK(how.was_orderly());
      const int number = co_await std::move(later);
      CHECK(number == SIGUSR1);
    });
  }
}

TEST_CASE("a child of a fork that asks for signals has no descriptor of its parent's for them") {
  const ending how = ending_of([] {
    std::thread fresh([] {
      const int before = open_descriptors();
      coax::run([]() -> task<> {
        auto later = coax::signals({SIGUSR1});
        ::kill(::getpid(), SIGUSR1);
        const int number = co_await std::move(later);
        static_cast<void>(number);
      });
      ::_exit(open_descriptors() == before ? 0 : 2);
    });
    fresh.join();
  });
  CHECK(how.was_orderly());
}

TEST_CASE("a signal that is asked for lets the system calls of other threads go on") {
  on_each_backend([]() -> task<> {
    auto later = coax::signals({SIGUSR1});
    struct sigaction now{};
    ::sigaction(SIGUSR1, nullptr, &now);
    CHECK((now.sa_flags & SA_RESTART) != 0);
    raise_here(SIGUSR1);
    const int number = co_await std::move(later);
    CHECK(number == SIGUSR1);
  });
}
