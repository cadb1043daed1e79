#pragma once

/// Scenarios without I/O: of tasks, time and sync primitives.

#include "at_every_await.hpp"

#include <coax/sync/channel.hpp>
#include <coax/sync/condition.hpp>
#include <coax/sync/event.hpp>
#include <coax/sync/limited_scope.hpp>
#include <coax/sync/mutex.hpp>
#include <coax/sync/semaphore.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/finally.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace scenarios {

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

/// Long enough to be waited for, short enough to be waited for often.
inline constexpr std::chrono::microseconds moment{20};

/// Numbers in the order in which they came. Allocates nothing.
class numbers {
 public:
  void add(int n) noexcept { kept_[count_++ % kept_.size()] = n; }
  int count() const noexcept { return static_cast<int>(count_); }
  bool count_up_from_0() const noexcept {
    for (std::size_t i = 0; i < count_; ++i)
      if (kept_[i] != static_cast<int>(i)) return false;
    return true;
  }

 private:
  std::array<int, 64> kept_{};
  std::size_t count_ = 0;
};

/// Counts those who are in, and the most there ever were.
class occupancy {
 public:
  class inside {
   public:
    explicit inside(occupancy& o) noexcept : of_(o) {
      ++of_.entered;
      of_.most = std::max(of_.most, ++of_.now);
    }
    inside(const inside&) = delete;
    inside& operator=(const inside&) = delete;
    ~inside() { --of_.now; }

   private:
    occupancy& of_;
  };
  int entered = 0;
  int now = 0;
  int most = 0;
};

/// Who sends is cancelled: what was sent is received, each once and in order.
struct channel_sender {
  coax::channel<token> pipe{2};
  int sent = 0;
  numbers received;

  void over() noexcept { pipe.close(); }
  task<> subject() {
    for (int i = 0; i < 6; ++i) {
      step();
      const bool taken = co_await pipe.send(token(i));
      if (taken) ++sent;
    }
  }
  task<> peer() {
    while (auto got = co_await pipe.receive()) {
      received.add(got->id);
      step();
      co_await coax::yield();
    }
  }
  std::string verdict(endings seen) const {
    if (!received.count_up_from_0()) return " values are lost, doubled or out of order";
    if (seen.peer == ending::finished && received.count() != sent) return " sent is not received";
    if (seen.subject == ending::finished && sent != 6) return " not all was sent";
    return "";
  }
};

/// Who receives is cancelled, and closes: what was sent is received, or destroyed with the channel.
struct channel_receiver {
  coax::channel<token> pipe{1};
  int sent = 0;
  numbers received;

  void over() noexcept { pipe.close(); }
  task<> subject() {
    for (int i = 0; i < 5; ++i) {
      step();
      auto got = co_await pipe.receive();
      if (got) received.add(got->id);
      co_await coax::sleep_for(moment);
    }
  }
  task<> peer() {
    while (true) {
      const bool taken = co_await pipe.send(token(sent));
      if (!taken) break;
      ++sent;
      step();
    }
  }
  std::string verdict(endings seen) const {
    if (!received.count_up_from_0()) return " values are lost, doubled or out of order";
    if (received.count() > sent || sent > received.count() + 1) return " a value is nowhere";
    if (seen.subject == ending::finished && received.count() != 5) return " not all was received";
    return "";
  }
};

/// Those who wait for a lock are cancelled: it is held by one at a time, and passed on.
struct mutex_passed_on {
  coax::mutex lock;
  occupancy in;

  task<> critical() {
    auto held = co_await lock.lock();
    const occupancy::inside one(in);
    step();
    co_await coax::yield();
    co_await coax::sleep_for(moment);
  }
  task<> subject() {
    co_await coax::with_scope([this](scope& s) -> task<> {
      for (int i = 0; i < 3; ++i) s.spawn([this]() -> task<> { return critical(); });
      co_await critical();
    });
  }
  task<> peer() {
    for (int i = 0; i < 3; ++i) {
      co_await critical();
      step();
    }
  }
  std::string verdict(endings seen) const {
    if (in.most > 1) return " two held the lock at once";
    if (in.now != 0) return " somebody is in still";
    if (seen.subject == ending::finished && in.entered != 7) return " somebody never had the lock";
    return "";
  }
};

/// More want a permit than there are: no permit is lost, and never are more out than there are.
struct semaphore_permits {
  coax::semaphore permits{2};
  occupancy in;

  task<> user() {
    auto permit = co_await permits.acquire();
    const occupancy::inside one(in);
    step();
    co_await coax::yield();
  }
  task<> subject() {
    co_await coax::with_scope([this](scope& s) -> task<> {
      for (int i = 0; i < 5; ++i) s.spawn([this]() -> task<> { return user(); });
      co_return;
    });
  }
  task<> peer() {
    for (int i = 0; i < 3; ++i) co_await user();
  }
  std::string verdict(endings seen) const {
    if (in.most > 2 || in.now != 0) return " more were in than there are permits";
    if (seen.subject == ending::finished && in.entered != 8) return " somebody never got a permit";
    return "";
  }
};

/// A scope that is full: never more children than its limit, and none is forgotten.
struct scope_with_a_limit {
  occupancy in;
  int spawned = 0;

  task<> child() {
    const token t;
    const occupancy::inside one(in);
    step();
    co_await coax::sleep_for(moment);
    step();
  }
  task<> subject() {
    co_await coax::with_scope(2, [this](coax::limited_scope& s) -> task<> {
      for (int i = 0; i < 5; ++i) {
        co_await s.spawn([this]() -> task<> { return child(); });
        ++spawned;
        step();
      }
    });
  }
  std::string verdict(endings seen) const {
    if (in.most > 2 || in.now != 0) return " more children lived than the limit allows";
    if (in.entered > spawned + 1) return " a child ran that was not spawned";
    // Spawned into a scope that is being cancelled, a child is destroyed unrun.
    if (!seen.asked && seen.subject == ending::finished && in.entered != 5)
      return " a child never ran";
    return "";
  }
};

/// Those who wait on a condition are cancelled: none sees what another does under the lock.
struct condition_waits {
  coax::mutex lock;
  coax::condition changed;
  int value = 0;
  bool half_done = false;
  bool seen_half_done = false;
  int through = 0;

  task<> waits_until(int wanted) {
    auto held = co_await lock.lock();
    const at_end looks([this] { seen_half_done = seen_half_done || half_done; });
    while (value < wanted) {
      step();
      co_await changed.wait(held);
    }
    ++through;
  }
  task<> subject() {
    co_await coax::with_scope([this](scope& s) -> task<> {
      for (int i = 1; i <= 3; ++i) s.spawn([this](int n) -> task<> { return waits_until(n); }, i);
      co_await waits_until(2);
    });
  }
  task<> peer() {
    while (value < 3) {
      {
        auto held = co_await lock.lock();
        half_done = true;
        co_await coax::yield();
        ++value;
        half_done = false;
        step();
      }
      if (value % 2 == 1)
        changed.notify_all();
      else
        changed.notify_one();
      co_await coax::yield();
    }
    changed.notify_all();
  }
  std::string verdict(endings seen) const {
    if (seen_half_done) return " a destructor saw what was half done under the lock";
    if (seen.subject == ending::finished && through != 4) return " somebody was never notified";
    return "";
  }
};

/// What is shielded ends, whenever the request comes.
struct shielded_work {
  int begun = 0;
  int ended = 0;

  task<> work() {
    const token t;
    ++begun;
    step();
    co_await coax::sleep_for(moment);
    step();
    co_await coax::yield();
    ++ended;
  }
  task<> subject() {
    co_await coax::yield();
    step();
    co_await coax::shield(work());
    step();
    auto in_time = co_await coax::shield(coax::within(1h, work()));
    static_cast<void>(in_time);
    co_await coax::sleep_for(moment);
  }
  std::string verdict(endings seen) const {
    if (begun != ended) return " shielded work was cut off";
    if (seen.subject == ending::finished && ended != 2) return " work is missing";
    return "";
  }
};

/// A clean-up runs once, to its end and after its body, whichever way that ended.
struct cleaned_up {
  int begun = 0;
  int in_body = 0;
  int cleaned = 0;
  bool too_early = false;

  task<> body(bool throws) {
    ++begun;
    ++in_body;
    const at_end leaves([this] { --in_body; });
    const token t;
    step();
    co_await coax::yield();
    step();
    co_await coax::sleep_for(moment);
    if (throws) throw std::runtime_error("a body's");
  }
  task<> clean_up() {
    const token t;
    too_early = too_early || in_body != 0;
    step();
    co_await coax::yield();
    step();
    co_await coax::sleep_for(moment);
    ++cleaned;
  }
  task<> subject() {
    for (const bool throws : {false, true}) {
      try {
        co_await coax::finally([this, throws]() -> task<> { return body(throws); },
                               [this]() -> task<> { return clean_up(); });
      } catch (const std::runtime_error&) {
      }
      step();
    }
  }
  std::string verdict(endings seen) const {
    if (too_early) return " a clean-up ran before its body was gone";
    // With no memory for its own frame a clean-up cannot run, and says so, unless the body has thrown.
    if (!seen.short_of_memory && cleaned != begun) return " a clean-up did not run to its end";
    if (!seen.short_of_memory && seen.subject == ending::finished && cleaned != 2)
      return " a clean-up is missing";
    return "";
  }
};

/// A branch throws: the others unwind, then the exception is delivered, even under a request to cancel.
struct when_all_throws {
  int caught = 0;
  int throwing = 0;
  int branches = 0;
  bool left_behind = false;

  task<int> waits(coax::timeout how_long) {
    ++branches;
    const at_end leaves([this] { --branches; });
    const token t;
    step();
    co_await coax::sleep_for(how_long);
    step();
    co_return 1;
  }
  task<> throws() {
    co_await coax::yield();
    step();
    co_await coax::yield();
    ++throwing;
    throw std::runtime_error("boom");
  }
  task<> subject() {
    const at_end looks([this] { left_behind = branches != 0; });
    try {
      co_await coax::when_all(waits(1h), throws(), coax::within(1h, waits(2h)));
    } catch (const std::runtime_error&) {
      ++caught;
      left_behind = branches != 0;
    }
    co_await coax::yield();
  }
  std::string verdict(endings seen) const {
    if (left_behind) return " branches lived on";
    if (throwing != caught && seen.subject != ending::threw) return " an exception was lost";
    if (seen.subject == ending::finished && caught != 1) return " nothing was thrown";
    return "";
  }
};

/// Timeouts in timeouts: whoever runs out or is cancelled leaves no timer and no task.
struct nested_within {
  coax::event never;
  int timed_out = 0;

  task<int> waits(coax::timeout how_long) {
    const token t;
    step();
    co_await coax::sleep_for(how_long);
    co_return 7;
  }
  task<int> inner() {
    auto first = co_await coax::within(moment, never.wait());
    if (!first) ++timed_out;
    step();
    auto second = co_await coax::within(1h, coax::within(moment, waits(2h)));
    if (!second) ++timed_out;
    step();
    auto third = co_await coax::within(1h, coax::within(1h, waits(moment)));
    co_return third ? *third : 0;
  }
  task<> subject() {
    auto all = co_await coax::within(2h, coax::within(1h, inner()));
    if (all && *all == 7) ++timed_out;
    step();
    auto both = co_await coax::race(coax::within(1h, waits(1h)), coax::within(moment, waits(1h)));
    if (std::get<1>(both)) ++timed_out;
  }
  std::string verdict(endings seen) const {
    if (seen.subject == ending::finished && timed_out != 4) return " a timeout did not do its work";
    return "";
  }
};

/// A scope with children of children, a join, and an event that some wait for.
struct scope_of_scopes {
  coax::event go;
  int children = 0;
  bool left_behind = false;

  task<> leaf() {
    ++children;
    const at_end leaves([this] { --children; });
    const token t;
    co_await go.wait();
    step();
    co_await coax::sleep_for(moment);
  }
  task<> middle() {
    const token t;
    co_await coax::with_scope([this](scope& s) -> task<> {
      for (int i = 0; i < 2; ++i) s.spawn([this]() -> task<> { return leaf(); });
      co_await coax::yield();
      step();
    });
  }
  task<> subject() {
    const at_end looks([this] { left_behind = children != 0; });
    co_await coax::with_scope([this](scope& s) -> task<> {
      for (int i = 0; i < 2; ++i) s.spawn([this]() -> task<> { return middle(); });
      co_await coax::yield();
      co_await coax::yield();
      go.set();
      step();
      const bool by_themselves = co_await s.join_within(1h);
      static_cast<void>(by_themselves);
      s.spawn([this]() -> task<> { return leaf(); });
    });
  }
  std::string verdict(endings) const {
    return left_behind || children != 0 ? " children outlived their scope" : "";
  }
};

/// What acceptors hand to workers through a worker_stack, with either side cancelled.
struct hand_offs {
  coax::worker_stack<token> idle;
  int made = 0;
  int served = 0;
  bool one_twice = false;
  std::array<bool, 32> seen{};

  task<> accepts(int items) {
    for (int i = 0; i < items; ++i) {
      auto worker = co_await coax::within(20 * moment, idle.reserve());
      if (!worker || !*worker) break;
      step();
      co_await coax::yield();  // the accept: the reservation is out meanwhile
      step();
      (*worker)->hand_off(token(made++));
    }
  }
  task<> works() {
    while (auto got = co_await idle.park()) {
      bool& before = seen[static_cast<std::size_t>(got->id) % seen.size()];
      one_twice = one_twice || before;
      before = true;
      ++served;
      step();
      co_await coax::sleep_for(moment);
    }
  }
  std::string verdict(endings) const {
    if (one_twice) return " one item was served twice";
    if (served > made) return " more was served than made";
    return "";
  }
};

struct hand_off_acceptors : hand_offs {
  void over() noexcept { idle.close(); }
  task<> subject() {
    co_await coax::when_all(accepts(3), accepts(3));
    co_await coax::sleep_for(moment);
  }
  task<> peer() { co_await coax::when_all(works(), works()); }
  std::string verdict(endings how) const {
    if (how.peer == ending::finished && served != made) return " an item was lost";
    return hand_offs::verdict(how);
  }
};

struct hand_off_workers : hand_offs {
  task<> subject() {
    co_await coax::with_scope([this](scope& s) -> task<> {
      for (int i = 0; i < 2; ++i) s.spawn([this]() -> task<> { return works(); });
      co_return;
    });
  }
  task<> peer() {
    const at_end closes([this] { idle.close(); });
    co_await coax::when_all(accepts(3), accepts(3));
  }
  std::string verdict(endings how) const {
    if (how.subject == ending::finished && served != made) return " an item was lost";
    return hand_offs::verdict(how);
  }
};

/// Calls `f` with the type and the name of each.
template <class F>
void for_each_task_scenario(F&& f) {
  f.template operator()<channel_sender>("channel: who sends");
  f.template operator()<channel_receiver>("channel: who receives");
  f.template operator()<mutex_passed_on>("mutex passed on");
  f.template operator()<semaphore_permits>("semaphore");
  f.template operator()<scope_with_a_limit>("scope with a limit");
  f.template operator()<condition_waits>("condition");
  f.template operator()<shielded_work>("shield");
  f.template operator()<cleaned_up>("finally");
  f.template operator()<when_all_throws>("when_all with a throw");
  f.template operator()<nested_within>("nested within");
  f.template operator()<scope_of_scopes>("scope of scopes");
  f.template operator()<hand_off_acceptors>("hand-off: acceptors");
  f.template operator()<hand_off_workers>("hand-off: workers");
}

}  // namespace scenarios
