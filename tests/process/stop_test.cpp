#include <coax/process/blocking.hpp>
#include <coax/process/run.hpp>
#include <coax/process/stop.hpp>
#include <coax/sync/event.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../io/each_backend.hpp"
#include "../io/sockets.hpp"
#include "../turns.hpp"
#include "across_threads.hpp"
#include "by_environment.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

// Stops that are requested by std::stop_source, from any thread.

namespace {

using namespace std::chrono_literals;
using coax::task;

struct set_at_exit {
  bool& flag;
  ~set_at_exit() { flag = true; }
};

task<> sleeps_for_ever() { co_await coax::sleep_for(1h); }
task<int> sleeps_for(coax::timeout d, int value) {
  co_await coax::sleep_for(d);
  co_return value;
}

/// As coax::run with a stop_token, on a reactor of that backend.
template <class Make>
auto run_stoppable(coax::backend b, const std::stop_token& stop, Make&& make) {
  const auto reactor = reactor_of(b);
  return coax::detail::run_on(*reactor, stop, make);
}

/// Takes a while that differs from call to call; no clock says how long.
void dawdle() {
  static std::minstd_rand random(4711);
  static std::atomic<unsigned> sink{0};
  for (unsigned left = static_cast<unsigned>(random() % 20'000); left > 0; --left) ++sink;
}

}  // namespace

TEST_CASE("a stop requested on another thread cancels the task of a run") {
  by_environment([](const std::string&) {
    std::stop_source source;
    bool unwound = false;
    const auto main_task = [&]() -> task<> {
      const set_at_exit noted{unwound};
      const std::jthread other([&] { source.request_stop(); });
      co_await sleeps_for_ever();
    };
    CHECK_FALSE(coax::run(source.get_token(), main_task));
    CHECK(unwound);
  });
}

TEST_CASE("run gives what its task gives, or nothing when it was stopped") {
  by_environment([](const std::string&) {
    std::stop_source source;
    static_assert(std::is_same_v<decltype(coax::run(source.get_token(), sleeps_for, 1ms, 1)),
                                 std::optional<int>>);
    static_assert(std::is_same_v<decltype(coax::run(source.get_token(), sleeps_for_ever)), bool>);
    CHECK(coax::run(source.get_token(), sleeps_for, 1ms, 7) == 7);
    CHECK(coax::run(coax::options{}, source.get_token(), sleeps_for, 1ms, 8) == 8);
    CHECK(coax::run(std::stop_token(), sleeps_for, 1ms, 9) == 9);
    const auto ends = []() -> task<> { co_await coax::yield(); };
    CHECK(coax::run(source.get_token(), ends));
    const auto move_only = [](std::unique_ptr<int> in) -> task<std::unique_ptr<int>> {
      co_await coax::yield();
      co_return in;
    };
    const auto out = coax::run(source.get_token(), move_only, std::make_unique<int>(3));
    REQUIRE(out);
    CHECK(**out == 3);
    const auto throws = []() -> task<int> {
      co_await coax::yield();
      throw std::out_of_range("from the task");
    };
    CHECK_THROWS_AS(coax::run(source.get_token(), throws), std::out_of_range);
    const auto stops_itself = [&]() -> task<int> {
      source.request_stop();
      co_await coax::sleep_for(1h);
      co_return 1;
    };
    CHECK_FALSE(coax::run(source.get_token(), stops_itself));
  });
}

TEST_CASE("a stop_token may be an argument like any other") {
  std::stop_source source;
  const auto looks = [](std::stop_token stop) -> task<bool> {
    co_await coax::yield();
    co_return stop.stop_requested();
  };
  CHECK_FALSE(coax::run(looks, source.get_token()));
  CHECK(coax::run(source.get_token(), looks, source.get_token()) == false);
}

TEST_CASE("a run that was stopped before it began does not begin") {
  by_environment([](const std::string&) {
    std::stop_source source;
    source.request_stop();
    bool begun = false;
    const auto main_task = [&]() -> task<int> {
      begun = true;
      co_return 1;
    };
    CHECK_FALSE(coax::run(source.get_token(), main_task));
    CHECK_FALSE(begun);
  });
}

TEST_CASE("a task that finishes beats the stop") {
  by_environment([](const std::string&) {
    std::stop_source source;
    const auto main_task = [&]() -> task<int> {
      co_await coax::yield();
      source.request_stop();
      co_return 5;
    };
    CHECK(coax::run(source.get_token(), main_task) == 5);
  });
}

TEST_CASE("a stop_source may be gone before the run, or before a scope ends") {
  by_environment([](const std::string&) {
    const std::stop_token orphan = std::stop_source().get_token();
    CHECK(coax::run(orphan, sleeps_for, 1ms, 7) == 7);
    const auto main_task = []() -> task<> {
      auto source = std::make_unique<std::stop_source>();
      co_await coax::with_scope(source->get_token(), [&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> {
          co_await coax::yield();
          source.reset();
        });
        co_await coax::sleep_for(1ms);
      });
    };
    coax::run(main_task);
  });
}

TEST_CASE("a stop cancels a scope with its body and children, and nothing around it") {
  on_each_backend([]() -> task<> {
    std::stop_source source;
    bool body_unwound = false;
    bool child_unwound = false;
    std::thread other;
    co_await coax::with_scope(source.get_token(), [&](coax::scope& s) -> task<> {
      const set_at_exit noted{body_unwound};
      s.spawn([&]() -> task<> {
        const set_at_exit also_noted{child_unwound};
        co_await sleeps_for_ever();
      });
      co_await coax::yield();
      other = std::thread([&] { source.request_stop(); });
      co_await sleeps_for_ever();
    });
    other.join();
    CHECK(body_unwound);
    CHECK(child_unwound);
    co_await coax::sleep_for(100us);  // what is around goes on
  });
}

TEST_CASE("a stop cancels the children of a scope whose body has ended") {
  on_each_backend([]() -> task<> {
    std::stop_source source;
    std::thread other;
    co_await coax::with_scope(source.get_token(), [&](coax::scope& s) -> task<> {
      s.spawn(sleeps_for_ever);
      s.spawn([&]() -> task<> {
        other = std::thread([&] { source.request_stop(); });
        co_return;
      });
      co_return;
    });
    other.join();
    CHECK(source.stop_requested());
  });
}

TEST_CASE("a scope that was stopped before runs its body up to the first wait") {
  on_each_backend([]() -> task<> {
    std::stop_source source;
    source.request_stop();
    bool begun = false;
    bool went_on = false;
    bool child_begun = false;
    co_await coax::with_scope(source.get_token(), [&](coax::scope& s) -> task<> {
      begun = true;
      s.spawn([&]() -> task<> {
        child_begun = true;
        co_return;
      });
      co_await coax::yield();
      went_on = true;
    });
    CHECK(begun);
    CHECK_FALSE(went_on);
    CHECK_FALSE(child_begun);
  });
}

TEST_CASE("a scope with a stop_token is otherwise a scope") {
  on_each_backend([]() -> task<> {
    std::stop_source source;
    int ended = 0;
    bool in_time = true;
    co_await coax::with_scope(source.get_token(), [&](coax::scope& s) -> task<> {
      for (int i = 0; i < 3; ++i)
        s.spawn([&]() -> task<> {
          co_await coax::yield();
          ++ended;
        });
      s.spawn(sleeps_for_ever);
      CHECK(s.size() == 4);
      in_time = co_await s.join_within(1ms);
    });
    CHECK(ended == 3);
    CHECK_FALSE(in_time);
    std::string caught;
    try {
      co_await coax::with_scope(source.get_token(), [](coax::scope& s) -> task<> {
        s.spawn([]() -> task<> {
          co_await coax::yield();
          throw std::out_of_range("from a child");
        });
        co_await sleeps_for_ever();
      });
    } catch (const std::out_of_range& e) {
      caught = e.what();
    }
    CHECK(caught == "from a child");
    const auto kept = [text = std::string("a body that owns something")](coax::scope&) -> task<> {
      co_await coax::yield();
      CHECK(text.size() == 26);
    };
    co_await coax::with_scope(source.get_token(), kept);
    // Cancelled from around, it unwinds like any other.
    bool went_on = false;
    co_await coax::with_scope([&](coax::scope& around) -> task<> {
      around.spawn([&]() -> task<> {
        co_await coax::with_scope(source.get_token(),
                                  [](coax::scope&) -> task<> { co_await sleeps_for_ever(); });
        went_on = true;
      });
      co_await turns();
      around.cancel();
    });
    CHECK_FALSE(went_on);
  });
}

TEST_CASE("a stop that was requested on the reactor's own thread comes at a later turn") {
  on_each_backend([]() -> task<> {
    std::stop_source source;
    int turns_after = 0;
    co_await coax::with_scope(source.get_token(), [&](coax::scope&) -> task<> {
      source.request_stop();
      for (;; ++turns_after) co_await coax::yield();
    });
    CHECK(turns_after <= 1);
    // One that nobody has seen when the scope ends is of no effect.
    std::stop_source late;
    co_await coax::with_scope(late.get_token(), [&](coax::scope&) -> task<> {
      late.request_stop();
      co_return;
    });
    co_await turns();
  });
}

TEST_CASE("one token stops many scopes, and each operation they wait in") {
  on_each_backend([]() -> task<> {
    std::stop_source source;
    const fd_pair p = pipe_to_us();
    std::atomic<int> alive{0};
    thread_gate gate;
    int stopped = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      const auto reads = [&](coax::scope&) -> task<> {
        std::array<std::byte, 1> some;
        auto n = co_await coax::read(p.ours.get(), some);
        static_cast<void>(n);
      };
      const auto blocks = [&](coax::scope&) -> task<> {
        co_await coax::blocking([](thread_gate& g, const living&) { g.pass(); }, std::ref(gate),
                                living(alive));
      };
      s.spawn([&]() -> task<> {
        co_await coax::with_scope(source.get_token(), reads);
        ++stopped;
      });
      s.spawn([&]() -> task<> {
        co_await coax::with_scope(source.get_token(), blocks);
        ++stopped;
      });
      co_await turns();
      const std::jthread other([&] { source.request_stop(); });
      co_return;
    });
    CHECK(stopped == 2);
    gate.open();
    while (alive != 0) std::this_thread::yield();
  });
}

TEST_CASE("a stop at any moment, while a run begins, goes on or ends") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    for (int round = 0; round < 1000; ++round) {
      std::stop_source source;
      const std::stop_token stop = source.get_token();
      std::atomic<bool> go{false};
      std::thread other([&go, own = std::move(source)]() mutable {
        while (!go) {
        }
        dawdle();
        own.request_stop();
      });
      go = true;
      const auto ended = run_stoppable(b, stop, [round]() -> task<int> {
        for (int i = 0; i < round % 8; ++i) co_await coax::yield();
        co_return round;
      });
      if (ended) CHECK(*ended == round);
      other.join();
      CHECK(stop.stop_requested());
    }
  }
}

TEST_CASE("a stop at any moment, while a scope begins, goes on or ends") {
  on_each_backend([]() -> task<> {
    int ended = 0;
    for (int round = 0; round < 1000; ++round) {
      std::stop_source source;
      std::thread other([&] {
        dawdle();
        source.request_stop();
      });
      co_await coax::with_scope(source.get_token(), [&](coax::scope& s) -> task<> {
        for (int i = 0; i < 3; ++i)
          s.spawn([]() -> task<> {
            for (int n = 0; n < 3; ++n) co_await coax::yield();
          });
        for (int i = 0; i < round % 8; ++i) co_await coax::yield();
      });
      ++ended;
      other.join();
    }
    CHECK(ended == 1000);
  });
}

TEST_CASE("a stop that comes as its scope ends does not reach the next scope") {
  on_each_backend([]() -> task<> {
    std::stop_source late;
    std::stop_source never;
    bool went_on = false;
    const auto first = [&](coax::scope&) -> task<> {
      std::thread([&] { late.request_stop(); }).join();
      co_return;
    };
    const auto second = [&](coax::scope&) -> task<> {
      co_await turns(5);
      went_on = true;
    };
    co_await coax::with_scope(late.get_token(), first);
    co_await coax::with_scope(never.get_token(), second);  // in the memory of the first
    CHECK(went_on);
  });
}

TEST_CASE("a stop that a task asks for itself holds at its next wait") {
  on_each_backend([]() -> task<> {
    const fd_pair p = pipe_to_us();
    std::stop_source source;
    const auto stops = [&](coax::scope&) -> task<> {
      source.request_stop();
      auto written = co_await coax::write(p.theirs.get(), "x");
      static_cast<void>(written);
    };
    co_await coax::with_scope(source.get_token(), stops);
    CHECK(drain(p.ours.get()).empty());
  });
}
