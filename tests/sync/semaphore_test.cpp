#include <coax/sync/semaphore.hpp>

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
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

namespace {

using permit = coax::semaphore::permit;

coax::task<> holds(coax::semaphore& s, std::string& log, char name, script& until) {
  const auto place = co_await s.acquire();
  log += name;
  co_await scripted_wait(until);
}

/// Gives what it got to the test.
coax::task<> takes(coax::semaphore& s, std::optional<permit>& into) { into = co_await s.acquire(); }

}  // namespace

TEST_CASE("a semaphore lets in as many as it counts, the others in the order they came",
          "[semaphore]") {
  test_loop loop;
  coax::semaphore s(2);
  std::string log;
  script ends[5];
  std::unique_ptr<watched<>> all[5];
  for (int i = 0; i < 5; ++i)
    all[i] = std::make_unique<watched<>>(*loop, holds(s, log, static_cast<char>('a' + i), ends[i]));
  loop->settle();
  CHECK(log == "ab");
  loop->inside([&] { ends[1].complete(0); });
  loop->settle();
  CHECK(log == "abc");
  loop->inside([&] {
    ends[0].complete(0);
    ends[2].complete(0);
  });
  loop->settle();
  CHECK(log == "abcde");
  for (script& end : ends) loop->inside([&] { end.complete(0); });
  loop->settle();
  CHECK(all[4]->finished());
}

TEST_CASE("nobody who comes later gets a permit that is on its way to one who waited",
          "[semaphore]") {
  test_loop loop;
  coax::semaphore s(1);
  std::string log;
  script ends[2];
  std::optional<permit> held;
  watched<> a(*loop, takes(s, held));
  watched<> b(*loop, holds(s, log, 'b', ends[0]));
  loop->settle();
  loop->inside([&] { held->release(); });
  watched<> c(*loop, holds(s, log, 'c', ends[1]));
  loop->settle();
  CHECK(log == "b");
  loop->inside([&] { ends[0].complete(0); });
  loop->settle();
  CHECK(log == "bc");
  c.cancel_from_outside();
  loop->settle();
}

TEST_CASE("a wait for a permit that is cancelled leaves the queue", "[semaphore]") {
  for (int gone = 0; gone < 3; ++gone) {
    test_loop loop;
    coax::semaphore s(1);
    std::string log;
    script never;
    std::optional<permit> held;
    watched<> holder(*loop, takes(s, held));
    loop->settle();
    std::unique_ptr<watched<>> all[3];
    for (int i = 0; i < 3; ++i)
      all[i] = std::make_unique<watched<>>(*loop, holds(s, log, static_cast<char>('a' + i), never));
    loop->settle();
    all[gone]->cancel_from_outside();
    loop->settle();
    CHECK(all[gone]->unwound());
    loop->inside([&] { held->release(); });
    std::string expected;
    for (int i = 0; i < 3; ++i) {
      loop->settle();
      if (i == gone) continue;
      expected += static_cast<char>('a' + i);
      CHECK(log == expected);
      all[i]->cancel_from_outside();  // which gives back what it holds
    }
    loop->settle();
  }
}

TEST_CASE("a permit that is handed over in the turn of a cancellation is not lost", "[semaphore]") {
  for (const bool cancelled_first : {false, true}) {
    test_loop loop;
    coax::semaphore s(1);
    std::string log;
    script never;
    std::optional<permit> held;
    watched<> a(*loop, takes(s, held));
    watched<> b(*loop, holds(s, log, 'b', never));
    watched<> c(*loop, holds(s, log, 'c', never));
    loop->settle();
    loop->inside([&] {
      if (cancelled_first) b.cancel();
      held->release();
      b.cancel();
    });
    loop->settle();
    CHECK(log == (cancelled_first ? "c" : "bc"));
    CHECK(b.unwound());
    c.cancel_from_outside();
    loop->settle();
  }
}

TEST_CASE("a permit that was handed over in time beats the limit, otherwise the wait has left",
          "[semaphore]") {
  for (const bool in_time : {false, true}) {
    test_loop loop;
    coax::semaphore s(1);
    std::string log;
    std::optional<permit> held;
    watched<> a(*loop, takes(s, held));
    watched<> b(*loop, [](coax::semaphore& from, std::string& says) -> coax::task<> {
      const auto got = co_await coax::within(1s, from.acquire());
      says += got ? "got it" : got.error() == std::errc::timed_out ? "timed out" : "?";
    }(s, log));
    loop->settle();
    if (in_time) loop->inside([&] { held->release(); });
    loop->advance(1s);  // before b runs
    if (!in_time) loop->inside([&] { held->release(); });
    loop->settle();
    CHECK(log == (in_time ? "got it" : "timed out"));
    loop.run([&]() -> coax::task<> { const auto free = co_await s.acquire(); });
  }
}

TEST_CASE("a free permit is given even while the task is being cancelled", "[semaphore]") {
  test_loop loop;
  coax::semaphore s(2);
  int got = 0;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope([&](coax::scope& in) -> coax::task<> {
      in.cancel();
      std::vector<permit> permits;
      while (true) {
        permits.push_back(co_await s.acquire());
        ++got;
      }
    });
  });
  CHECK(got == 2);
}

TEST_CASE("an exception in a holder gives its permit back", "[semaphore]") {
  test_loop loop;
  coax::semaphore s(1);
  loop.run([&]() -> coax::task<> {
    auto fails = [&]() -> coax::task<> {
      const auto place = co_await s.acquire();
      co_await coax::yield();
      throw std::runtime_error("as it was told");
    };
    bool thrown = false;
    try {
      co_await fails();
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
    const auto place = co_await s.acquire();
  });
}

TEST_CASE("a permit moves into another task, is released when told, and when it is assigned to",
          "[semaphore]") {
  test_loop loop;
  coax::semaphore s(2);
  loop.run([&]() -> coax::task<> {
    auto first = co_await s.acquire();
    co_await coax::with_scope([&](coax::scope& in) -> coax::task<> {
      auto child = [&](permit) -> coax::task<> { co_await coax::sleep_for(1s); };
      in.spawn(std::ref(child), std::move(first));
      first.release();  // holds nothing
      auto second = co_await s.acquire();
      auto third = co_await coax::within(100ms, s.acquire());
      CHECK_FALSE(third);
      auto fourth = co_await s.acquire();  // when the child has ended
      fourth = std::move(second);
      auto fifth = co_await coax::within(0s, s.acquire());
      CHECK(fifth);
      fourth.release();
      fourth.release();
      auto sixth = co_await coax::within(0s, s.acquire());
      CHECK(sixth);
      auto seventh = co_await coax::within(0s, s.acquire());
      CHECK_FALSE(seventh);
    });
  });
  CHECK(loop.elapsed() == 1s);
}

TEST_CASE("a semaphore that would let nobody in is refused", "[semaphore]") {
  CHECK_THROWS_AS(coax::semaphore(0), std::invalid_argument);
  CHECK_THROWS_AS(coax::semaphore(static_cast<std::size_t>(-1)), std::invalid_argument);
}

TEST_CASE("a million permits that are free take constant stack, and let others run",
          "[semaphore]") {
  bool others_ran = false;
  on_small_stack([&] {
    test_loop loop;
    coax::semaphore s(1);
    loop.run([&]() -> coax::task<> {
      co_await coax::with_scope([&](coax::scope& in) -> coax::task<> {
        auto other = [&]() -> coax::task<> {
          others_ran = true;
          co_return;
        };
        in.spawn(std::ref(other));
        for (int i = 0; i < 1'000; ++i) const auto place = co_await s.acquire();
        CHECK(others_ran);
        for (int i = 0; i < 1'000'000; ++i) const auto place = co_await s.acquire();
      });
    });
  });
}

TEST_CASE("a semaphore that is destroyed while it is in use aborts and says why", "[semaphore]") {
  const auto says_why = [](bool while_used) {
    return ending_of([&] {
             manual_loop loop;
             std::optional<coax::semaphore> s(std::in_place, 1U);
             std::optional<permit> held;
             watched<> one(loop, takes(*s, held));
             loop.settle();
             if (while_used) s.reset();
             held.reset();
             s.reset();
           })
        .aborted_saying("destroyed while somebody held or waited for a permit");
  };
  CHECK(says_why(true));
  CHECK_FALSE(says_why(false));
}

// --- random sequences, against a reference ---

namespace {

class semaphore_trial final : public random_trial {
 public:
  using random_trial::random_trial;

 private:
  enum order { acquire, acquire_in_time, release, move_away, fail, leave };

  /// A permit that tells the reference when it is given back.
  class held {
   public:
    held(semaphore_trial& t, permit p) : trial_(&t), permit_(std::move(p)) { ++trial_->held_; }
    held(held&& other) noexcept
        : trial_(std::exchange(other.trial_, nullptr)), permit_(std::move(other.permit_)) {}
    held& operator=(held&&) = delete;
    ~held() {
      if (trial_ == nullptr) return;
      --trial_->held_;
      trial_->free_one();
      permit_.release();
    }

   private:
    semaphore_trial* trial_;
    permit permit_;
  };

  coax::task<> life(int me) override {
    std::deque<held> mine;
    while (true) {
      switch (const int told = co_await next(me)) {
        case acquire: {
          ask(me);
          auto got = co_await semaphore_.acquire();
          came(me, "acquired");
          mine.emplace_back(*this, std::move(got));
          break;
        }
        case acquire_in_time: {
          in_time(me);
          ask(me);
          auto got = co_await coax::within(limit, semaphore_.acquire());
          came(me, got ? "acquired" : "timed out");
          if (got) mine.emplace_back(*this, *std::move(got));
          break;
        }
        case release:
          if (!mine.empty()) mine.pop_front();
          break;
        case move_away:
          if (!mine.empty()) {
            away_.push_back(std::move(mine.front()));
            mine.pop_front();
          }
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
    const std::size_t die = random_(30);
    if (die < 6) return enter();
    if (die < 8) return cancel(anybody());
    if (die == 8 && !away_.empty()) {
      note("a permit that was moved away is given back");
      return away_.pop_front();
    }
    const int who = listener();
    if (who == 0) return;
    if (die < 16) return tell(who, acquire, "shall acquire");
    if (die < 19) return tell(who, acquire_in_time, "shall acquire in time");
    if (die < 26) return tell(who, release, "shall release");
    if (die < 28) return tell(who, move_away, "shall move its permit away");
    if (die < 29) return tell(who, fail, "shall throw");
    tell(who, leave, "shall leave");
  }

  // --- the reference ---

  void ask(int who) {
    if (free_ > 0) {
      --free_;
      due(who, "acquired");
    } else if (cancelled(who)) {
      due(who, "unwound");
    } else {
      waiting_.push_back(who);
    }
  }
  void free_one() {
    if (waiting_.empty()) {
      ++free_;
    } else {
      due(waiting_.front(), "acquired");
      waiting_.pop_front();
    }
  }
  void give_up(int who, const char* why) override {
    if (std::erase(waiting_, who) != 0) due(who, why);
  }
  void check() override {
    if (held_ > count_) wrong(0, "more permits than the semaphore counts");
  }

  std::size_t count_ = 1 + random_(3);
  coax::semaphore semaphore_{count_};
  std::size_t free_ = count_;
  std::size_t held_ = 0;
  std::deque<int> waiting_;
  std::deque<held> away_;  // destroyed first
};

}  // namespace

TEST_CASE("random sequences: a semaphore does what the reference says", "[semaphore]") {
  run_seeds<semaphore_trial>(4'000);
}
