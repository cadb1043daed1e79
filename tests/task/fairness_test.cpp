#include <coax/task/race.hpp>
#include <coax/task/ready_queue.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include "probes.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

task<> writes_and_yields(std::string& log, char name, int times) {
  for (int i = 0; i < times; ++i) {
    log += name;
    co_await coax::yield();
  }
}

/// A loop that is run one turn at a time.
class one_turn final : public coax::loop {
 public:
  one_turn() noexcept : loop(coax::clock::time_point(1h)) {}
  coax::clock::time_point now() const noexcept override { return coax::clock::time_point(1h); }
  void add(coax::ready_node& node) {
    const running_here guard(*this);
    make_ready(node);
  }
  void turn() {
    const running_here guard(*this);
    run_ready();
    turn_ends();
  }
};

/// Writes its number when it runs, and is ready again at once if it is told to.
class ready_again final : public coax::ready_node {
 public:
  ready_again(coax::loop& l, std::vector<int>& log, int number, bool again)
      : loop_(l), log_(log), number_(number), again_(again) {}

 private:
  void run() noexcept override {
    log_.push_back(number_);
    if (again_) loop_.make_ready(*this);
  }

  coax::loop& loop_;
  std::vector<int>& log_;
  int number_;
  bool again_;
};

}  // namespace

TEST_CASE("tasks that yield take turns", "[fairness]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      for (const char name : {'a', 'b', 'c'}) s.spawn(writes_and_yields, std::ref(log), name, 4);
      co_return;
    });
  });
  CHECK(log == "abcabcabcabc");
}

TEST_CASE("branches of a race that yield take turns", "[fairness]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::race(writes_and_yields(log, 'a', 3), writes_and_yields(log, 'b', 9));
  });
  CHECK(log.substr(0, 6) == "ababab");
}

TEST_CASE("a task that always yields keeps nobody out", "[fairness]") {
  test_loop loop;
  bool over = false;
  int rounds = 0;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(
          [](const bool& stop, int& n) -> task<> {
            while (!stop) {
              ++n;
              co_await coax::yield();
            }
          },
          std::cref(over), std::ref(rounds));
      for (int i = 0; i < 100; ++i) co_await coax::yield();
      over = true;
    });
  });
  CHECK(rounds >= 99);
  CHECK(rounds <= 101);
}

TEST_CASE("a task whose waits always end at once keeps nobody out", "[fairness]") {
  const auto in_itself = [](script& each) -> task<> { co_await scripted_wait(each); };
  for (const bool ready : {false, true}) {
    for (const bool in_tasks : {false, true}) {
      test_loop loop;
      script s;
      s.ready = ready;
      s.completes_at_once = true;
      bool over = false;
      const auto always = [&]() -> task<> {
        while (!over) {
          if (in_tasks)
            co_await in_itself(s);
          else
            co_await scripted_wait(s);
        }
      };
      loop.run([&]() -> task<> {
        co_await coax::with_scope([&](scope& own) -> task<> {
          own.spawn(std::cref(always));
          for (int i = 0; i < 100; ++i) co_await coax::yield();
          over = true;
        });
      });
      CHECK(s.resumed >= 100 * 10);  // some dozens of completions in each turn, and no more
      CHECK(s.resumed <= 100 * 100);
    }
  }
}

TEST_CASE("a thousand tasks that yield all get their turns", "[fairness]") {
  test_loop loop;
  std::vector<int> turns(1'000);
  int spread_max = 0;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      for (int& mine : turns) {
        s.spawn(
            [](int& n, const std::vector<int>& all, int& spread) -> task<> {
              for (int i = 0; i < 20; ++i) {
                ++n;
                const auto [fewest, most] = std::minmax_element(all.begin(), all.end());
                spread = std::max(spread, *most - *fewest);
                co_await coax::yield();
              }
            },
            std::ref(mine), std::cref(turns), std::ref(spread_max));
      }
      co_return;
    });
  });
  CHECK(spread_max == 1);
}

TEST_CASE("what becomes ready in a turn runs in the next one", "[fairness]") {
  one_turn loop;
  std::vector<int> log;
  ready_again a(loop, log, 1, true);
  ready_again b(loop, log, 2, false);
  loop.add(a);
  loop.add(b);
  loop.turn();
  CHECK(log == std::vector<int>{1, 2});
  loop.turn();
  CHECK(log == std::vector<int>{1, 2, 1});
}

TEST_CASE("a turn runs a bounded number of what is ready, and the next goes on where it ended",
          "[fairness]") {
  constexpr int many = 10'000;
  one_turn loop;
  std::vector<int> log;
  std::vector<ready_again> nodes;
  nodes.reserve(many);
  for (int i = 0; i < many; ++i) {
    nodes.emplace_back(loop, log, i, false);
    loop.add(nodes.back());
  }
  loop.turn();
  CHECK(log.size() > 0);
  CHECK(log.size() <= 1'000);
  while (log.size() < many) {
    const std::size_t before = log.size();
    loop.turn();
    REQUIRE(log.size() > before);
  }
  CHECK(std::is_sorted(log.begin(), log.end()));
}

TEST_CASE("those that sleep until the same time wake in the order in which they began",
          "[fairness]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      const auto until = coax::now() + 1s;
      for (const char name : {'a', 'b', 'c', 'd'}) {
        s.spawn(
            [](std::string& l, char n, coax::clock::time_point t) -> task<> {
              co_await coax::sleep_until(t);
              l += n;
            },
            std::ref(log), name, until);
      }
      co_await coax::sleep_for(500ms);
      co_await coax::sleep_until(until);
      log += '.';
    });
  });
  CHECK(log == "abcd.");
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a sleep until a time that has passed still gives others their turn", "[fairness]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      s.spawn(writes_and_yields, std::ref(log), 'a', 2);
      for (const auto how_long : {coax::timeout(0s), coax::timeout(-1h)}) {
        co_await coax::sleep_for(how_long);
        log += '.';
      }
    });
  });
  CHECK(log.front() == 'a');
  CHECK(loop.elapsed() == 0s);
}

TEST_CASE("now is the time of the loop", "[fairness]") {
  test_loop loop;
  loop.run([&]() -> task<> {
    const auto begin = coax::now();
    CHECK(begin == loop->now());
    co_await coax::sleep_for(90min);
    CHECK(coax::now() - begin == 90min);
    CHECK(coax::clock::now() == coax::now());
  });
}

TEST_CASE("a queue goes on behind one that was taken out of its end") {
  struct node final : coax::ready_node {
    void run() noexcept override {}
  };
  node a;
  node b;
  node c;
  coax::ready_queue line;
  line.push(a);
  line.push(b);
  CHECK(line.remove(b));
  CHECK_FALSE(line.remove(b));
  line.push(c);
  CHECK(line.size() == 2);
  CHECK(line.pop() == &a);
  CHECK(line.pop() == &c);
  CHECK(line.pop() == nullptr);
}
