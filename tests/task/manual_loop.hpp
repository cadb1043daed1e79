#pragma once

#include <coax/task/loop.hpp>
#include <coax/task/task.hpp>

#include <optional>

/// A loop under a virtual clock: time moves only when nothing is ready, and then straight to the next timer.
class manual_loop final : public coax::loop {
 public:
  manual_loop() noexcept : loop(coax::clock::time_point(std::chrono::hours(1))) {}

  coax::clock::time_point now() const noexcept override { return now_; }

  /// Runs `t` to its end and gives what it gives.
  template <class T>
  T run(coax::task<T> t) {
    const running_here guard(*this);
    main_root<T> root(std::move(t));
    while (!root.done) turn();
    return root.take();
  }

  /// Runs what is ready, without letting time pass.
  void settle() {
    const running_here guard(*this);
    while (has_ready()) run_ready();
  }

  std::size_t timers_set() noexcept { return deadlines().size(); }

 private:
  template <class T>
  struct main_root final : coax::root {
    explicit main_root(coax::task<T> t) : frame(std::move(t).release()) {
      adopt(frame);
      start_later();
    }
    main_root(const main_root&) = delete;
    main_root& operator=(const main_root&) = delete;
    ~main_root() {
      if (frame) frame.destroy();
    }
    T take() { return frame.promise().take(); }
    void ended(outcome how) noexcept override {
      if (how == outcome::unwound) frame = nullptr;
      done = true;
    }
    std::coroutine_handle<typename coax::task<T>::promise_type> frame;
    bool done = false;
  };

  void turn() {
    if (!has_ready()) {
      const std::optional<coax::clock::time_point> next = deadlines().next();
      if (!next) coax::detail::fatal("the test waits for something that never comes");
      if (*next > now_) now_ = *next;
      deadlines().expire(now_);
    }
    run_ready();
  }

  coax::clock::time_point now_{std::chrono::hours(1)};
};
