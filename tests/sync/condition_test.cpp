#include <coax/sync/condition.hpp>

#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../task/death.hpp"
#include "../task/manual_loop.hpp"
#include "../task/probes.hpp"
#include "random_trial.hpp"

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

using namespace std::chrono_literals;

namespace {

/// Waits on the condition, says so in capitals when it goes on.
coax::task<> waits(coax::condition& c, std::string& log, char name) {
  co_await c.wait();
  log += name;
}

/// The same with the lock; it keeps the lock until it is told.
coax::task<> waits_locked(coax::condition& c, coax::mutex& m, std::string& log, char name,
                          script& until) {
  auto held = co_await m.lock();
  const named unwinding(log, '~');  // destroyed while it holds the lock
  co_await c.wait(held);
  log += name;
  co_await scripted_wait(until);
}

/// Waits at most a second, and says how that ended.
coax::task<> waits_in_time(coax::condition& c, coax::mutex& m, std::string& log) {
  auto held = co_await m.lock();
  const auto notified = co_await coax::within(1s, c.wait(held));
  log += notified ? "notified" : notified.error() == std::errc::timed_out ? "timed out" : "?";
  auto busy = co_await coax::within(0s, m.lock());
  log += busy ? ", not locked" : ", locked";
}

coax::task<> takes(coax::mutex& m, std::optional<coax::mutex::guard>& into) {
  into = co_await m.lock();
}

}  // namespace

TEST_CASE("notify_one wakes the one who has waited longest, notify_all all of them in order",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  std::string log;
  std::unique_ptr<watched<>> all[5];
  for (int i = 0; i < 5; ++i)
    all[i] = std::make_unique<watched<>>(*loop, waits(c, log, static_cast<char>('a' + i)));
  loop->settle();
  CHECK(log.empty());
  loop->inside([&] { c.notify_one(); });
  loop->settle();
  CHECK(log == "a");
  loop->inside([&] {
    c.notify_one();
    c.notify_one();
  });
  loop->settle();
  CHECK(log == "abc");
  loop->inside([&] { c.notify_all(); });
  watched<> late(*loop, waits(c, log, 'f'));
  loop->settle();
  CHECK(log == "abcde");
  late.cancel_from_outside();
  loop->settle();
  CHECK(late.unwound());
}

TEST_CASE("a notification that nobody waits for is not kept", "[condition]") {
  test_loop loop;
  coax::condition c;
  loop.run([&]() -> coax::task<> {
    c.notify_one();
    c.notify_all();
    auto notified = co_await coax::within(1s, c.wait());
    CHECK(notified.error() == std::errc::timed_out);
  });
}

TEST_CASE("a wait on a condition that is cancelled or times out leaves the queue", "[condition]") {
  test_loop loop;
  coax::condition c;
  std::string log;
  watched<> a(*loop, waits(c, log, 'a'));
  watched<> b(*loop, waits(c, log, 'b'));
  loop->settle();
  loop->inside([&] {
    a.cancel();
    c.notify_one();  // the wait of a has ended
  });
  loop->settle();
  CHECK(a.unwound());
  CHECK(log == "b");
}

TEST_CASE("a notification and a timeout or cancellation in the same turn: whichever was first",
          "[condition]") {
  for (const bool notified_first : {false, true}) {
    test_loop loop;
    coax::condition c;
    std::string log;
    watched<> a(*loop, [](coax::condition& on, std::string& says) -> coax::task<> {
      const auto notified = co_await coax::within(1s, on.wait());
      says += notified ? "notified" : "timed out";
    }(c, log));
    watched<> b(*loop, waits(c, log, 'b'));
    loop->settle();
    if (notified_first) loop->inside([&] { c.notify_one(); });
    loop->advance(1s);
    if (!notified_first) loop->inside([&] { c.notify_one(); });
    loop->settle();
    CHECK(log == (notified_first ? "notified" : "timed outb"));  // b is notified in its place
    b.cancel_from_outside();
    loop->settle();
  }
}

TEST_CASE("a wait with a lock lets others have it, and has it again when it was notified",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  script ends[2];
  watched<> a(*loop, waits_locked(c, m, log, 'a', ends[0]));
  watched<> b(*loop, waits_locked(c, m, log, 'b', ends[1]));
  std::optional<coax::mutex::guard> held;
  watched<> t(*loop, takes(m, held));
  loop->settle();
  REQUIRE(held);
  loop->inside([&] { c.notify_all(); });
  loop->settle();
  CHECK(log.empty());  // not while t holds it
  loop->inside([&] { held.reset(); });
  loop->settle();
  CHECK(log == "a");  // only one can have it
  loop->inside([&] { ends[0].complete(0); });
  loop->settle();
  CHECK(log == "a~b");
  loop->inside([&] { ends[1].complete(0); });
  loop->settle();
  CHECK(log == "a~b~");
}

TEST_CASE("who was notified waits for the lock behind those who wait for it already",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  script end;
  watched<> a(*loop, waits_locked(c, m, log, 'a', end));
  std::optional<coax::mutex::guard> first, second;
  watched<> t(*loop, takes(m, first));
  watched<> u(*loop, takes(m, second));
  loop->settle();
  loop->inside([&] {
    c.notify_one();
    first.reset();
  });
  loop->settle();
  CHECK(second);
  CHECK(log.empty());
  loop->inside([&] { second.reset(); });
  loop->settle();
  CHECK(log == "a");
  loop->inside([&] { end.complete(0); });
  loop->settle();
}

TEST_CASE("a timed wait says whether it was notified, and holds the lock either way",
          "[condition]") {
  SECTION("nobody notifies") {
    test_loop loop;
    coax::condition c;
    coax::mutex m;
    std::string log;
    watched<> a(*loop, waits_in_time(c, m, log));
    loop->settle();
    loop->advance(1s);
    a.run_to_end();
    CHECK(log == "timed out, locked");
  }
  SECTION("nobody notifies, and somebody else has the lock") {
    test_loop loop;
    coax::condition c;
    coax::mutex m;
    std::string log;
    watched<> a(*loop, waits_in_time(c, m, log));
    std::optional<coax::mutex::guard> held;
    watched<> t(*loop, takes(m, held));
    loop->settle();
    loop->advance(1s);
    loop->settle();
    CHECK(log.empty());
    loop->inside([&] {
      c.notify_all();  // too late
      held.reset();
    });
    a.run_to_end();
    CHECK(log == "timed out, locked");
  }
  SECTION("it was notified in time, and has the lock only later") {
    test_loop loop;
    coax::condition c;
    coax::mutex m;
    std::string log;
    watched<> a(*loop, waits_in_time(c, m, log));
    std::optional<coax::mutex::guard> held;
    watched<> t(*loop, takes(m, held));
    loop->settle();
    loop->inside([&] { c.notify_one(); });
    loop->advance(1s);
    loop->settle();
    CHECK(log.empty());
    loop->inside([&] { held.reset(); });
    a.run_to_end();
    CHECK(log == "notified, locked");
  }
}

TEST_CASE("a cancelled wait with a lock unwinds holding the lock, and then passes it on",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  script never;
  watched<> a(*loop, waits_locked(c, m, log, 'a', never));
  std::optional<coax::mutex::guard> held, next;
  watched<> t(*loop, takes(m, held));
  loop->settle();
  a.cancel_from_outside();
  loop->settle();
  CHECK(log.empty());  // t may be in the middle of something
  CHECK_FALSE(a.has_ended());
  watched<> u(*loop, takes(m, next));
  loop->settle();
  loop->inside([&] {
    c.notify_one();  // to nobody
    held.reset();
  });
  CHECK(log.empty());
  loop->settle();
  CHECK(log == "~");
  CHECK(a.unwound());
  CHECK(next);
  loop->inside([&] { next.reset(); });
}

TEST_CASE("a wait that timed out and is then cancelled unwinds holding the lock", "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  watched<> a(*loop, waits_in_time(c, m, log));
  std::optional<coax::mutex::guard> held;
  watched<> t(*loop, takes(m, held));
  loop->settle();
  loop->advance(1s);
  a.cancel_from_outside();
  a.cancel_from_outside();
  loop->settle();
  CHECK_FALSE(a.has_ended());
  loop->inside([&] { held.reset(); });
  loop->settle();
  CHECK(a.unwound());
  CHECK(log.empty());
  loop.run([&]() -> coax::task<> { const auto free = co_await m.lock(); });
}

TEST_CASE("a wait that was notified and is then cancelled goes on, since it was notified",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  script never;
  watched<> a(*loop, waits_locked(c, m, log, 'a', never));
  std::optional<coax::mutex::guard> held;
  watched<> t(*loop, takes(m, held));
  loop->settle();
  loop->inside([&] {
    c.notify_one();
    a.cancel();
  });
  loop->settle();
  CHECK_FALSE(a.has_ended());
  loop->inside([&] { held.reset(); });
  loop->settle();
  CHECK(log == "a~");
  CHECK(a.unwound());
}

TEST_CASE("a wait that begins while its task is being cancelled keeps the lock, and unwinds",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  script go;
  watched<> a(
      *loop,
      [](coax::condition& on, coax::mutex& lock, std::string& says, script& when) -> coax::task<> {
        auto held = co_await lock.lock();
        const named unwinding(says, '~');
        co_await scripted_wait(when);
        co_await on.wait(held);
      }(c, m, log, go));
  std::optional<coax::mutex::guard> held;
  watched<> t(*loop, takes(m, held));
  loop->settle();
  loop->inside([&] {
    go.complete(0);
    a.cancel();
  });
  loop->settle();
  CHECK(log == "~");
  CHECK(a.unwound());
  CHECK(held);
  loop->inside([&] { held.reset(); });
}

TEST_CASE("when a whole scope is cancelled, all who wait with a lock unwind one after the other",
          "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  std::string log;
  script never;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      for (const char name : {'a', 'b', 'c', 'd'})
        s.spawn(waits_locked, std::ref(c), std::ref(m), std::ref(log), name, std::ref(never));
      co_await coax::sleep_for(1s);
      auto held = co_await m.lock();
      s.cancel();
    });
    const auto free = co_await m.lock();
  });
  CHECK(log == "~~~~");
}

TEST_CASE("a race that a wait with a lock loses has the lock again", "[condition]") {
  test_loop loop;
  coax::condition c;
  coax::mutex m;
  loop.run([&]() -> coax::task<> {
    auto held = co_await m.lock();
    auto won = co_await coax::race(c.wait(held), coax::sleep_for(1s));
    CHECK_FALSE(std::get<0>(won));
    auto busy = co_await coax::within(0s, m.lock());
    CHECK_FALSE(busy);
    held.unlock();
    auto free = co_await coax::within(0s, m.lock());
    CHECK(free);
  });
}

TEST_CASE("producers and consumers: nothing is lost, nobody waits for ever", "[condition]") {
  test_loop loop;
  coax::condition changed;
  coax::mutex m;
  std::deque<int> queue;
  int consumed = 0;
  loop.run([&]() -> coax::task<> {
    auto producer = [&]() -> coax::task<> {
      for (int i = 0; i < 100; ++i) {
        auto held = co_await m.lock();
        co_await coax::yield();
        queue.push_back(i);
        changed.notify_one();
      }
    };
    auto consumer = [&]() -> coax::task<> {
      while (true) {
        auto held = co_await m.lock();
        while (queue.empty()) co_await changed.wait(held);
        queue.pop_front();
        if (++consumed == 300) co_return;
        co_await coax::yield();
      }
    };
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      for (int i = 0; i < 5; ++i) s.spawn(std::ref(consumer));
      for (int i = 0; i < 3; ++i) s.spawn(std::ref(producer));
      co_await coax::sleep_for(1s);
      s.cancel();
    });
  });
  CHECK(consumed == 300);
}

TEST_CASE("misuse of a condition aborts and says why", "[condition]") {
  const auto destroyed = ending_of([] {
    manual_loop loop;
    std::string log;
    std::optional<coax::condition> c(std::in_place);
    watched<> a(loop, waits(*c, log, 'a'));
    loop.settle();
    c.reset();
  });
  CHECK(destroyed.aborted_saying("a condition was destroyed while somebody waited for it"));

  const auto without_lock = ending_of([] {
    manual_loop loop;
    loop.run([]() -> coax::task<> {
      coax::condition c;
      coax::mutex m;
      auto held = co_await m.lock();
      held.unlock();
      co_await c.wait(held);
    }());
  });
  CHECK(without_lock.aborted_saying("a guard that holds no lock"));

  const auto mutex_gone = ending_of([] {
    manual_loop loop;
    std::string log;
    coax::condition c;
    script never;
    std::optional<coax::mutex> m(std::in_place);
    watched<> a(loop, waits_locked(c, *m, log, 'a', never));
    loop.settle();
    m.reset();  // a will come back to it
  });
  CHECK(mutex_gone.aborted_saying("a mutex was destroyed while"));
}

// --- random sequences, against a reference ---

namespace {

/// Tasks that lock a mutex, hold it, and wait on a condition with the lock or without.
class condition_trial final : public random_trial {
 public:
  using random_trial::random_trial;

 private:
  enum order { lock, lock_in_time, unlock, wait, wait_in_time, one, all, fail, leave };

  /// A guard that tells the reference when it unlocks.
  class held_lock {
   public:
    held_lock(condition_trial& t, int who, coax::mutex::guard g)
        : guard(std::move(g)), trial_(t), who_(who) {}
    held_lock(const held_lock&) = delete;
    held_lock& operator=(const held_lock&) = delete;
    ~held_lock() {
      trial_.unlocks(who_);
      guard.unlock();
    }
    coax::mutex::guard guard;

   private:
    condition_trial& trial_;
    int who_;
  };

  coax::task<> life(int me) override {
    std::optional<held_lock> held;
    while (true) {
      switch (const int told = co_await next(me)) {
        case lock: {
          if (held) break;  // it would wait for itself
          asks_lock(me);
          auto got = co_await mutex_.lock();
          came(me, "locked");
          held.emplace(*this, me, std::move(got));
          break;
        }
        case lock_in_time: {
          if (held) break;
          in_time(me);
          asks_lock(me);
          auto got = co_await coax::within(limit, mutex_.lock());
          came(me, got ? "locked" : "timed out");
          if (got) held.emplace(*this, me, *std::move(got));
          break;
        }
        case unlock:
          held.reset();
          break;
        case wait: {
          sleeps(me, held.has_value());
          if (held)
            co_await condition_.wait(held->guard);
          else
            co_await condition_.wait();
          came(me, "notified");
          break;
        }
        case wait_in_time: {
          in_time(me);
          sleeps(me, held.has_value());
          coax::result<void> notified;
          if (held)
            notified = co_await coax::within(limit, condition_.wait(held->guard));
          else
            notified = co_await coax::within(limit, condition_.wait());
          came(me, notified ? "notified" : "timed out");
          break;
        }
        case one:
          notified_one();
          condition_.notify_one();
          break;
        case all:
          while (!sleeping_.empty()) notified_one();
          condition_.notify_all();
          break;
        case fail:
          throw failure();
        default:
          CHECK(told == leave);
          co_return;
      }
    }
  }

  void step() override {
    const std::size_t die = random_(40);
    if (die < 7) return enter();
    if (die < 10) return cancel(anybody());
    const int who = listener();
    if (who == 0) return;
    if (die < 17) return tell(who, lock, "shall lock");
    if (die < 19) return tell(who, lock_in_time, "shall lock in time");
    if (die < 23) return tell(who, unlock, "shall unlock");
    if (die < 28) return tell(who, wait, "shall wait");
    if (die < 31) return tell(who, wait_in_time, "shall wait in time");
    if (die < 35) return tell(who, one, "shall notify one");
    if (die < 37) return tell(who, all, "shall notify all");
    if (die < 38) return tell(who, fail, "shall throw");
    tell(who, leave, "shall leave");
  }

  // --- the reference ---

  struct claim {
    int who;
    std::string then;  // what becomes of it when it has the lock
  };
  struct sleeper {
    int who;
    bool with_lock;
  };

  void asks_lock(int who) {
    if (holder_ != 0 && cancelled(who))
      due(who, "unwound");
    else
      claims(who, "locked");
  }
  void claims(int who, std::string then) {
    waiting_.push_back({who, std::move(then)});
    if (holder_ == 0) pass_on();
  }
  void pass_on() {
    holder_ = 0;
    if (waiting_.empty()) return;
    holder_ = waiting_.front().who;
    due(holder_, waiting_.front().then);
    waiting_.pop_front();
  }
  void unlocks(int who) {
    expect("who unlocks", static_cast<std::size_t>(who), static_cast<std::size_t>(holder_));
    pass_on();
  }
  void sleeps(int who, bool with_lock) {
    if (cancelled(who)) return due(who, "unwound");
    sleeping_.push_back({who, with_lock});
    if (with_lock) pass_on();
  }
  void wakes(sleeper s, std::string why) {
    if (s.with_lock)
      claims(s.who, std::move(why));
    else
      due(s.who, std::move(why));
  }
  void notified_one() {
    if (sleeping_.empty()) return;
    const sleeper first = sleeping_.front();
    sleeping_.pop_front();
    wakes(first, "notified");
  }
  void give_up(int who, const char* why) override {
    for (auto s = sleeping_.begin(); s != sleeping_.end(); ++s) {
      if (s->who != who) continue;
      const sleeper gone = *s;
      sleeping_.erase(s);
      return wakes(gone, why);
    }
    for (auto c = waiting_.begin(); c != waiting_.end(); ++c) {
      if (c->who != who) continue;
      if (c->then == "locked") {
        waiting_.erase(c);
        due(who, why);
      } else if (c->then == "timed out") {
        c->then = why;  // what has no result yet unwinds; what was notified was notified
      }
      return;
    }
  }

  coax::mutex mutex_;
  coax::condition condition_;
  int holder_ = 0;
  std::deque<claim> waiting_;
  std::deque<sleeper> sleeping_;
};

}  // namespace

TEST_CASE("random sequences: a mutex and a condition do what the reference says",
          "[condition][mutex]") {
  run_seeds<condition_trial>(5'000);
}
