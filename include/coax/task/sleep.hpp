#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>
#include <coax/task/timers.hpp>

#include <coroutine>
#include <memory>

namespace coax::inline COAX_ABI {

/// The await of `sleep_for` and `sleep_until`.
class [[nodiscard]] sleep_awaiter final : public waiter, private timer {
 public:
  explicit sleep_awaiter(clock::time_point deadline) noexcept : deadline_(deadline) {}
  sleep_awaiter(const sleep_awaiter& other) noexcept
      : waiter(other), timer(), deadline_(other.deadline_) {}
  sleep_awaiter& operator=(const sleep_awaiter&) = delete;
  ~sleep_awaiter() = default;

  void await_resume() const noexcept {}
  waiting_for describe() const noexcept override { return {"a timer"}; }

 private:
  bool start() noexcept override {
    loop::current().set_timer(*this, deadline_);
    return false;
  }
  void stop() noexcept override {
    loop::current().deadlines().drop(*this);
    stopped();
  }
  void expired() noexcept override { complete(); }

  clock::time_point deadline_;
};

/// Waits until `deadline`, by the clock of the reactor; one that has passed still gives others
/// their turn.
///
/// Those that end at the same time wake in the order in which they began.
inline sleep_awaiter sleep_until(clock::time_point deadline) noexcept {
  return sleep_awaiter(deadline);
}

/// Waits for `d`, counted from this call.
inline sleep_awaiter sleep_for(timeout d) noexcept { return sleep_awaiter(d.after(now())); }

/// The await of `yield`. A task's chain goes to the end of the queue itself: there is nothing to wait
/// for, and nothing that could be stopped.
class [[nodiscard]] yield_awaiter {
 public:
  using resumed_by_loop = void;

  bool await_ready() const noexcept { return false; }
  template <class P>
  void await_suspend(std::coroutine_handle<P> coroutine) {
    if constexpr (task_promise<P>)
      coroutine.promise().root()->yield();
    else
      (foreign_ = std::make_unique<wait>())->await_suspend(coroutine);
  }
  void await_resume() const noexcept {}

 private:
  class wait final : public waiter, public detail::framed {
    waiting_for describe() const noexcept override { return {"its turn"}; }
    bool start() noexcept override {
      complete();
      return false;
    }
    void stop() noexcept override {}
  };

  std::unique_ptr<wait> foreign_;  // of a coroutine of another library
};

/// Lets everything else that is ready run first.
inline yield_awaiter yield() noexcept { return {}; }

}  // namespace coax::inline COAX_ABI
