#include "at_every_await.hpp"

#include "../sync/dice.hpp"

#include <coax/sync/channel.hpp>
#include <coax/sync/event.hpp>
#include <coax/sync/mutex.hpp>
#include <coax/sync/semaphore.hpp>
#include <coax/task/finally.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// Tasks composed at random of everything that composes, with cancels at random, under virtual time. A seed decides all of it.

using namespace std::chrono_literals;
using coax::task;

namespace {

class composition {
 public:
  explicit composition(std::uint64_t seed) : roll_(seed) {}

  task<> subject() {
    // A part may wait for what never comes; the whole is bounded.
    auto in_time = co_await coax::within(1h, part(0));
    static_cast<void>(in_time);
  }

  /// Cancels what it meets, and lets those go on who wait for others.
  task<> chaos(coax::root& subject) {
    for (int i = 0; i < 12; ++i) {
      co_await coax::sleep_for(some_time());
      switch (roll_(8)) {
        case 0:
          if (i > 3) subject.cancel();
          break;
        case 1:
        case 2:
          if (!scopes_.empty()) scopes_[roll_(scopes_.size())]->cancel();
          break;
        case 3:
          flag_.set();
          break;
        case 4:
          flag_.reset();
          break;
        case 5:
          if (i > 8) pipe_.close();
          break;
        default:
          static_cast<void>(pipe_.try_send(token(next_sent_)) && ++next_sent_);
      }
    }
    flag_.set();
    pipe_.close();
  }

  std::string verdict() const {
    std::string wrong;
    if (out_of_order_) wrong += " values of the channel are lost or out of order;";
    if (crowded_) wrong += " two held the mutex, or three the semaphore;";
    if (left_behind_) wrong += " something ended before what it awaits;";
    if (shields_begun_ != shields_ended_) wrong += " what was shielded was cut off;";
    if (bodies_ != cleanups_) wrong += " a clean-up did not run to its end;";
    return wrong;
  }
  int parts() const { return parts_; }

 private:
  struct tries_too_much : std::runtime_error {
    using std::runtime_error::runtime_error;
  };

  /// One who is awaited: it must be gone before the one who awaits it goes on.
  class below {
   public:
    explicit below(int& count) noexcept : count_(count) { ++count_; }
    below(const below&) = delete;
    below& operator=(const below&) = delete;
    ~below() { --count_; }

   private:
    int& count_;
  };
  /// Declared by one who awaits others, before it does.
  class above {
   public:
    explicit above(composition& c) noexcept : all_(c) {}
    above(const above&) = delete;
    above& operator=(const above&) = delete;
    ~above() { gone(); }
    void gone() noexcept { all_.left_behind_ = all_.left_behind_ || count != 0; }
    int count = 0;

   private:
    composition& all_;
  };

  coax::clock::duration some_time() { return std::chrono::milliseconds(roll_(7)); }

  task<> counted_part(int& count, int depth) {
    const below one(count);
    co_await part(depth);
  }

  task<> part(int depth) {
    const token mine;
    ++parts_;
    const std::size_t steps = 1 + roll_(3);
    for (std::size_t i = 0; i < steps; ++i) {
      if (depth >= 6 || parts_ > 80)
        co_await simple();
      else
        co_await composed(depth + 1);
    }
  }

  task<> simple() {
    const token mine;
    switch (roll_(7)) {
      case 0:
        co_await coax::yield();
        break;
      case 1: {
        auto set = co_await coax::within(some_time(), flag_.wait());
        static_cast<void>(set);
        break;
      }
      case 2: {
        auto got = co_await coax::within(some_time(), pipe_.receive());
        if (got && *got) {
          out_of_order_ = out_of_order_ || (*got)->id != next_received_;
          next_received_ = (*got)->id + 1;
        }
        break;
      }
      case 3: {
        auto held = co_await coax::within(some_time(), lock_.lock());
        if (held) {
          const below one(in_lock_);
          crowded_ = crowded_ || in_lock_ > 1;
          co_await coax::sleep_for(some_time());
        }
        break;
      }
      case 4: {
        auto permit = co_await permits_.acquire();
        const below one(in_permits_);
        crowded_ = crowded_ || in_permits_ > 2;
        co_await coax::sleep_for(some_time());
        break;
      }
      default:
        co_await coax::sleep_for(some_time());
    }
  }

  task<> composed(int depth) {
    above all(*this);
    switch (roll_(10)) {
      case 0:
        co_await coax::race(counted_part(all.count, depth), counted_part(all.count, depth));
        break;
      case 1:
        co_await coax::race(coax::sleep_for(some_time()), counted_part(all.count, depth), simple());
        break;
      case 2: {
        auto in_time = co_await coax::within(some_time(), counted_part(all.count, depth));
        static_cast<void>(in_time);
        break;
      }
      case 3:
        co_await coax::when_all(counted_part(all.count, depth), counted_part(all.count, depth));
        break;
      case 4:
        co_await coax::shield(shielded_part(depth));
        break;
      case 5:
        co_await cleaned_part(all.count, depth);
        break;
      case 6:
      case 7:
        co_await scope_of_parts(all.count, depth);
        break;
      case 8:
        co_await throwing(all.count, depth);
        break;
      default:
        co_await counted_part(all.count, depth);
    }
    all.gone();
  }

  task<> shielded_part(int depth) {
    ++shields_begun_;
    int count = 0;
    // Bounded, and whatever happens below it ends: only what it awaits can be cancelled, by its own limits.
    auto in_time = co_await coax::within(20ms, quiet_part(count, depth));
    static_cast<void>(in_time);
    left_behind_ = left_behind_ || count != 0;
    ++shields_ended_;
  }
  task<> quiet_part(int& count, int depth) {
    try {
      co_await counted_part(count, depth);
    } catch (const tries_too_much&) {
    }
  }

  task<> cleaned_part(int& count, int depth) {
    int in_body = 0;
    co_await coax::finally(
        [&]() -> task<> {
          ++bodies_;
          return counted_part(in_body, depth);
        },
        [&]() -> task<> {
          left_behind_ = left_behind_ || in_body != 0;
          return clean_up(count);
        });
  }
  task<> clean_up(int& count) {
    const below one(count);
    co_await coax::yield();
    co_await coax::sleep_for(some_time());
    ++cleanups_;
  }

  task<> scope_of_parts(int& count, int depth) {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      scopes_.push_back(&s);
      const at_end forgets([&] { std::erase(scopes_, &s); });
      const std::size_t children = 1 + roll_(3);
      for (std::size_t i = 0; i < children; ++i)
        s.spawn([this](int& c, int d) -> task<> { return counted_part(c, d); }, std::ref(count),
                depth);
      co_await simple();
      if (roll_(3) == 0) s.cancel();
      if (roll_(2) == 0) {
        const bool in_time = co_await s.join_within(some_time());
        static_cast<void>(in_time);
      }
      co_await simple();
    });
  }

  task<> throwing(int& count, int depth) {
    try {
      co_await coax::when_all(counted_part(count, depth), throws());
    } catch (const tries_too_much&) {
    }
  }
  task<> throws() {
    co_await coax::sleep_for(some_time());
    throw tries_too_much("thrown at random");
  }

  dice roll_;
  coax::channel<token> pipe_{2};
  coax::event flag_;
  coax::mutex lock_;
  coax::semaphore permits_{2};
  std::vector<coax::scope*> scopes_;
  int next_sent_ = 0;
  int next_received_ = 0;
  int in_lock_ = 0;
  int in_permits_ = 0;
  int shields_begun_ = 0;
  int shields_ended_ = 0;
  int bodies_ = 0;
  int cleanups_ = 0;
  int parts_ = 0;
  bool out_of_order_ = false;
  bool crowded_ = false;
  bool left_behind_ = false;
};

}  // namespace

TEST_CASE("tasks composed at random end, in time and in order, and leave nothing behind",
          "[promises]") {
  constexpr std::uint64_t seeds = 3'000;
  int finished = 0;
  int unwound = 0;
  long parts = 0;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    virtual_stage on;
    const std::string run = "seed " + std::to_string(seed);
    const census before(on);
    std::string wrong;
    {
      composition all(seed);
      const auto begun = on.loop().now();
      watchdog dog(on, run);
      actor subject(all.subject());
      actor chaos(all.chaos(subject));
      while (!subject.has_ended() || !chaos.has_ended()) dog.turned(on.turn());
      wrong += all.verdict();
      if (on.loop().now() - begun > 1h) wrong += " somebody waited for ever;";
      if (subject.how() == ending::threw) wrong += " threw " + words_of(subject.failure());
      if (chaos.how() != ending::finished) wrong += " chaos did not finish;";
      (subject.how() == ending::unwound ? unwound : finished) += 1;
      parts += all.parts();
    }
    wrong += before.difference(census(on));
    if (!wrong.empty()) FAIL_CHECK(run << ":" << wrong);
  }
  CAPTURE(finished, unwound, parts);
  CHECK(finished > 300);  // or the dice are loaded
  CHECK(unwound > 300);
  CHECK(parts > 30'000);
}
