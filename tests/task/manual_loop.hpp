#pragma once

#include <coax/task/loop.hpp>
#include <coax/task/task.hpp>

#include "own_root.hpp"

#include <functional>
#include <optional>

/// A loop under a virtual clock: time moves only when nothing is ready, and then straight to the next timer.
///
/// `run` runs a task to its end. Alternatively the test is the driver: `inside` starts and cancels, `settle` and `turn` run
/// what is ready, `advance` and `pass_time` let time pass.
class manual_loop final : public coax::loop {
 public:
  manual_loop() noexcept : loop(coax::clock::time_point(std::chrono::hours(1))) {}

  coax::clock::time_point now() const noexcept override { return now_; }

  /// Runs `t` to its end and gives what it gives.
  template <class T>
  T run(coax::task<T> t) {
    const running_here guard(*this);
    own_root<T> root(std::move(t));
    while (!root.has_ended()) next_turn();
    return root.take();
  }

  /// Calls `action` as if from a task of this loop, and runs nothing.
  template <class F>
  void inside(F&& action) {
    const running_here guard(*this);
    std::invoke(std::forward<F>(action));
  }

  /// Runs what is ready, without letting time pass.
  void settle() {
    const running_here guard(*this);
    while (has_ready()) run_turn();
  }

  /// Lets `d` pass; what that makes ready does not run yet.
  void advance(coax::timeout d) {
    const running_here guard(*this);
    deadlines().count_from(now_);
    now_ = d.after(now_);
    deadlines().expire(now_);
  }

  /// Lets time pass to the next timer; what that makes ready does not run yet.
  void pass_time() {
    const running_here guard(*this);
    const std::optional<coax::clock::time_point> next = next_deadline();
    if (!next) coax::detail::fatal("the test waits for something that never comes");
    if (*next > now_) now_ = *next;
    deadlines().expire(now_);
  }

  /// Runs what is ready; where nothing is, time passes first. False when nothing can come any more.
  bool turn() {
    const running_here guard(*this);
    if (!has_ready() && !next_deadline()) return false;
    next_turn();
    return true;
  }

  using coax::loop::has_ready;     // for a task that lets all others run before it goes on
  using coax::loop::running_here;  // for a test that is the driver for longer than one call
  std::size_t timers_set() noexcept { return deadlines().size(); }
  bool is_idle() noexcept { return !has_ready() && timers_set() == 0; }

 private:
  void next_turn() {
    if (!has_ready()) pass_time();
    run_turn();
  }
  void run_turn() {
    turn_begins();
    run_ready();
    turn_ends();
  }

  coax::clock::time_point now_{std::chrono::hours(1)};
};
