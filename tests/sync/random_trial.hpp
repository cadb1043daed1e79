#pragma once

#include <coax/task/frames.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include "../catch.hpp"
#include "../task/manual_loop.hpp"
#include "../task/probes.hpp"
#include "dice.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// One random sequence: tasks do what they are told, some are cancelled, some waits run out of time,
/// and a reference in plain containers says what must become of each.
///
/// A task tells the reference what it asks for in the moment it does, and compares what becomes of
/// that with what the reference says; so the order in which tasks run need not be foreseen.
class random_trial {
 public:
  random_trial(std::uint64_t seed, bool aloud) : random_(seed), seed_(seed), aloud_(aloud) {}
  random_trial(const random_trial&) = delete;
  random_trial& operator=(const random_trial&) = delete;
  virtual ~random_trial() = default;

  manual_loop loop;

  coax::task<> run() {
    const bool is_patient = random_(4) == 0;  // lets all of it run between steps
    for (std::size_t left = 30 + random_(50); left > 0 && good(); --left) {
      if (random_(30) == 0)
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
    for (auto& [who, p] : cast_) cancel(who);
    co_await settle();
    for (const auto& [who, p] : cast_) wrong(who, "is still there, and was cancelled");
    check();
  }

  bool good() const noexcept { return problem_.empty(); }
  std::string report() const {
    std::string text = "seed " + std::to_string(seed_) +
                       " (COAX_TEST_SEED=" + std::to_string(seed_) +
                       " runs it alone): " + problem_ + "; the steps:";
    for (const std::string& each : steps_) text += "\n  " + each;
    return text;
  }

 protected:
  static constexpr auto limit = std::chrono::milliseconds(10);
  static constexpr std::size_t cast_max = 8;

  struct failure : std::runtime_error {
    failure() : std::runtime_error("as it was told") {}
  };

  struct part {
    script orders;
    std::unique_ptr<watched<>> self;
    bool is_cancelled = false;
    bool has_limit = false;  // what it asks for, it asks within a limit
  };

  // --- what a test is made of ---

  /// What a task does; it waits for orders with `next`.
  virtual coax::task<> life(int me) = 0;
  /// One thing that happens: `tell` somebody, `cancel`, or whatever else there is.
  virtual void step() = 0;
  /// The reference: `who` waits no more, for whatever it was.
  virtual void give_up(int who, const char* why) = 0;
  virtual void check() {}

  // --- for the tasks ---

  scripted_wait next(int me) {
    part& p = cast_.at(me);
    p.has_limit = false;
    return scripted_wait(p.orders);
  }
  /// The reference says what must become of `who`.
  void due(int who, std::string what) { due_[who] = {std::move(what), turn_}; }
  /// It has.
  void came(int who, const std::string& what) {
    const auto expected = due_.find(who);
    if (expected == due_.end()) return wrong(who, what + ", should wait");
    if (expected->second.what != what) wrong(who, what + ", should be " + expected->second.what);
    due_.erase(expected);
  }
  /// Told by who asks for something within the limit, before it does.
  void in_time(int who) {
    cast_.at(who).has_limit = true;
    std::erase(timers_, who);  // of a wait that has ended
    timers_.push_back(who);
  }
  bool cancelled(int who) const { return cast_.at(who).is_cancelled; }

  // --- for the steps ---

  void enter() {
    if (cast_.size() >= cast_max) return;
    const int who = ++entered_;
    note("enters", who);
    cast_[who].self = std::make_unique<watched<>>(loop, life(who));
  }
  /// Somebody who waits for an order, or 0.
  int listener() {
    return anybody([](const part& p) { return p.orders.waiting != nullptr; });
  }
  int anybody() {
    return anybody([](const part&) { return true; });
  }
  void tell(int who, int order, const char* in_words) {
    note(in_words, who);
    cast_.at(who).orders.complete(order);
  }
  void cancel(int who) {
    if (who == 0) return;
    note("is cancelled", who);
    part& p = cast_.at(who);
    if (!std::exchange(p.is_cancelled, true)) {
      if (p.orders.waiting != nullptr)
        due(who, "unwound");
      else
        give_up(who, "unwound");
    }
    p.self->cancel_from_outside();
  }

  void note(const std::string& what, int who = 0) {
    steps_.push_back(who != 0 ? std::to_string(who) + " " + what : what);
    if (aloud_) std::fprintf(stderr, "%s\n", steps_.back().c_str());
  }
  void wrong(int who, const std::string& what) {
    if (!good()) return;
    problem_ = who != 0 ? std::to_string(who) + ": " + what : what;
    note(problem_);
  }
  void expect(const char* what, std::size_t is, std::size_t should) {
    if (is != should)
      wrong(0, std::string(what) + " is " + std::to_string(is) + ", should be " +
                   std::to_string(should));
  }

  dice random_;

 private:
  struct expectation {
    std::string what;
    int turn = 0;
  };

  template <class Fits>
  int anybody(Fits fits) {
    std::size_t count = 0;
    int chosen = 0;
    for (const auto& [who, p] : cast_)
      if (!p.self->has_ended() && fits(p) && random_(++count) == 0) chosen = who;
    return chosen;
  }

  coax::task<> turn() {
    note("- a turn");
    ++turn_;
    co_await coax::yield();
    bury();
    for (const auto& [who, expected] : due_)
      if (expected.turn < turn_) wrong(who, "still waits, should be " + expected.what);
  }
  coax::task<> settle() {
    while (loop.has_ready() && good()) co_await turn();
    bury();
    for (const auto& [who, expected] : due_) wrong(who, "waits, should be " + expected.what);
  }
  coax::task<> let_time_pass() {
    co_await settle();  // time passes only when nothing is ready
    note("- time passes");
    for (const int who : std::exchange(timers_, {})) {
      const auto its = cast_.find(who);
      if (its != cast_.end() && its->second.has_limit) give_up(who, "timed out");
    }
    co_await coax::sleep_for(limit);
  }
  void bury() {
    for (auto each = cast_.begin(); each != cast_.end();) {
      const auto& [who, p] = *each;
      if (!p.self->has_ended()) {
        ++each;
        continue;
      }
      if (p.self->unwound()) {
        if (!p.is_cancelled) wrong(who, "unwound, and nobody had cancelled it");
        if (due_.contains(who)) came(who, "unwound");
      } else if (due_.contains(who)) {
        wrong(who, "gone, should be " + due_.at(who).what);
      }
      each = cast_.erase(each);
    }
  }

  std::uint64_t seed_;
  bool aloud_;
  std::map<int, part> cast_;
  std::map<int, expectation> due_;
  std::vector<int> timers_;  // in the order in which they were set
  int turn_ = 0;
  int entered_ = 0;
  std::vector<std::string> steps_;
  std::string problem_;
};

template <class Trial>
void run_seed(std::uint64_t seed, bool aloud) {
  const std::ptrdiff_t frames = coax::detail::frames::live();
  auto one = std::make_unique<Trial>(seed, aloud);
  one->loop.run(one->run());
  if (!one->good()) FAIL(one.release()->report());  // not destroyed: somebody may still wait in it
  if (!one->loop.is_idle()) FAIL("seed " << seed << ": not at rest");
  one.reset();
  if (coax::detail::frames::live() != frames) FAIL("seed " << seed << ": frames are left");
}

/// Runs the trial for many seeds, or aloud for the one in COAX_TEST_SEED.
template <class Trial>
void run_seeds(std::uint64_t count) {
  if (const char* one = std::getenv("COAX_TEST_SEED"))
    run_seed<Trial>(std::strtoull(one, nullptr, 10), true);
  else
    for (std::uint64_t seed = 1; seed <= count; ++seed) run_seed<Trial>(seed, false);
  SUCCEED();
}
