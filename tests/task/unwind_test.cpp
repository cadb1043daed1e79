#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

/// Every scenario is cancelled at each of its awaits, one after the other and in several ways. Whichever it was, all
/// destructors ran once and innermost first, and nothing is left.

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

/// When the scenario is cancelled, seen from the await that is aimed at.
enum class moment {
  before_it,  // by the awaiting task itself
  next_turn,  // by whatever runs next, when the await has begun or has even ended
  at_rest,    // when everything waits for time to pass
};

/// Counts the awaits of a scenario, and cancels it at one of them.
class trigger : private coax::ready_node {
 public:
  trigger(int aim, moment when) : aim_(aim), when_(when) {}
  trigger(const trigger&) = delete;
  trigger& operator=(const trigger&) = delete;

  void aims_at(coax::root& target) { target_ = &target; }

  /// To be called just before each await.
  void await() {
    if (++count_ != aim_) return;
    if (when_ == moment::before_it) target_->cancel();
    if (when_ == moment::next_turn) coax::loop::current().make_ready(*this);
  }
  bool is_due_at_rest() const { return when_ == moment::at_rest && aim_ != 0 && count_ >= aim_; }
  int count() const { return count_; }

  // --- what guards found ---
  int guards = 0;
  bool in_order = true;

 private:
  void run() noexcept override { target_->cancel(); }

  int aim_;
  moment when_;
  int count_ = 0;
  coax::root* target_ = nullptr;
};

/// A local of a task that must be destroyed after the guards of all tasks that this one awaits or holds in scopes.
class guard {
 public:
  explicit guard(trigger& t) : trigger_(t) { ++trigger_.guards; }
  explicit guard(guard& outer) : trigger_(outer.trigger_), outer_(&outer) {
    ++trigger_.guards;
    ++outer.inner_;
  }
  guard(const guard&) = delete;
  guard& operator=(const guard&) = delete;
  ~guard() {
    if (inner_ != 0) trigger_.in_order = false;
    if (outer_ != nullptr) --outer_->inner_;
    --trigger_.guards;
  }

  void await() { trigger_.await(); }

 private:
  trigger& trigger_;
  guard* outer_ = nullptr;
  int inner_ = 0;
};

// --- scenarios ---

task<int> rests(guard& outer, coax::timeout how_long, int value = 1) {
  guard g(outer);
  g.await();
  co_await coax::sleep_for(how_long);
  co_return value;
}

task<int> descends(guard& outer, int depth) {
  guard g(outer);
  int sum = co_await rests(g, 1ms);
  if (depth > 0) sum += co_await descends(g, depth - 1);
  g.await();
  co_await coax::yield();
  co_return sum + co_await rests(g, 1ms);
}

task<> nested_tasks(trigger& t) {
  guard g(t);
  for (int i = 0; i < 3; ++i) {
    static_cast<void>(co_await descends(g, i));
    g.await();
    co_await coax::yield();
  }
}

task<> races(trigger& t) {
  guard g(t);
  const auto two = co_await coax::race(descends(g, 2), descends(g, 1));
  const auto tie = co_await coax::race(rests(g, 5ms), rests(g, 5ms), rests(g, 6ms));
  guard g2(g);
  const auto nested =
      co_await coax::race(coax::race(rests(g2, 3ms), descends(g2, 1)), rests(g2, 4ms));
  CHECK((std::get<1>(two) && std::get<0>(tie) && std::get<0>(nested)));
  co_await coax::yield();  // a race that has a result unwinds here
}

task<> timeouts(trigger& t) {
  guard g(t);
  g.await();
  const auto single = co_await coax::within(1ms, coax::sleep_for(2ms));
  const auto whole = co_await coax::within(2ms, descends(g, 3));
  guard g2(g);
  const auto nested =
      co_await coax::within(9ms, coax::within(5ms, coax::within(7ms, descends(g2, 4))));
  const auto in_time = co_await coax::within(99ms, descends(g2, 1));
  const auto raced =
      co_await coax::race(coax::within(2ms, descends(g2, 2)), coax::within(2ms, rests(g2, 2ms)));
  CHECK((!single && !whole && !nested && in_time && std::get<1>(raced)));
}

task<> child(guard& outer, int depth) { static_cast<void>(co_await descends(outer, depth)); }

task<> scopes(trigger& t) {
  guard g(t);
  for (int round = 0; round < 2; ++round) {
    guard g2(g);
    co_await coax::with_scope([&](scope& s) -> task<> {
      guard in_body(g2);
      s.spawn(child, std::ref(g2), 2);
      s.spawn(child, std::ref(g2), 0);
      static_cast<void>(co_await rests(in_body, 2ms));
      s.spawn(child, std::ref(g2), 1);
      co_await coax::with_scope([&](scope& inner) -> task<> {
        guard in_inner(in_body);
        inner.spawn(child, std::ref(in_body), 1);
        s.spawn(child, std::ref(g2), 0);
        in_inner.await();
        co_await coax::yield();
      });
      in_body.await();
      co_await coax::yield();
      if (round == 1) s.cancel();
      in_body.await();
      co_await coax::yield();
    });
  }
}

task<> joins(trigger& t) {
  guard g(t);
  for (const coax::timeout limit : {coax::timeout(99ms), coax::timeout(2ms), coax::timeout(0ms)}) {
    co_await coax::with_scope([&](scope& s) -> task<> {
      guard in_body(g);
      s.spawn(child, std::ref(g), 1);
      s.spawn(child, std::ref(g), 2);
      in_body.await();
      static_cast<void>(co_await s.join_within(limit));
      s.spawn(child, std::ref(g), 0);
      static_cast<void>(co_await rests(in_body, 1ms));
      in_body.await();
      static_cast<void>(co_await coax::within(1ms, s.join_within(5ms)));
    });
  }
}

task<> all_together(trigger& t) {
  guard g(t);
  const auto in_scope = [](guard& outer) -> task<int> {
    guard own(outer);
    co_await coax::with_scope([&](scope& s) -> task<> {
      guard in_body(own);
      s.spawn(
          [](guard& of_scope) -> task<> {
            guard in_child(of_scope);
            static_cast<void>(co_await coax::within(
                3ms, coax::race(descends(in_child, 3), rests(in_child, 8ms))));
          },
          std::ref(own));
      s.spawn(child, std::ref(own), 1);
      in_body.await();
      static_cast<void>(co_await s.join_within(2ms));
      co_await coax::race(descends(in_body, 1), rests(in_body, 3ms));
    });
    co_return 1;
  };
  const auto r = co_await coax::race(coax::within(20ms, in_scope(g)),
                                     coax::within(1ms, in_scope(g)), rests(g, 9ms));
  CHECK(std::get<1>(r));
}

task<> throws_late(guard& outer) {
  guard g(outer);
  static_cast<void>(co_await rests(g, 2ms));
  throw std::runtime_error("as told");
}

task<> exceptions(trigger& t) {
  guard g(t);
  int caught = 0;
  for (int kind = 0; kind < 3; ++kind) {
    try {
      guard in_try(g);
      if (kind == 0) co_await coax::race(descends(in_try, 2), throws_late(in_try));
      if (kind == 1) static_cast<void>(co_await coax::within(9ms, throws_late(in_try)));
      if (kind == 2) {
        co_await coax::with_scope([&](scope& s) -> task<> {
          guard in_body(in_try);
          s.spawn(throws_late, std::ref(in_try));
          s.spawn(child, std::ref(in_try), 3);
          static_cast<void>(co_await descends(in_body, 3));
        });
      }
    } catch (const std::runtime_error&) {
      ++caught;
    }
    g.await();
    co_await coax::yield();
  }
  CHECK(caught == 3);
}

using scenario = task<> (*)(trigger&);

/// Runs `s`, which is cancelled at its await number `aim`, or not at all for 0. Gives the number of its awaits.
int play(scenario s, int aim, moment when) {
  INFO("await " << aim << ", moment " << static_cast<int>(when));
  trigger t(aim, when);
  {
    test_loop loop;
    watched<> w(*loop, s(t));
    t.aims_at(w);
    for (loop->settle(); !w.has_ended(); loop->settle()) {
      if (t.is_due_at_rest() && !w.cancelled())
        w.cancel_from_outside();
      else
        loop->pass_time();
    }
    CHECK(w.times_ended() == 1);
    if (aim == 0) CHECK(w.finished());
    // Something of it was waiting, or about to: it has unwound, and so has all that was around it.
    if (aim != 0 && w.cancelled() && when != moment::next_turn) CHECK(w.unwound());
    CHECK(t.guards == 0);
    CHECK(t.in_order);
    if (w.finished()) w.take();
  }
  return t.count();
}

void cancelled_at_every_await(scenario s) {
  const int awaits = play(s, 0, moment::before_it);
  CHECK(awaits > 5);
  for (const moment when : {moment::before_it, moment::next_turn, moment::at_rest})
    for (int aim = 1; aim <= awaits; ++aim) play(s, aim, when);
}

}  // namespace

TEST_CASE("nested tasks unwind from each of their awaits", "[unwind]") {
  cancelled_at_every_await(nested_tasks);
}
TEST_CASE("races unwind from each of their awaits", "[unwind]") { cancelled_at_every_await(races); }
TEST_CASE("timeouts unwind from each of their awaits", "[unwind]") {
  cancelled_at_every_await(timeouts);
}
TEST_CASE("scopes unwind from each of their awaits", "[unwind]") {
  cancelled_at_every_await(scopes);
}
TEST_CASE("joins unwind from each of their awaits", "[unwind]") { cancelled_at_every_await(joins); }
TEST_CASE("all of them together unwind from each of their awaits", "[unwind]") {
  cancelled_at_every_await(all_together);
}
TEST_CASE("what throws unwinds from each of its awaits", "[unwind]") {
  cancelled_at_every_await(exceptions);
}
