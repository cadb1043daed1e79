#include <coax/sync/worker_stack.hpp>

#include <coax/task/frames.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../task/death.hpp"
#include "../task/manual_loop.hpp"
#include "../task/own_root.hpp"
#include "dice.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using coax::task;

enum class fate { finished, failed, unwound };

/// Is told what can be seen from outside.
class watcher {
 public:
  virtual void closed(int connection) noexcept = 0;
  virtual void ended(int who, fate how) noexcept = 0;

 protected:
  ~watcher() = default;
};

/// What is handed over: it exists once, and its end is noticed.
class connection {
 public:
  connection(int id, watcher& seen_by) noexcept : id_(id), seen_by_(&seen_by) {}
  connection(connection&& other) noexcept
      : id_(other.id_), seen_by_(std::exchange(other.seen_by_, nullptr)) {}
  connection& operator=(connection&&) = delete;
  ~connection() {
    if (seen_by_ != nullptr) seen_by_->closed(id_);
  }
  int id() const noexcept { return id_; }

 private:
  int id_;
  watcher* seen_by_;
};

using workers = coax::worker_stack<connection>;

struct failure : std::runtime_error {
  failure() : std::runtime_error("as it was told") {}
};

enum class order { go_on, leave, fail, hand_off, give_back };

/// A task under the eyes of a test, which says what it does next, and can cancel it alone.
class actor final : public own_root<> {
 public:
  actor(int who, watcher& seen_by, task<> t)
      : own_root(std::move(t)), who_(who), seen_by_(seen_by) {}

  class [[nodiscard]] next_order final : public coax::waiter {
   public:
    coax::waiting_for describe() const noexcept override { return {"a test"}; }
    explicit next_order(actor& a) noexcept : actor_(a) {}
    order await_resume() const noexcept { return given_; }

   private:
    friend class actor;
    bool start() noexcept override {
      actor_.listening_ = this;
      return false;
    }
    void stop() noexcept override {
      actor_.listening_ = nullptr;
      stopped();
    }
    actor& actor_;
    order given_ = order::go_on;
  };

  /// For the task itself: waits until it is told what to do.
  next_order next() noexcept { return next_order(*this); }

  bool listens() const noexcept { return listening_ != nullptr; }
  void tell(order o) {
    if (!listens()) throw std::logic_error("it does not wait for an order");
    listening_->given_ = o;
    std::exchange(listening_, nullptr)->complete();
  }

 private:
  void ended(outcome how) noexcept override {
    own_root::ended(how);
    const bool unwound = how == outcome::unwound;
    const bool failed = !unwound && promise().exception();
    seen_by_.ended(who_, unwound ? fate::unwound : failed ? fate::failed : fate::finished);
  }

  int who_;
  watcher& seen_by_;
  next_order* listening_ = nullptr;
};

// --- behaviour by behaviour ---

using lines = std::vector<std::string>;

/// The workers and acceptors of a test, who are named by letters, and what they have said.
class stage final : public watcher {
 public:
  manual_loop loop;
  std::optional<workers> idle{std::in_place};

  using part = task<> (*)(stage&, char);

  void start(part p, char who) {
    cast_.emplace(who, std::make_unique<actor>(who, *this, p(*this, who)));
  }
  actor& operator[](char who) { return *cast_.at(who); }

  connection accept() { return connection(++accepted_, *this); }

  void say(char who, std::string what) { said_.push_back(who + (" " + std::move(what))); }
  lines said() { return std::exchange(said_, {}); }  // since it was asked last

  task<> settled() {
    do {
      co_await coax::yield();
    } while (loop.has_ready());
  }
  /// One after the other, so that the last letter parks last.
  task<> enter(part p, std::string_view who) {
    for (const char each : who) {
      start(p, each);
      co_await settled();
    }
  }
  /// Ends whoever is left.
  task<> clear() {
    for (auto& [who, a] : cast_) a->cancel();
    co_await settled();
    for (auto& [who, a] : cast_) REQUIRE(a->has_ended());
  }

 private:
  void closed(int connection) noexcept override {
    said_.push_back(std::to_string(connection) + " closed");
  }
  void ended(int who, fate how) noexcept override {
    if (how == fate::failed) say(static_cast<char>(who), "failed");
    if (how == fate::unwound) say(static_cast<char>(who), "unwound");
  }

  std::map<char, std::unique_ptr<actor>> cast_;
  lines said_;
  int accepted_ = 0;
};

task<> worker(stage& on, char me) {
  while (auto c = co_await on.idle->park()) {
    on.say(me, "serves " + std::to_string(c->id()));
    const order next = co_await on[me].next();
    if (next == order::fail) throw failure();
  }
  on.say(me, "leaves");
}

task<> impatient_worker(stage& on, char me) {
  auto c = co_await coax::within(10s, on.idle->park());
  if (c && *c)
    on.say(me, "serves " + std::to_string((*c)->id()));
  else
    on.say(me, c ? "leaves" : c.error() == std::errc::timed_out ? "timed out" : "?");
}

task<> acceptor(stage& on, char me) {
  while (auto permit = co_await on.idle->reserve()) {
    on.say(me, "reserved");
    const order next = co_await on[me].next();
    if (next == order::hand_off) permit->hand_off(on.accept());
    if (next == order::fail) throw failure();
  }
  on.say(me, "leaves");
}

task<> impatient_acceptor(stage& on, char me) {
  const auto permit = co_await coax::within(10s, on.idle->reserve());
  on.say(me, permit ? "reserved" : permit.error() == std::errc::timed_out ? "timed out" : "?");
}

task<> whole(stage& on, task<> script) {
  co_await std::move(script);
  co_await on.clear();
}

/// Runs `script` on a stage, and looks whether anything is left.
void play(task<> (*script)(stage&)) {
  const std::ptrdiff_t frames = coax::detail::frames::live();
  auto on = std::make_unique<stage>();
  try {
    on->loop.run(whole(*on, script(*on)));
  } catch (...) {
    static_cast<void>(on.release());  // somebody still waits in it: its destruction would abort
    throw;
  }
  CHECK(on->loop.is_idle());
  on.reset();
  CHECK(coax::detail::frames::live() == frames);
}

TEST_CASE("the worker that parked last is served first", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "abc");
    CHECK(on.idle->size() == 3);
    for (int i = 0; i < 3; ++i) {
      auto permit = co_await on.idle->reserve();
      permit->hand_off(on.accept());
    }
    CHECK(on.idle->empty());
    co_await on.settled();
    CHECK(on.said() == lines{"c serves 1", "b serves 2", "a serves 3"});
    on['b'].tell(order::go_on);
    co_await on.settled();
    CHECK(on.idle->size() == 1);
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said() == lines{"2 closed", "b serves 4"});
  });
}

TEST_CASE("hand_off goes to the worker that is on top then", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    co_await on.enter(worker, "b");
    permit->hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said() == lines{"b serves 1"});
  });
}

TEST_CASE("a worker that was handed a connection runs at the next turn", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    CHECK(on.idle->size() == 0);
    CHECK(on.said().empty());
    co_await coax::yield();
    CHECK(on.said() == lines{"a serves 1"});
  });
}

TEST_CASE("reserve waits until a worker is idle that no other reservation counts on",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(acceptor, "x");
    CHECK(on.said().empty());
    co_await on.enter(worker, "a");
    CHECK(on.said() == lines{"x reserved"});
    co_await on.enter(acceptor, "y");  // a is idle, but x counts on it
    CHECK(on.said().empty());
    co_await on.enter(worker, "b");
    CHECK(on.said() == lines{"y reserved"});
    on['x'].tell(order::hand_off);  // one worker less, one permit less: nothing for x
    co_await on.settled();
    CHECK(on.said() == lines{"b serves 1"});
    CHECK(on.idle->size() == 1);
  });
}

TEST_CASE("those who wait for a reservation are served in turn", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(acceptor, "xyz");
    co_await on.enter(worker, "ab");
    CHECK(on.said() == lines{"x reserved", "y reserved"});
    on['x'].tell(order::give_back);  // and asks again, behind z
    co_await on.settled();
    CHECK(on.said() == lines{"z reserved"});
    on['y'].tell(order::give_back);
    co_await on.settled();
    CHECK(on.said() == lines{"x reserved"});
  });
}

TEST_CASE("a cancelled reserve leaves the queue", "[worker_stack]") {
  for (const char gone : {'x', 'y', 'z'}) {
    static char cancelled;
    cancelled = gone;
    play([](stage& on) -> task<> {
      co_await on.enter(acceptor, "xyz");
      on[cancelled].cancel();
      co_await on.settled();
      CHECK(on.said() == lines{cancelled + std::string(" unwound")});
      co_await on.enter(acceptor, "w");  // behind whoever is last now
      co_await on.enter(worker, "abc");
      lines expected;
      for (const char who : {'x', 'y', 'z', 'w'}) {
        if (who != cancelled) expected.push_back(who + std::string(" reserved"));
      }
      CHECK(on.said() == expected);
    });
  }
}

TEST_CASE("a reservation that is dropped is given back and wakes the next who waits",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    {
      const auto permit = co_await on.idle->reserve();
      REQUIRE(permit);
      co_await on.enter(acceptor, "xy");
      CHECK(on.said().empty());
    }
    co_await on.settled();
    CHECK(on.said() == lines{"x reserved"});
    on['x'].tell(order::fail);  // an exception drops it too
    co_await on.settled();
    CHECK(on.said() == lines{"x failed", "y reserved"});
    co_await on.enter(acceptor, "z");
    on['y'].cancel();  // and so does being cancelled
    co_await on.settled();
    CHECK(on.said() == lines{"y unwound", "z reserved"});
    CHECK(on.idle->size() == 1);
  });
}

TEST_CASE("a reservation moves, and one that is assigned to is given back", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "ab");
    auto first = co_await on.idle->reserve();
    auto second = co_await on.idle->reserve();
    co_await on.enter(acceptor, "x");
    CHECK(on.said().empty());
    *first = std::move(*second);
    second.reset();  // it had nothing left to give back
    co_await on.settled();
    CHECK(on.said() == lines{"x reserved"});
    co_await on.enter(acceptor, "y");
    CHECK(on.said().empty());
    auto moved = std::move(*first);
    first.reset();
    co_await on.settled();
    CHECK(on.said().empty());
    moved.hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said() == lines{"b serves 1"});
  });
}

TEST_CASE(
    "a loop of reservations that are ready at once lets others run, and ends when the stack is closed",
    "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(
          [](stage& here) -> task<> {
            while (auto permit = co_await here.idle->reserve()) {
            }
          },
          std::ref(on));
      co_await coax::yield();
      on.idle->close();
    });
  });
}

TEST_CASE("a parked worker that is cancelled is no longer on the stack", "[worker_stack]") {
  for (const char gone : {'a', 'b', 'c'}) {
    static char cancelled;
    cancelled = gone;
    play([](stage& on) -> task<> {
      co_await on.enter(worker, "abc");
      on[cancelled].cancel();
      CHECK(on.idle->size() == 2);  // at once, before it has unwound
      CHECK(on.said().empty());
      lines expected{cancelled + std::string(" unwound")};
      co_await on.settled();
      int id = 0;
      for (const char who : {'c', 'b', 'a'}) {
        if (who != cancelled) expected.push_back(who + (" serves " + std::to_string(++id)));
      }
      co_await on.enter(acceptor, "x");
      on['x'].tell(order::hand_off);
      co_await on.settled();
      on['x'].tell(order::hand_off);
      co_await on.settled();
      lines said = on.said();
      std::erase(said, "x reserved");
      CHECK(said == expected);
      CHECK(on.idle->empty());
    });
  }
}

TEST_CASE("when a worker was cancelled under a permit, the connection waits for the next to park",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "ab");
    auto first = co_await on.idle->reserve();
    auto second = co_await on.idle->reserve();
    on['a'].cancel();
    on['b'].cancel();
    co_await on.settled();
    CHECK(on.said() == lines{"a unwound", "b unwound"});
    co_await on.enter(acceptor, "x");
    first->hand_off(on.accept());
    second->hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said().empty());
    co_await on.enter(worker, "c");
    CHECK(on.said() == lines{"c serves 1"});
    CHECK(on.idle->empty());
    on['c'].tell(order::go_on);
    co_await on.settled();
    CHECK(on.said() == lines{"1 closed", "c serves 2"});
    on['c'].tell(order::go_on);
    co_await on.settled();
    CHECK(on.said() == lines{"2 closed", "x reserved"});
  });
}

TEST_CASE("a permit whose worker was cancelled counts on the next to park", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    on['a'].cancel();
    co_await on.enter(acceptor, "x");
    co_await on.enter(worker, "b");
    CHECK(on.said() == lines{"a unwound"});
    co_await on.enter(worker, "c");
    CHECK(on.said() == lines{"x reserved"});
    permit->hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said() == lines{"c serves 1"});
  });
}

TEST_CASE("connections that still wait are closed with the stack", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    on['a'].cancel();
    permit->hand_off(on.accept());
    on.idle->close();
    co_await on.settled();
    CHECK(on.said() == lines{"a unwound"});
    on.idle.reset();
    CHECK(on.said() == lines{"1 closed"});
  });
}

TEST_CASE("a worker that was handed a connection and then cancelled still gets it",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    on['a'].cancel();
    co_await on.settled();
    CHECK(on.said() == lines{"a serves 1", "1 closed", "a unwound"});
  });
}

TEST_CASE("an acceptor that was granted a reservation and then cancelled still gets it",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(acceptor, "xy");
    on.start(worker, 'a');
    co_await coax::yield();  // a parks, which makes x ready
    CHECK(on.said().empty());
    on['x'].cancel();
    co_await on.settled();
    CHECK(on.said() == lines{"x reserved", "x unwound", "y reserved"});
  });
}

TEST_CASE("an exception in a worker closes its connection", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "ab");
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    co_await on.settled();
    on['b'].tell(order::fail);
    co_await on.settled();
    CHECK(on.said() == lines{"b serves 1", "1 closed", "b failed"});
    CHECK(on.idle->size() == 1);
  });
}

TEST_CASE("close lets parked workers and waiting acceptors leave", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(acceptor, "xy");
    on.idle->close();
    co_await on.settled();
    CHECK(on.said() == lines{"x leaves", "y leaves"});
  });
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "abc");
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    co_await on.settled();
    on.idle->close();
    on.idle->close();
    CHECK(on.idle->empty());
    co_await on.settled();
    lines said = on.said();
    std::sort(said.begin(), said.end());
    CHECK(said == lines{"a leaves", "b leaves", "c serves 1"});
    on['c'].tell(order::go_on);  // the busy one finishes
    co_await on.settled();
    CHECK(on.said() == lines{"1 closed", "c leaves"});
    co_await on.enter(worker, "d");
    co_await on.enter(acceptor, "z");
    CHECK(on.said() == lines{"d leaves", "z leaves"});
  });
}

TEST_CASE("close keeps as many parked workers as reservations are out, until these are resolved",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "abcd");
    auto used = co_await on.idle->reserve();
    auto dropped = co_await on.idle->reserve();
    on.idle->close();
    CHECK(on.idle->size() == 2);
    co_await on.settled();
    CHECK(on.said().size() == 2);
    used->hand_off(on.accept());
    CHECK(on.idle->size() == 1);
    co_await on.settled();
    const lines said = on.said();
    REQUIRE(said.size() == 1);
    CHECK(said.front().substr(1) == " serves 1");
    co_await on.enter(worker, "e");  // one stays already, and one is all that is needed
    CHECK(on.said() == lines{"e leaves"});
    dropped.reset();
    CHECK(on.idle->empty());
    co_await on.settled();
    const lines last = on.said();
    REQUIRE(last.size() == 1);
    CHECK(last.front().substr(1) == " leaves");
  });
}

TEST_CASE("after close, a worker still parks for a reservation that counts on nobody else",
          "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    on.idle->close();
    on['a'].cancel();
    co_await on.settled();
    CHECK(on.said() == lines{"a unwound"});
    co_await on.enter(worker, "bc");
    CHECK(on.said() == lines{"c leaves"});
    permit->hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said() == lines{"b serves 1"});
  });
}

TEST_CASE("a reservation granted just before close is good", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(acceptor, "xy");
    on.start(worker, 'a');
    co_await coax::yield();  // a parks, which makes x ready
    on.idle->close();
    CHECK(on.idle->size() == 1);
    co_await on.settled();
    CHECK(on.said() == lines{"x reserved", "y leaves"});
    on['x'].tell(order::hand_off);
    co_await on.settled();
    CHECK(on.said() == lines{"x leaves", "a serves 1"});
  });
}

TEST_CASE("after close, a worker that parks still gets a connection that waits", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    on['a'].cancel();
    co_await on.settled();
    permit->hand_off(on.accept());
    on.idle->close();
    co_await on.enter(worker, "bc");
    CHECK(on.said() == lines{"a unwound", "b serves 1", "c leaves"});
  });
}

TEST_CASE("park within a limit times out and is no longer on the stack", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    co_await on.enter(impatient_worker, "bc");
    CHECK(on.idle->size() == 3);
    co_await coax::sleep_for(10s);
    CHECK(on.said() == lines{"b timed out", "c timed out"});
    CHECK(on.idle->size() == 1);
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    co_await on.settled();
    CHECK(on.said() == lines{"a serves 1"});
  });
}

TEST_CASE("a connection that was handed over in time beats the limit of park", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(impatient_worker, "a");
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    on.loop.advance(10s);  // before a runs
    co_await on.settled();
    CHECK(on.said() == lines{"a serves 1", "1 closed"});
  });
}

TEST_CASE("reserve within a limit times out and leaves the queue", "[worker_stack]") {
  play([](stage& on) -> task<> {
    co_await on.enter(impatient_acceptor, "x");
    co_await on.enter(acceptor, "y");
    co_await coax::sleep_for(10s);
    CHECK(on.said() == lines{"x timed out"});
    co_await on.enter(worker, "a");
    CHECK(on.said() == lines{"y reserved"});
  });
}

TEST_CASE("a race that park and another branch both win loses nothing", "[worker_stack]") {
  play([](stage& on) -> task<> {
    const auto racer = [](stage& at, char me) -> task<> {
      const auto won = co_await coax::race(at.idle->park(), coax::sleep_for(10s));
      const auto& got = std::get<0>(won);
      if (got && *got) at.say(me, "serves " + std::to_string((*got)->id()));
      if (std::get<1>(won)) at.say(me, "slept");
    };
    on.start(racer, 'a');
    co_await on.settled();
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    on.loop.advance(10s);  // before a runs
    co_await on.settled();
    CHECK(on.said() == lines{"a serves 1", "a slept", "1 closed"});
    CHECK(on.idle->empty());
  });
}

TEST_CASE("using a reservation twice, or one that was moved from, aborts and says why",
          "[worker_stack]") {
  const auto script = [](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    permit->hand_off(on.accept());
    permit->hand_off(on.accept());
  };
  CHECK(ending_of([&] { play(script); }).aborted_saying("used twice"));

  const auto moved = [](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    auto permit = co_await on.idle->reserve();
    const auto taken = std::move(*permit);
    permit->hand_off(on.accept());
  };
  CHECK(ending_of([&] { play(moved); }).aborted_saying("used twice"));
}

TEST_CASE("a stack that is destroyed while it is in use aborts and says why", "[worker_stack]") {
  const auto says_why = [](task<> (*script)(stage&)) {
    return ending_of([&] { play(script); }).aborted_saying("destroyed while it was in use");
  };
  CHECK(says_why([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    on.idle.reset();
  }));
  CHECK(says_why([](stage& on) -> task<> {
    co_await on.enter(acceptor, "x");
    on.idle.reset();
  }));
  CHECK(says_why([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    const auto permit = co_await on.idle->reserve();
    co_await on.clear();
    on.idle.reset();
  }));
  CHECK_FALSE(says_why([](stage& on) -> task<> {
    co_await on.enter(worker, "a");
    co_await on.clear();
    on.idle.reset();
  }));
}

/// The server of the README, but for sockets.
class small_server final : public watcher {
 public:
  task<> serve() {
    workers idle;
    auto body = [&](coax::scope& s) -> task<> {
      for (int i = 0; i < 3; ++i) s.spawn(&small_server::readwrite, this, std::ref(idle));
      co_await coax::race(accept(idle), coax::sleep_for(9500ms));
      CHECK(s.size() == 3);
      idle.close();
      const bool all_by_themselves = co_await s.join_within(10s);
      CHECK(all_by_themselves);
    };
    co_await coax::with_scope(body);
  }
  int accepted = 0;
  int served = 0;
  int over = 0;
  int most_at_once = 0;

 private:
  task<> readwrite(workers& idle) {
    while (auto c = co_await idle.park()) {
      most_at_once = std::max(most_at_once, accepted - over);
      co_await coax::sleep_for(1s);
      ++served;
    }
  }
  task<> accept(workers& idle) {
    while (auto reserved = co_await idle.reserve()) {
      co_await coax::yield();  // listener.accept()
      reserved->hand_off(connection(++accepted, *this));
    }
  }
  void closed(int) noexcept override { ++over; }
  void ended(int, fate) noexcept override {}
};

TEST_CASE("a server serves as many at once as it has workers, and finishes them after close",
          "[worker_stack]") {
  const std::ptrdiff_t frames = coax::detail::frames::live();
  {
    manual_loop loop;
    small_server server;
    loop.run(server.serve());
    CHECK(server.accepted == 30);  // three in each second that began
    CHECK(server.served == 30);
    CHECK(server.over == 30);
    CHECK(server.most_at_once == 3);
    CHECK(loop.is_idle());
  }
  CHECK(coax::detail::frames::live() == frames);
}

// --- random sequences, against a reference ---

/// What must become of somebody who asked the stack for something, and since which turn.
struct outcome {
  enum what { handed, left, granted, refused, unwound, timed_out } kind;
  int connection = 0;
  int turn = 0;

  std::string text() const {
    static constexpr std::array names{"handed",  "left",    "granted",
                                      "refused", "unwound", "timed out"};
    return names[kind] + (kind == handed ? " " + std::to_string(connection) : std::string());
  }
};

/// The specification of worker_stack, in containers and nothing else.
struct reference {
  std::vector<int> idle;      // the last one is on top
  std::deque<int> reservers;  // the first one is next
  std::deque<int> waiting;    // connections that were handed off when nobody was idle
  std::size_t permits = 0;    // reservations that are out
  bool closed = false;
  std::map<int, outcome> due;  // what must become of whom
  int turn = 0;

  void park(int who, bool cancelled) {
    if (!waiting.empty()) {
      tell(who, outcome::handed, take_front(waiting));
    } else if (closed && idle.size() >= permits) {
      tell(who, outcome::left);
    } else if (cancelled) {
      tell(who, outcome::unwound);
    } else {
      idle.push_back(who);
      resolve();
    }
  }
  void reserve(int who, bool cancelled) {
    if (closed) {
      tell(who, outcome::refused);
    } else if (one_is_free()) {
      grant(who);
    } else if (cancelled) {
      tell(who, outcome::unwound);
    } else {
      reservers.push_back(who);
    }
  }
  void hand_off(int connection) {
    --permits;
    if (idle.empty())
      waiting.push_back(connection);
    else
      tell(take_back(idle), outcome::handed, connection);
  }
  void give_back() {
    --permits;
    resolve();
  }
  /// `who` is cancelled, or out of time, which misses it when its wait has ended already.
  void give_up(int who, outcome::what why) {
    if (std::erase(idle, who) + std::erase(reservers, who) != 0) tell(who, why);
  }
  void close() {
    closed = true;
    resolve();
  }
  bool one_is_free() const { return reservers.empty() && idle.size() > permits; }

 private:
  void resolve() {
    if (closed) {
      while (!reservers.empty()) tell(take_front(reservers), outcome::refused);
      while (idle.size() > permits) tell(take_back(idle), outcome::left);
    } else {
      while (!reservers.empty() && idle.size() > permits) grant(take_front(reservers));
    }
  }
  void grant(int who) {
    ++permits;
    tell(who, outcome::granted);
  }
  void tell(int who, outcome::what what, int connection = 0) {
    due.insert_or_assign(who, outcome{what, connection, turn});
  }
  static int take_front(std::deque<int>& from) {
    const int first = from.front();
    from.pop_front();
    return first;
  }
  static int take_back(std::vector<int>& from) {
    const int last = from.back();
    from.pop_back();
    return last;
  }
};

/// One random sequence. Workers and acceptors tell the reference what they do in the moment they do
/// it, and compare what becomes of them with what it says; so the order in which they run need not
/// be foreseen.
class trial final : public watcher {
 public:
  trial(std::uint64_t seed, bool aloud) : random_(seed), seed_(seed), aloud_(aloud) {}

  manual_loop loop;

  task<> run() {
    const bool is_patient = random_(4) == 0;  // lets all of it run between steps
    const std::size_t steps = 30 + random_(50);
    const std::size_t close_at = random_(2 * steps);
    for (std::size_t at = 0; at < steps && good(); ++at) {
      if (at == close_at)
        close();
      else if (random_(40) == 0)
        co_await let_time_pass();
      else
        step();
      check();
      if (is_patient) {
        co_await settle();
      } else {
        for (std::size_t turns = random_(4); turns > 0; --turns) co_await turn();
      }
      check();
    }
    if (good()) co_await end();
  }

  bool good() const noexcept { return problem_.empty(); }
  std::string report() const {
    std::string text = "seed " + std::to_string(seed_) +
                       " (COAX_TEST_SEED=" + std::to_string(seed_) +
                       " runs it alone): " + problem_ + "; the steps:";
    for (const auto& [what, who] : steps_) text += "\n  " + described(what, who);
    return text;
  }

 private:
  struct part {
    std::unique_ptr<actor> self;
    bool is_worker = false;
    bool is_limited = false;  // gives up waiting when time passes
    bool is_cancelled = false;
    bool has_order = false;
    bool has_permit = false;
    int serving = 0;
  };

  static constexpr auto limit = 10ms;

  // --- what they do ---

  task<> worker(int me) {
    part& mine = cast_.at(me);
    for (;;) {
      std::optional<connection> c;
      model_.park(me, mine.is_cancelled);
      if (mine.is_limited) {
        auto in_time = co_await coax::within(limit, stack_->park());
        if (!in_time) co_return came(me, outcome::timed_out);
        if (*in_time) c.emplace(std::move(**in_time));
      } else {
        auto got = co_await stack_->park();
        if (got) c.emplace(*std::move(got));
      }
      if (!c) co_return came(me, outcome::left);
      came(me, outcome::handed, c->id());
      mine.serving = c->id();
      const order next = co_await mine.self->next();
      if (next == order::fail) throw failure();
      if (next == order::leave) co_return;
      c.reset();
      mine.has_order = false;
    }
  }

  /// A reservation that tells the reference when it is used or given back.
  class permit {
   public:
    permit(trial& in, part& owner, workers::reservation r)
        : in_(in), owner_(owner), held_(std::move(r)) {
      owner_.has_permit = true;
    }
    permit(const permit&) = delete;
    permit& operator=(const permit&) = delete;
    ~permit() {
      if (std::exchange(owner_.has_permit, false)) in_.model_.give_back();
    }
    void hand_off(connection c) {
      owner_.has_permit = false;
      in_.model_.hand_off(c.id());
      held_.hand_off(std::move(c));
    }

   private:
    trial& in_;
    part& owner_;
    workers::reservation held_;
  };

  task<> acceptor(int me) {
    part& mine = cast_.at(me);
    for (;;) {
      std::optional<workers::reservation> got;
      model_.reserve(me, mine.is_cancelled);
      if (mine.is_limited) {
        auto in_time = co_await coax::within(limit, stack_->reserve());
        if (!in_time) co_return came(me, outcome::timed_out);
        got = *std::move(in_time);
      } else {
        got = co_await stack_->reserve();
      }
      came(me, got ? outcome::granted : outcome::refused);
      if (!got) co_return;
      permit held(*this, mine, *std::move(got));
      const order next = co_await mine.self->next();
      if (next == order::fail) throw failure();
      if (next == order::leave) co_return;
      mine.has_order = false;
      if (next == order::hand_off && backlog_ > 0) {
        --backlog_;
        held.hand_off(connection(++accepted_, *this));
      }
    }
  }

  // --- what becomes of them ---

  void came(int who, outcome::what what, int connection = 0) noexcept {
    const outcome seen{what, connection};
    const auto expected = model_.due.find(who);
    if (expected == model_.due.end()) return wrong(who, seen.text() + ", should wait");
    if (expected->second.kind != what || expected->second.connection != connection)
      wrong(who, seen.text() + ", should be " + expected->second.text());
    model_.due.erase(expected);
  }
  void ended(int who, fate how) noexcept override {
    const part& its = cast_.at(who);
    if (how == fate::unwound) {
      if (!its.is_cancelled) wrong(who, "unwound, and nobody had cancelled it");
      if (model_.due.contains(who)) came(who, outcome::unwound);
    } else if (model_.due.contains(who)) {
      wrong(who, "gone, should be " + model_.due.at(who).text());
    }
    if (its.serving != 0 || its.has_permit) wrong(who, "gone, and has not let go of what it had");
  }
  void closed(int connection) noexcept override {
    ++closed_;
    if (!stack_) return;  // it waited until the end
    for (auto& [who, p] : cast_) {
      if (p.serving != connection) continue;
      if (!p.has_order && !p.is_cancelled) wrong(who, "closes its connection unasked");
      p.serving = 0;
      return;
    }
    wrong(0, "connection " + std::to_string(connection) + " was dropped, and nobody served it");
  }

  void check() noexcept {
    std::size_t serving = 0, permits = 0;
    for (const auto& [who, p] : cast_) {
      serving += p.serving != 0;
      permits += p.has_permit;
    }
    std::size_t on_the_way = 0;
    for (const auto& [who, next] : model_.due) {
      on_the_way += next.kind == outcome::handed;
      permits += next.kind == outcome::granted;
    }
    expect("size()", stack_->size(), model_.idle.size());
    expect("empty()", stack_->empty(), model_.idle.empty());
    expect("reservations that are out", permits, model_.permits);
    expect("accepted = serving + waiting + closed; accepted", static_cast<std::size_t>(accepted_),
           serving + on_the_way + model_.waiting.size() + closed_);
  }

  // --- who makes them do it ---

  task<> turn() {
    note("a turn");
    ++model_.turn;
    co_await coax::yield();
    for (const auto& [who, next] : model_.due) {
      if (next.turn < model_.turn) wrong(who, "still waits, should be " + next.text());
    }
  }
  task<> settle() {
    while (loop.has_ready() && good()) co_await turn();
    for (auto each = cast_.begin(); each != cast_.end();) {
      const part& p = each->second;
      if (!p.self->has_ended() && p.is_cancelled) wrong(each->first, "not gone, and was cancelled");
      if (!p.self->has_ended() && p.has_order) wrong(each->first, "does not do what it is told");
      each = p.self->has_ended() ? cast_.erase(each) : std::next(each);
    }
  }
  task<> let_time_pass() {
    co_await settle();  // time passes only when nothing is ready
    note("time passes");
    for (const auto& [who, p] : cast_) {
      if (p.is_limited) model_.give_up(who, outcome::timed_out);
    }
    co_await coax::sleep_for(limit);
    check();
  }

  /// Somebody of whom `fits` is true, or 0.
  int anybody(bool fits(const part&)) {
    std::size_t count = 0;
    int chosen = 0;
    for (const auto& [who, p] : cast_) {
      if (!p.self->has_ended() && fits(p) && random_(++count) == 0) chosen = who;
    }
    return chosen;
  }
  static bool busy_worker(const part& p) { return p.is_worker && p.self->listens(); }
  static bool busy_acceptor(const part& p) { return !p.is_worker && p.self->listens(); }

  void enter(bool is_worker) {
    const int who = ++entered_;
    note(is_worker ? "a worker enters" : "an acceptor enters", who);
    part& p = cast_[who];
    p.is_worker = is_worker;
    p.is_limited = random_(6) == 0;
    p.self = std::make_unique<actor>(who, *this, is_worker ? worker(who) : acceptor(who));
  }
  void tell(std::string_view what, int who, order o) {
    if (who == 0) return;
    note(what, who);
    cast_.at(who).has_order = true;
    cast_.at(who).self->tell(o);
  }
  void cancel(int who) {
    if (who == 0) return;
    note("cancel", who);
    part& p = cast_.at(who);
    if (!p.is_cancelled) model_.give_up(who, outcome::unwound);
    p.is_cancelled = true;
    p.self->cancel();
  }
  void close() {
    note("close");
    model_.close();
    stack_->close();
  }

  void step() {
    const auto is_worker = [](const part& p) { return p.is_worker; };
    const auto is_acceptor = [](const part& p) { return !p.is_worker; };
    const std::size_t die = random_(60);
    if (die < 10) {
      if (cast_.size() < 12) enter(true);
    } else if (die < 15) {
      if (cast_.size() < 12) enter(false);
    } else if (die < 22) {
      note("connections arrive");
      backlog_ += 1 + random_(3);
    } else if (die < 38) {
      tell("hand off", anybody(busy_acceptor), order::hand_off);
    } else if (die < 40) {
      tell("drop the reservation", anybody(busy_acceptor), order::give_back);
    } else if (die < 41) {
      tell("throw", anybody(busy_acceptor), order::fail);
    } else if (die < 52) {
      tell("park again", anybody(busy_worker), order::go_on);
    } else if (die < 53) {
      tell("leave", anybody(busy_worker), order::leave);
    } else if (die < 54) {
      tell("throw", anybody(busy_worker), order::fail);
    } else if (die < 58) {
      cancel(anybody(is_worker));
    } else {
      cancel(anybody(is_acceptor));
    }
  }

  /// Everybody must find the way out, by being cancelled or because the stack is closed.
  task<> end() {
    if (random_(2) == 0) {
      for (const auto& [who, p] : cast_) {
        if (!p.self->has_ended()) cancel(who);
      }
      check();
    } else {
      close();
    }
    co_await settle();
    while (good()) {
      check();
      const int acceptor = anybody(busy_acceptor);
      tell("hand off", acceptor, order::hand_off);
      const int worker = anybody(busy_worker);
      tell("park again", worker, order::go_on);
      if (acceptor == 0 && worker == 0) break;
      check();
      co_await settle();
    }
    for (const auto& [who, p] : cast_) wrong(who, "still there");
    if (!good()) co_return;
    stack_.reset();
    expect("at the end, closed", closed_, static_cast<std::size_t>(accepted_));
  }

  // --- what is written down ---

  static std::string described(std::string_view what, int who) {
    return std::string(what) + (who != 0 ? ": " + std::to_string(who) : std::string());
  }
  void note(std::string_view what, int who = 0) {
    steps_.emplace_back(what, who);
    if (aloud_) std::fprintf(stderr, "%s\n", described(what, who).c_str());
  }
  void wrong(int who, std::string what) {
    if (!good()) return;
    problem_ = who != 0 ? std::to_string(who) + ": " + std::move(what) : std::move(what);
    note(problem_.c_str());
  }
  void expect(std::string_view what, std::size_t is, std::size_t should) {
    if (is != should)
      wrong(0, std::string(what) + " is " + std::to_string(is) + ", should be " +
                   std::to_string(should));
  }

  dice random_;
  std::uint64_t seed_;
  bool aloud_;
  reference model_;
  std::unique_ptr<workers> stack_ = std::make_unique<workers>();  // null while it is destroyed
  std::map<int, part> cast_;
  int entered_ = 0;
  int accepted_ = 0;
  std::size_t backlog_ = 0;
  std::size_t closed_ = 0;
  std::vector<std::pair<std::string_view, int>> steps_;
  std::string problem_;
};

void run_seed(std::uint64_t seed, bool aloud) {
  const std::ptrdiff_t frames = coax::detail::frames::live();
  auto one = std::make_unique<trial>(seed, aloud);
  one->loop.run(one->run());
  if (!one->good()) FAIL(one.release()->report());  // not destroyed: somebody may still wait in it
  if (!one->loop.is_idle()) FAIL("seed " << seed << ": not at rest");
  one.reset();
  if (coax::detail::frames::live() != frames) FAIL("seed " << seed << ": frames are left");
}

TEST_CASE("random sequences do what the specification says, and no connection is lost",
          "[worker_stack]") {
  if (const char* one = std::getenv("COAX_TEST_SEED")) {
    run_seed(std::strtoull(one, nullptr, 10), true);
  } else {
    for (std::uint64_t seed = 1; seed <= 10'000; ++seed) {
      INFO("seed " << seed << " (COAX_TEST_SEED=" << seed << " runs it alone)");
      run_seed(seed, false);
    }
  }
  SUCCEED();
}

}  // namespace

TEST_CASE("awaiting a park that was moved away ends the program with a message", "[worker_stack]") {
  const ending seen = ending_of([] {
    manual_loop loop;
    coax::worker_stack<int> idle;
    const auto body = [&]() -> coax::task<> {
      auto parked = idle.park();
      const auto elsewhere = std::move(parked);
      auto item = co_await std::move(parked);
      CHECK(item);
    };
    loop.run(body());
  });
  CHECK(seen.aborted_saying("awaited after it had been moved from"));
}
