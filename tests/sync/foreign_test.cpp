#include <coax/sync/channel.hpp>
#include <coax/sync/condition.hpp>
#include <coax/sync/event.hpp>
#include <coax/sync/mutex.hpp>
#include <coax/sync/semaphore.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../task/death.hpp"
#include "../task/foreign.hpp"
#include "../task/probes.hpp"

#include <coroutine>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

// Coroutines of another library beside tasks: they wait in the same lines and wake each other.

using namespace std::chrono_literals;

namespace {

coax::task<> settle_turns() {
  for (int i = 0; i < 5; ++i) co_await coax::yield();
}

}  // namespace

TEST_CASE("a foreign coroutine waits for an event that a task sets", "[foreign]") {
  test_loop loop;
  loop.run([]() -> coax::task<> {
    coax::event e;
    const auto waits = [&]() -> foreign { co_await e.wait(); };
    const foreign f = waits();
    co_await settle_turns();
    CHECK_FALSE(f.is_done());
    e.set();
    co_await settle_turns();
    CHECK(f.is_done());
  });
}

TEST_CASE("foreign coroutines and tasks take their turns at a mutex", "[foreign]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> coax::task<> {
    coax::mutex m;
    const auto locks = [&](char name) -> foreign {
      auto held = co_await m.lock();
      log += name;
      co_await coax::yield();
      log += name;
    };
    auto held = co_await m.lock();
    const foreign a = locks('a');
    const foreign b = locks('b');
    co_await settle_turns();
    CHECK(log.empty());
    held.unlock();
    auto again = co_await m.lock();
    log += '.';
    CHECK(a.is_done());
    CHECK(b.is_done());
  });
  CHECK(log == "aabb.");
}

TEST_CASE("a foreign coroutine has permits of a semaphore, or waits for one in vain", "[foreign]") {
  test_loop loop;
  loop.run([]() -> coax::task<> {
    coax::semaphore s(1);
    std::error_code why;
    const auto acquires = [&]() -> foreign {
      auto one = co_await s.acquire();
      auto two = co_await coax::within(1s, s.acquire());
      why = two.error();
    };
    const foreign f = acquires();
    co_await coax::sleep_for(2s);
    CHECK(f.is_done());
    CHECK(why == std::errc::timed_out);
    auto free_again = co_await coax::within(1s, s.acquire());
    CHECK(free_again);
  });
}

TEST_CASE("a foreign coroutine waits on a condition, with the lock and in time", "[foreign]") {
  test_loop loop;
  loop.run([]() -> coax::task<> {
    coax::mutex m;
    coax::condition changed;
    bool notified = false;
    std::error_code why;
    const auto waits = [&]() -> foreign {
      auto held = co_await m.lock();
      co_await changed.wait(held);
      notified = true;
      auto late = co_await coax::within(1s, changed.wait(held));
      why = late.error();
    };
    const foreign f = waits();
    {
      auto held = co_await m.lock();
      changed.notify_one();
      co_await settle_turns();
      CHECK_FALSE(notified);
    }
    co_await coax::sleep_for(2s);
    CHECK(notified);
    CHECK(why == std::errc::timed_out);
    CHECK(f.is_done());
  });
}

TEST_CASE("a channel connects foreign coroutines and tasks, in both directions", "[foreign]") {
  test_loop loop;
  std::string got;
  loop.run([&]() -> coax::task<> {
    coax::channel<char> there(1);
    coax::channel<char> back(0);
    const auto echoes = [&]() -> foreign {
      while (auto c = co_await there.receive()) co_await back.send(*c);
      back.close();
    };
    const foreign f = echoes();
    for (const char c : {'a', 'b', 'c'}) {
      const bool sent = co_await there.send(c);
      CHECK(sent);
      auto echoed = co_await back.receive();
      got += echoed.value_or('?');
    }
    there.close();
    auto none = co_await back.receive();
    CHECK_FALSE(none);
    CHECK(f.is_done());
  });
  CHECK(got == "abc");
}

TEST_CASE("a foreign coroutine parks as a worker, and reserves one", "[foreign]") {
  test_loop loop;
  loop.run([]() -> coax::task<> {
    coax::worker_stack<std::unique_ptr<int>> idle;
    int served = 0;
    const auto works = [&]() -> foreign {
      while (auto item = co_await idle.park()) served += **item;
    };
    const auto hands_off = [&](int value) -> foreign {
      auto worker = co_await idle.reserve();
      worker->hand_off(std::make_unique<int>(value));
    };
    const foreign waits_first = hands_off(1);
    const foreign worker = works();
    co_await settle_turns();
    auto mine = co_await idle.reserve();
    mine->hand_off(std::make_unique<int>(10));
    co_await settle_turns();
    CHECK(served == 11);
    CHECK(waits_first.is_done());
    idle.close();
    co_await settle_turns();
    CHECK(worker.is_done());
  });
}

TEST_CASE("what a foreign coroutine waits for must not be destroyed", "[foreign]") {
  const auto destroys = [] {
    manual_loop loop;
    loop.inside([] {
      std::optional<foreign> left;
      coax::event e;
      const auto waits = [&]() -> foreign { co_await e.wait(); };
      left.emplace(waits());
    });
  };
  CHECK(ending_of(destroys).aborted_saying("an event was destroyed while somebody waited"));
}
