#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>
#include <coax/task/timers.hpp>

#include <coroutine>

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

namespace detail {

/// The await of `yield` by a task, whose chain goes to the end of the queue itself. Once it is there,
/// nothing is waited for that could be stopped.
class yield_by_task {
 public:
  using resumed_by_loop = void;

  bool await_ready() const noexcept { return false; }
  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) const noexcept {
    coroutine.promise().root()->yield();
    return true;
  }
  void await_resume() const noexcept {}
};

}  // namespace detail

/// The await of `yield` by a coroutine of another library, or within a timeout.
class [[nodiscard]] yield_awaiter final : public waiter {
 public:
  void await_resume() const noexcept {}
  waiting_for describe() const noexcept override { return {"its turn"}; }

 private:
  bool start() noexcept override {
    complete();
    return false;
  }
  void stop() noexcept override {}
};

/// What `yield` gives.
class [[nodiscard]] yield_awaitable {
 public:
  using by_task = detail::yield_by_task;
  yield_awaiter operator co_await() const noexcept { return {}; }
};

/// Lets everything else that is ready run first.
inline yield_awaitable yield() noexcept { return {}; }

}  // namespace coax::inline COAX_ABI
