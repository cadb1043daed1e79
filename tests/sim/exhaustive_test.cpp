#include "../catch.hpp"
#include "../task/manual_loop.hpp"
#include "../task/own_root.hpp"

#include <coax/sim/oracle.hpp>
#include <coax/sync/event.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/task.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

// The worker stack, in all orders: 3 workers, 3 connections, and a cancellation of each task at
// each point.

namespace {

namespace sim = coax::sim;
using coax::task;

/// Counts what was accepted and what became of it.
struct ledger {
  int accepted = 0;
  int served = 0;
  int closed = 0;
  int serving = 0;
};

class connection {
 public:
  explicit connection(ledger& l) noexcept : ledger_(&l) { ++l.accepted; }
  connection(connection&& other) noexcept : ledger_(std::exchange(other.ledger_, nullptr)) {}
  connection& operator=(connection&&) = delete;
  ~connection() {
    if (ledger_ != nullptr) ++ledger_->closed;
  }

 private:
  ledger* ledger_;
};

using stack = coax::worker_stack<connection>;

struct actor final : own_root<> {
  /// The task takes its next step when the test says so.
  coax::event next;
  bool wants_next = false;
};

struct in_turn {
  explicit in_turn(actor& a) noexcept : self(a) { self.wants_next = true; }
  in_turn(const in_turn&) = delete;
  in_turn& operator=(const in_turn&) = delete;
  ~in_turn() { self.wants_next = false; }
  actor& self;
};

task<> turn_of(actor& self) {
  self.next.reset();
  const in_turn waits(self);
  co_await self.next.wait();
}

struct counted {
  explicit counted(int& n) noexcept : count(n) { ++count; }
  counted(const counted&) = delete;
  counted& operator=(const counted&) = delete;
  ~counted() { --count; }
  int& count;
};

task<> worker(stack& idle, ledger& l, actor& self) {
  while (auto conn = co_await idle.park()) {
    const counted serving(l.serving);
    co_await turn_of(self);
    ++l.served;
  }
}

task<> accepts_one(stack& idle, ledger& l, actor& self) {
  co_await turn_of(self);
  auto permit = co_await idle.reserve();
  if (!permit) co_return;
  co_await turn_of(self);
  permit->hand_off(connection(l));
}

constexpr std::size_t workers = 3;
constexpr std::size_t connections = 3;

/// One run of everything, in the order that `decide` says. With `victim`, that task is cancelled at
/// some point.
void run_once(sim::oracle& decide, std::optional<std::size_t> victim, bool closes) {
  manual_loop loop;
  ledger l;
  {
    stack idle;
    std::array<actor, workers + connections> all;
    loop.inside([&] {
      for (std::size_t i = 0; i < workers; ++i) all[i].begin(worker(idle, l, all[i]));
      for (std::size_t i = workers; i < all.size(); ++i) all[i].begin(accepts_one(idle, l, all[i]));
    });
    loop.settle();

    const auto check = [&] {
      // accepted = serving + waiting + closed, where waiting is handed over and not taken.
      const int waiting = l.accepted - l.closed - l.serving;
      REQUIRE(waiting >= 0);
      REQUIRE(waiting <= static_cast<int>(connections));
      std::size_t alive = 0;
      for (std::size_t i = 0; i < workers; ++i) alive += all[i].has_ended() ? 0U : 1U;
      // Nobody is lost: who is alive is parked or serves.
      REQUIRE(idle.size() + static_cast<std::size_t>(l.serving) == alive);
      // What waits, waits only while nobody is idle.
      if (waiting > 0) REQUIRE(idle.empty());
    };

    bool may_cancel = victim.has_value();
    bool may_close = closes;
    while (true) {
      std::vector<std::size_t> can;
      for (std::size_t i = 0; i < all.size(); ++i)
        if (all[i].wants_next) can.push_back(i);
      const std::size_t steps = can.size();
      if (steps == 0 && !may_cancel && !may_close) break;
      const std::size_t also = (may_cancel ? 1U : 0U) + (may_close ? 1U : 0U);
      const auto picked = static_cast<std::size_t>(decide.choose(steps + also));
      loop.inside([&] {
        if (picked < steps) {
          all[can[picked]].wants_next = false;
          all[can[picked]].next.set();
        } else if (may_cancel && picked == steps) {
          may_cancel = false;
          all[*victim].cancel();
        } else {
          may_close = false;
          idle.close();
        }
      });
      loop.settle();
      check();
    }
    // Everything that could be done was done.
    if (!closes) {
      const bool worker_died = victim && *victim < workers;
      const int lost = victim && *victim >= workers && l.accepted < 3 ? 1 : 0;
      REQUIRE(l.accepted == static_cast<int>(connections) - lost);
      REQUIRE(l.served >= l.accepted - (worker_died ? 1 : 0));
      loop.inside([&] { idle.close(); });
      loop.settle();
    }
    REQUIRE(l.serving == 0);
    REQUIRE(l.accepted == l.closed);
    for (const actor& each : all) REQUIRE(each.has_ended());
  }
  REQUIRE(l.accepted == l.closed);
  REQUIRE(loop.is_idle());
}

}  // namespace

TEST_CASE("explore comes to every sequence of decisions, once") {
  std::set<std::vector<std::uint64_t>> seen;
  const sim::explored done = sim::explore({}, [&](sim::oracle& decide) {
    std::vector<std::uint64_t> path{decide.choose(3)};
    if (path[0] == 1) path.push_back(decide.choose(2));
    if (decide.chance(0.1)) path.push_back(9);
    seen.insert(path);
  });
  CHECK(done.complete);
  CHECK(done.runs == 8);
  CHECK(seen.size() == 8);
  const sim::explored some =
      sim::explore({.decisions_max = 1, .runs_max = 100}, [](sim::oracle& decide) {
        decide.choose(4);
        decide.choose(5);
      });
  CHECK(some.runs == 4);
  const sim::explored stopped =
      sim::explore({.decisions_max = 10, .runs_max = 7}, [](sim::oracle& decide) {
        decide.choose(4);
        decide.choose(5);
      });
  CHECK(stopped.runs == 7);
  CHECK(!stopped.complete);
}

TEST_CASE("the worker stack keeps its promises in every order of 3 workers and 3 connections") {
  const auto frames = coax::detail::frames::live();
  std::size_t runs = 0;
  for (const bool closes : {false, true}) {
    const sim::explored plain =
        sim::explore({}, [&](sim::oracle& decide) { run_once(decide, std::nullopt, closes); });
    CHECK(plain.complete);
    runs += plain.runs;
  }
  // Cancelling, each task at each point.
  for (std::size_t victim = 0; victim < workers + connections; ++victim) {
    const sim::explored done =
        sim::explore({}, [&](sim::oracle& decide) { run_once(decide, victim, false); });
    CHECK(done.complete);
    runs += done.runs;
  }
  CHECK(runs > 50'000);  // 73,398 when this was written
  CHECK(coax::detail::frames::live() == frames);
}
