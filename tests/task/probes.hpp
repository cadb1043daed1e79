#pragma once

/// What the tests of tasks share: a loop that checks what is left, values that count, a wait whose end the test decides.
///
/// Never write co_await inside CHECK or REQUIRE: these macros evaluate such an expression more than once.

#include <coax/task/frames.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include "../catch.hpp"
#include "manual_loop.hpp"
#include "own_root.hpp"

#include <concepts>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#include <pthread.h>

/// Checks that all coroutine frames made during its life are gone at its end.
class frame_census {
 public:
  frame_census() = default;
  frame_census(const frame_census&) = delete;
  frame_census& operator=(const frame_census&) = delete;
  ~frame_census() { CHECK(coax::detail::frames::live() == before_); }

 private:
  std::ptrdiff_t before_ = coax::detail::frames::live();
};

/// The loop of one test, which leaves nothing behind: no frame, no timer, nothing that is ready.
class test_loop {
 public:
  test_loop() = default;
  test_loop(const test_loop&) = delete;
  test_loop& operator=(const test_loop&) = delete;
  ~test_loop() { CHECK(loop_.is_idle()); }

  template <class T>
  T run(coax::task<T> t) {
    return loop_.run(std::move(t));
  }
  /// Runs the task that `body` gives, a coroutine lambda as a rule: the closure lives in the calling expression.
  template <std::invocable F>
  auto run(F&& body) {
    return loop_.run(std::invoke(body));
  }

  manual_loop* operator->() noexcept { return &loop_; }
  manual_loop& operator*() noexcept { return loop_; }

  coax::clock::duration elapsed() const noexcept { return loop_.now() - begin_; }

 private:
  frame_census census_;
  manual_loop loop_;
  coax::clock::time_point begin_ = loop_.now();
};

/// A value that counts its instances, and sees one destroyed twice or never constructed.
class counted {
 public:
  explicit counted(int v = 0) : value(v), self_(this) { ++alive_; }
  counted(const counted& other) : value(other.value), self_(this) { ++alive_, ++copied; }
  counted(counted&& other) noexcept : value(std::exchange(other.value, -1)), self_(this) {
    ++alive_;
  }
  counted& operator=(const counted&) = default;
  counted& operator=(counted&& other) noexcept {
    value = std::exchange(other.value, -1);
    return *this;
  }
  ~counted() {
    if (self_ != this) ++broken;
    self_ = nullptr;
    --alive_;
  }

  int value;
  static inline int copied = 0;
  static inline int broken = 0;

  /// Checks over one test that all were destroyed, and each once.
  class census {
   public:
    census() { alive_ = copied = broken = 0; }
    census(const census&) = delete;
    census& operator=(const census&) = delete;
    ~census() {
      CHECK(alive_ == 0);
      CHECK(broken == 0);
    }
    int alive() const { return alive_; }
  };

 private:
  const counted* self_;
  static inline int alive_ = 0;
};

/// Writes its name when it is destroyed, so that a log tells who ended when.
class named {
 public:
  named(std::string& log, char name) : log_(log), name_(name) {}
  named(const named&) = delete;
  named& operator=(const named&) = delete;
  ~named() { log_ += name_; }

 private:
  std::string& log_;
  char name_;
};

/// A root that the test starts, cancels and watches from outside of its loop.
template <class T = void>
class watched final : public own_root<T> {
 public:
  watched(manual_loop& loop, coax::task<T> t) : loop_(loop) {
    loop_.inside([&] { this->begin(std::move(t)); });
  }

  void cancel_from_outside() {
    loop_.inside([this] { this->cancel(); });
  }
  void run_to_end() {
    for (loop_.settle(); !this->has_ended(); loop_.settle()) loop_.pass_time();
  }

  bool finished() const noexcept { return this->has_ended() && !unwound_; }
  bool unwound() const noexcept { return unwound_; }
  int times_ended() const noexcept { return times_ended_; }
  std::source_location where() const { return this->promise().where(); }

 private:
  void ended(coax::root::outcome how) noexcept override {
    own_root<T>::ended(how);
    ++times_ended_;
    unwound_ = how == coax::root::outcome::unwound;
  }

  manual_loop& loop_;
  int times_ended_ = 0;
  bool unwound_ = false;
};

class scripted_wait;

/// What happens to a scripted wait, and what did: the test in the place of the kernel.
struct script {
  bool ready = false;              // there is nothing to wait for
  bool completes_at_once = false;  // the wait ends where it begins
  bool stops_at_once = true;       // else `acknowledge_stop` says when
  scripted_wait* waiting = nullptr;
  int begun = 0;
  int resumed = 0;
  int stops = 0;

  /// Ends the wait with a value, unless it has ended.
  void complete(int value);
  /// Ends the wait without one, if it was asked to stop and has not ended.
  void acknowledge_stop();
};

/// A wait whose end the test decides. Gives an int.
class scripted_wait final : public coax::waiter {
 public:
  coax::waiting_for describe() const noexcept override { return {"a test"}; }
  explicit scripted_wait(script& s) noexcept : script_(s) {}

  int await_resume() noexcept {
    ++script_.resumed;
    return value_;
  }

 private:
  friend struct script;
  bool ready_now() noexcept override { return script_.ready; }
  bool start() noexcept override {
    ++script_.begun;
    if (script_.completes_at_once) return true;
    script_.waiting = this;
    return false;
  }
  void stop() noexcept override {
    ++script_.stops;
    if (script_.stops_at_once) end_stopped();
  }
  void end_stopped() noexcept {
    script_.waiting = nullptr;
    stopped();
  }

  script& script_;
  int value_ = 0;
};

inline void script::complete(int value) {
  if (waiting == nullptr) return;
  waiting->value_ = value;
  std::exchange(waiting, nullptr)->complete();
}
inline void script::acknowledge_stop() {
  if (waiting != nullptr && stops > 0) waiting->end_stopped();
}

// --- tasks that many tests await ---

inline coax::task<int> waits_for(script& s) {
  const int value = co_await scripted_wait(s);
  co_return value;
}
inline coax::task<int> after(coax::timeout delay, int value) {
  co_await coax::sleep_for(delay);
  co_return value;
}
inline coax::task<> throws_after(coax::timeout delay, const char* what) {
  co_await coax::sleep_for(delay);
  throw std::runtime_error(what);
}
inline coax::task<> sleeps(std::string& log, char name, coax::timeout how_long) {
  const named n(log, name);
  co_await coax::sleep_for(how_long);
}

/// Calls `action` on a thread whose stack of 1 MiB does not hold one C++ frame for each of 100,000 coroutines.
template <class Action>
void on_small_stack(Action action) {
  pthread_attr_t small{};
  pthread_t thread{};
  REQUIRE(::pthread_attr_init(&small) == 0);
  REQUIRE(::pthread_attr_setstacksize(&small, std::size_t{1} << 20) == 0);
  const auto call = [](void* it) -> void* {
    (*static_cast<Action*>(it))();
    return nullptr;
  };
  REQUIRE(::pthread_create(&thread, &small, call, &action) == 0);
  ::pthread_join(thread, nullptr);
  ::pthread_attr_destroy(&small);
}
