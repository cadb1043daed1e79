#include <coax/io/thread_sanitizer.hpp>
#include <coax/net/stream.hpp>
#include <coax/process/blocking.hpp>
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
#include "../task/foreign.hpp"
#include "across_threads.hpp"
#include "by_environment.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

// Work on other threads: who gets its result, and who cleans up after it.

#if defined(COAX_THREAD_SANITIZER)
/// It would not let a child of this process, which has the threads of the pool, start any of its own.
extern "C" const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }
#endif

namespace {

using namespace std::chrono_literals;
using coax::task;
using pool = coax::detail::blocking_pool;

constexpr int threads_max = static_cast<int>(pool::threads_max);
constexpr int accepted_max = static_cast<int>(pool::accepted_max);

int answer() { return 42; }
std::string joined(const std::string& a, std::unique_ptr<int> b) { return a + std::to_string(*b); }

/// Waits until no thread of the pool holds anything of `count` any more.
void await_none(const std::atomic<int>& count) {
  while (count != 0) std::this_thread::yield();
}

/// Waits in the gate, then gives a value that is counted.
living passes(thread_gate& gate, living held) {
  gate.pass();
  return held;
}

}  // namespace

TEST_CASE("blocking gives what its function gives") {
  on_each_backend_and_simulation([]() -> task<> {
    const int number = co_await coax::blocking(answer);
    CHECK(number == 42);
    const std::string text = co_await coax::blocking(joined, "x", std::make_unique<int>(7));
    CHECK(text == "x7");
    auto moved = co_await coax::blocking([] { return std::make_unique<int>(5); });
    CHECK(*moved == 5);
    bool called = false;
    co_await coax::blocking([&] { called = true; });
    CHECK(called);
    const std::string owned = "kept by a closure that has a name";
    const auto size_of_it = [owned] { return owned.size(); };
    const std::size_t size = co_await coax::blocking(size_of_it);
    CHECK(size == owned.size());
    int counter = 1;
    co_await coax::blocking([](int& n) { ++n; }, std::ref(counter));
    CHECK(counter == 2);
    static_assert(std::is_void_v<coax::await_result_t<decltype(coax::blocking([] {}))>>);
  });
}

TEST_CASE("blocking throws what its function throws, in the task that waits") {
  on_each_backend_and_simulation([]() -> task<> {
    std::string caught;
    try {
      co_await coax::blocking([] { throw std::out_of_range("over there"); });
    } catch (const std::out_of_range& e) {
      caught = e.what();
    }
    CHECK(caught == "over there");
  });
}

TEST_CASE("blocking does not hold up the other tasks of the reactor") {
  on_each_backend([]() -> task<> {
    thread_gate gate;
    std::thread::id where;
    bool has_loop = true;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        co_await coax::blocking([&] {
          gate.pass();
          where = std::this_thread::get_id();
          has_loop = coax::loop::running() != nullptr;
        });
      });
      co_await coax::sleep_for(1ms);
      gate.open();
    });
    CHECK(where != std::thread::id());
    CHECK(where != std::this_thread::get_id());
    CHECK_FALSE(has_loop);
  });
}

TEST_CASE("signals are blocked in the threads of blocking, but for faults") {
  on_each_backend([]() -> task<> {
    sigset_t here;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &here);
    const sigset_t there = co_await coax::blocking([] {
      sigset_t mask;
      ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
      return mask;
    });
    for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1, SIGALRM, SIGRTMIN}) {
      CHECK(sigismember(&there, number) == 1);
      CHECK(sigismember(&here, number) == 0);
    }
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT})
      CHECK(sigismember(&there, number) == 0);
  });
}

TEST_CASE("who starts a thread of blocking has the signal mask that it had") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child = ending_of([b] {  // in which no thread has been started yet
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> task<> {
        sigset_t before;
        sigset_t after;
        ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
        co_await coax::blocking(answer);
        ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
        for (int number = 1; number <= SIGRTMAX; ++number)
          if (sigismember(&before, number) != sigismember(&after, number)) ::_exit(number);
      });
    });
    INFO(child.words);
    CHECK(child.was_orderly());
  }
}

TEST_CASE("one call after the other is made by one thread") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child = ending_of([b] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> task<> {
        const auto self = [] { return std::this_thread::get_id(); };
        const std::thread::id first = co_await coax::blocking(self);
        for (int i = 0; i < 2 * threads_max; ++i) {
          const std::thread::id next = co_await coax::blocking(self);
          if (next != first) ::_exit(1);
        }
      });
    });
    INFO(child.words);
    CHECK(child.was_orderly());
  }
}

TEST_CASE("what was given to blocking is gone when it has returned") {
  on_each_backend_and_simulation([]() -> task<> {
    std::atomic<int> alive{0};
    auto result = co_await coax::blocking([](const living& held) { return held; }, living(alive));
    CHECK(alive == 1);
    static_cast<void>(result);
    try {
      co_await coax::blocking([](const living&) { throw std::out_of_range(""); }, living(alive));
    } catch (const std::out_of_range&) {
    }
    CHECK(alive == 1);
  });
}

TEST_CASE("within gives blocking up in time, as a single wait, and the work is done all the same") {
  static_assert(std::is_same_v<
                decltype(coax::within(1s, coax::blocking(answer))),
                coax::within_wait<coax::detail::limited_wait<decltype(coax::blocking(answer))>>>);
  on_each_backend([]() -> task<> {
    std::atomic<int> alive{0};
    thread_gate gate;
    std::atomic<bool> ended{false};
    auto late =
        co_await coax::within(1ms, coax::blocking(
                                       [](thread_gate& g, std::atomic<bool>& over, living held) {
                                         g.pass();
                                         over = true;
                                         return held;
                                       },
                                       std::ref(gate), std::ref(ended), living(alive)));
    CHECK(late.error() == std::errc::timed_out);
    CHECK_FALSE(ended);
    CHECK(alive >= 1);
    gate.open();
    await_none(alive);
    CHECK(ended);
    auto in_time = co_await coax::within(1h, coax::blocking(answer));
    CHECK(in_time);
    CHECK(*in_time == 42);
    auto failed = co_await coax::within(1h, coax::blocking([]() -> coax::result<int> {
                                          return std::errc::no_such_file_or_directory;
                                        }));
    static_assert(std::is_same_v<decltype(failed), coax::result<int>>);
    CHECK(failed.error() == std::errc::no_such_file_or_directory);
  });
}

TEST_CASE("cancelling blocking unwinds the task at once, and the result is destroyed over there") {
  on_each_backend([]() -> task<> {
    std::atomic<int> alive{0};
    thread_gate gate;
    bool went_on = false;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto result = co_await coax::blocking(passes, std::ref(gate), living(alive));
        static_cast<void>(result);
        went_on = true;
      });
      co_await turns();
      s.cancel();
    });
    CHECK_FALSE(went_on);
    CHECK(alive >= 1);
    gate.open();
    await_none(alive);
  });
}

TEST_CASE("a result that came before the cancellation is delivered") {
  counting_reactor reactor;
  std::atomic<int> alive{0};
  bool delivered = false;
  coax::detail::run_on(reactor, [&]() -> task<> {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto result = co_await coax::blocking([&] { return living(alive); });
        static_cast<void>(result);
        delivered = true;
      });
      const int wakes = reactor.wakes;
      co_await coax::yield();
      while (reactor.wakes == wakes) std::this_thread::yield();  // no turn, but the result is here
      s.cancel();
    });
  });
  CHECK(delivered);
  CHECK(alive == 0);
}

TEST_CASE("a timeout does not win against a result that is there") {
  counting_reactor reactor;
  bool in_time = false;
  coax::detail::run_on(reactor, [&]() -> task<> {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto result = co_await coax::within(1min, coax::blocking(answer));
        in_time = result && *result == 42;
      });
      const int wakes = reactor.wakes;
      co_await coax::yield();
      while (reactor.wakes == wakes) std::this_thread::yield();
      reactor.later += 1h;
    });
  });
  CHECK(in_time);
}

TEST_CASE("blocking is not begun once the task was cancelled") {
  on_each_backend([]() -> task<> {
    std::atomic<int> alive{0};
    std::atomic<int> calls{0};
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.cancel();
      co_await coax::blocking([](const living&, std::atomic<int>& n) { ++n; }, living(alive),
                              std::ref(calls));
    });
    CHECK(alive == 0);
    auto result = co_await coax::blocking(answer);
    CHECK(result == 42);
    CHECK(calls == 0);
  });
}

TEST_CASE("more calls than threads wait in line, and each gets its own result") {
  on_each_backend([]() -> task<> {
    constexpr int calls = 2000;
    std::atomic<int> at_once{0};
    std::atomic<int> most{0};
    int right = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 0; i < calls; ++i)
        s.spawn(
            [&](int mine) -> task<> {
              const int got = co_await coax::blocking([&, mine] {
                const int now = ++at_once;
                for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
                }
                std::this_thread::yield();
                --at_once;
                return mine * 2;
              });
              right += got == mine * 2 ? 1 : 0;
            },
            i);
      co_return;
    });
    CHECK(right == calls);
    CHECK(most <= threads_max);
  });
}

TEST_CASE(
    "what was accepted is done though nobody waits any more; what is behind it in line is not") {
  on_each_backend([]() -> task<> {
    constexpr int behind = 100;
    std::atomic<int> alive{0};
    std::atomic<int> done{0};
    thread_gate gate;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 0; i < threads_max + accepted_max + behind; ++i)
        s.spawn([&]() -> task<> {
          co_await coax::blocking(
              [](thread_gate& g, std::atomic<int>& n, const living&) {
                g.pass();
                ++n;
              },
              std::ref(gate), std::ref(done), living(alive));
        });
      // As many as there are threads have begun, and so all others are where they will stay.
      while (alive < threads_max + accepted_max + behind) co_await coax::yield();
      gate.await_arrivals(threads_max);
      co_await turns();
      s.cancel();
    });
    CHECK(alive == threads_max + accepted_max);
    gate.open();
    await_none(alive);
    CHECK(done == threads_max + accepted_max);
  });
}

TEST_CASE("one of those in line moves up when the one before it is taken out") {
  on_each_backend([]() -> task<> {
    thread_gate gate;
    int done = 0;
    const auto passes_gate = [&]() -> task<> {
      co_await coax::blocking([&] { gate.pass(); });
      ++done;
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 0; i < threads_max + accepted_max; ++i) s.spawn(std::ref(passes_gate));
      co_await turns();
      gate.await_arrivals(threads_max);
      co_await turns();
      std::vector<std::unique_ptr<cancellable>> line;
      for (int i = 0; i < 5; ++i) line.push_back(std::make_unique<cancellable>(passes_gate()));
      co_await turns();
      for (const std::size_t each : {2U, 0U, 4U}) line[each]->cancel();
      co_await turns();
      for (const std::size_t each : {2U, 0U, 4U}) CHECK(line[each]->has_ended());
      CHECK_FALSE(line[1]->has_ended());
      CHECK_FALSE(line[3]->has_ended());
      gate.open();
      while (!line[1]->has_ended() || !line[3]->has_ended()) co_await coax::sleep_for(100us);
    });
    CHECK(done == threads_max + accepted_max + 2);
  });
}

TEST_CASE("blocking in a race is given up when another branch wins, or wins itself") {
  on_each_backend([]() -> task<> {
    thread_gate gate;
    std::atomic<int> alive{0};
    auto lost = co_await coax::race(coax::blocking(passes, std::ref(gate), living(alive)),
                                    coax::sleep_for(1ms));
    CHECK_FALSE(std::get<0>(lost));
    CHECK(std::get<1>(lost));
    gate.open();
    await_none(alive);
    auto won = co_await coax::race(coax::blocking(answer), coax::sleep_for(1h));
    CHECK(std::get<0>(won) == 42);
  });
}

TEST_CASE("a run may end while its work goes on in the pool") {
  by_environment([](const std::string&) {
    std::atomic<int> alive{0};
    thread_gate gate;
    const auto gives_up = [&]() -> task<bool> {
      auto late = co_await coax::within(1ms, coax::blocking(passes, std::ref(gate), living(alive)));
      co_return late.error() == std::errc::timed_out;
    };
    CHECK(coax::run(gives_up));
    CHECK(alive >= 1);
    gate.open();
    await_none(alive);
  });
}

TEST_CASE("at whatever moment a wait is given up, its result is delivered or destroyed") {
  by_environment([](const std::string&) {
    std::atomic<int> alive{0};
    for (int round = 0; round < 1000; ++round) {
      const auto main_task = [&]() -> task<> {
        auto result = co_await coax::within(
            std::chrono::microseconds(round % 50),
            coax::blocking([](const living& held) { return held; }, living(alive)));
        static_cast<void>(result);
      };
      coax::run(main_task);
    }
    await_none(alive);
  });
}

TEST_CASE("several reactors share the pool, and each task is resumed on its own") {
  by_environment([](const std::string&) {
    std::atomic<int> right{0};
    const auto life = [&]() -> task<> {
      const std::thread::id here = std::this_thread::get_id();
      for (int i = 0; i < 100; ++i) {
        const int got = co_await coax::blocking([i] { return i; });
        right += got == i && std::this_thread::get_id() == here ? 1 : 0;
      }
    };
    coax::run_threads(4, life);
    CHECK(right == 400);
  });
}

TEST_CASE("where a simulation says so, the function is called at once, on the reactor's thread") {
  counting_reactor reactor;
  reactor.calls_inline = true;
  coax::detail::run_on(reactor, []() -> task<> {
    const std::thread::id there =
        co_await coax::blocking([] { return std::this_thread::get_id(); });
    CHECK(there == std::this_thread::get_id());
    bool thrown = false;
    try {
      co_await coax::blocking([] { throw std::out_of_range("here"); });
    } catch (const std::out_of_range&) {
      thrown = true;
    }
    CHECK(thrown);
  });
  CHECK(reactor.wakes == 0);
}

TEST_CASE("a child of a fork has a pool of its own, whatever the parent's was doing") {
  by_environment([](const std::string&) {
    thread_gate gate;
    const auto busy = [&]() -> task<> {
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        for (int i = 0; i < threads_max + accepted_max + 5; ++i)
          s.spawn([&]() -> task<> { co_await coax::blocking([&] { gate.pass(); }); });
        co_await turns();
        gate.await_arrivals(threads_max);
        co_await turns();
        const ending child = ending_of([] {
          std::thread([] {
            const auto uses_it = []() -> task<int> { co_return co_await coax::blocking(answer); };
            if (coax::run(uses_it) != 42) ::_exit(1);
          }).join();
        });
        INFO(child.words);
        CHECK(child.was_orderly());
        gate.open();
      });
    };
    coax::run(busy);
  });
}

TEST_CASE("a process exits cleanly while work goes on") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child = ending_of([b] {
      // Not destroyed: the threads are still in it when the process ends.
      static thread_gate& never = *new thread_gate;
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> task<> {
        for (int i = 0; i < threads_max + 5; ++i) {
          auto late = co_await coax::within(1ms, coax::blocking([] { never.pass(); }));
          if (late.error() != std::errc::timed_out) ::_exit(1);
        }
      });
      std::exit(0);
    });
    INFO(child.words);
    CHECK(child.was_orderly());
    const ending inside = ending_of([b] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> task<> {
        co_await coax::with_scope([](coax::scope& s) -> task<> {
          for (int i = 0; i < 100; ++i)
            s.spawn([]() -> task<> { co_await coax::blocking(answer); });
          co_await turns();
          std::exit(0);
        });
      });
    });
    INFO(inside.words);
    CHECK(inside.was_orderly());
  }
}

TEST_CASE("where no thread can be had, blocking says so, and works again when there is one") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child = ending_of([b] {
      pthread_attr_t usual;
      pthread_attr_t huge;
      ::pthread_getattr_default_np(&usual);
      ::pthread_attr_init(&huge);
      ::pthread_attr_setstacksize(&huge, std::size_t{1} << 46);
      ::pthread_setattr_default_np(&huge);
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, [&]() -> task<> {
        std::atomic<int> alive{0};
        int refused = 0;
        constexpr int calls = accepted_max + 3;  // none of them takes a place among the accepted
        for (int i = 0; i < calls; ++i) {
          try {
            co_await coax::blocking([](const living&) {}, living(alive));
          } catch (const std::system_error& e) {
            refused += e.code() == std::errc::resource_unavailable_try_again ? 1 : 0;
          }
        }
        auto in_result = co_await coax::blocking([]() -> coax::result<int> { return 1; });
        if (in_result.error() != std::errc::resource_unavailable_try_again) ::_exit(2);
        ::pthread_setattr_default_np(&usual);
        const int got = co_await coax::blocking(answer);
        if (refused != calls || got != 42 || alive != 0) ::_exit(1);
      });
    });
    INFO(child.words);
    CHECK(child.was_orderly());
  }
}

TEST_CASE("a foreign coroutine awaits blocking, under within too") {
  on_each_backend([]() -> task<> {
    coax::event over;
    int got = 0;
    std::error_code late;
    std::atomic<int> alive{0};
    thread_gate gate;
    const auto waits = [&]() -> foreign {
      auto work = coax::blocking(answer);
      got = co_await work;
      auto limited = coax::within(1ms, coax::blocking(passes, std::ref(gate), living(alive)));
      auto result = co_await limited;
      late = result.error();
      over.set();
    };
    const foreign waiting = waits();
    co_await over.wait();
    gate.open();
    await_none(alive);
    CHECK(got == 42);
    CHECK(late == std::errc::timed_out);
  });
}

TEST_CASE("a run that ends while a foreign coroutine waits in blocking aborts with a message") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child = ending_of([b] {
      static thread_gate never;
      const auto reactor = reactor_of(b);
      std::optional<foreign> waiting;
      coax::detail::run_on(*reactor, [&]() -> task<> {
        const auto waits = []() -> foreign {
          auto work = coax::blocking([] { never.pass(); });
          co_await work;
        };
        waiting.emplace(waits());
        co_return;
      });
    });
    CHECK(child.aborted_saying("in no scope still waited for a timer or another thread"));
  }
}

TEST_CASE("a lease may end on a thread of blocking, and its bytes are its own until then") {
  on_each_backend([]() -> task<> {
    std::atomic<int> foreign = 0;
    const auto looks = [](coax::leased_buffer lease, std::byte own, std::atomic<int>& others) {
      for (const std::byte b : std::as_const(lease).bytes())
        if (b != own) ++others;
    };
    const auto connection = [&](std::byte own) -> task<> {
      fd_pair p = unix_pair();
      auto adopted = coax::stream::adopt(p.ours.get());
      REQUIRE(adopted);
      static_cast<void>(p.ours.release());
      coax::stream ours = std::move(*adopted);
      const std::string message(1000, static_cast<char>(own));
      for (int i = 0; i < 100; ++i) {
        put(p.theirs, message);
        auto lease = co_await ours.receive();
        REQUIRE(lease);
        co_await coax::blocking(looks, std::move(*lease), own, std::ref(foreign));
      }
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 1; i <= 10; ++i) s.spawn(connection, static_cast<std::byte>(i));
      co_return;
    });
    CHECK(foreign == 0);
    CHECK(coax::reactor::current().buffers_in_use() < 1100);
  });
}

TEST_CASE("leases end on other threads while their reactor does, and after it") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    for (int round = 0; round < 20; ++round) {
      std::vector<coax::leased_buffer> kept;
      std::optional<std::thread> other;
      {
        const auto reactor = reactor_of(b);
        coax::detail::run_on(*reactor, [&]() -> task<> {
          fd_pair p = unix_pair();
          auto adopted = coax::stream::adopt(p.ours.get());
          REQUIRE(adopted);
          static_cast<void>(p.ours.release());
          for (int i = 0; i < 20; ++i) {
            put(p.theirs, "x");
            auto lease = co_await adopted->receive();
            REQUIRE(lease);
            kept.push_back(std::move(*lease));
          }
          other.emplace([&] { kept.clear(); });
        });
      }
      other->join();
    }
  }
}
