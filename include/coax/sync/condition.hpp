#pragma once

#include <coax/config.hpp>
#include <coax/sync/mutex.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

#include <cstdint>

namespace coax::inline COAX_ABI {

/// A place to wait until something may have changed: who changes it notifies, who waits looks again.
///
/// ```
/// while (queue.empty()) co_await changed.wait();
/// ```
///
/// All tasks of a thread see the same state between two awaits, so that loop needs no mutex. Where
/// one protects the state across awaits, `wait(held)` gives it up meanwhile and has it again when
/// it returns, however it ends:
///
/// - notified: it holds the lock.
/// - timed out, `within(d, changed.wait(held))`: std::errc::timed_out, and it holds the lock, for
///   which it may have to wait longer than `d`.
/// - cancelled: it waits for the lock and then unwinds, so that no destructor sees what another
///   task has half done. Do not wait, holding the lock, for the end of a task that waits here.
///
/// What was notified stays notified: a timeout or a cancellation that comes after it, while the
/// wait is for the lock, has missed it. Nobody else is notified in its place, and nobody needs to be.
///
/// Lifetime  must outlive everyone who waits on it.
/// Thread    the reactor's.
class condition {
  class wait_awaiter;

 public:
  condition() = default;
  condition(const condition&) = delete;
  condition& operator=(const condition&) = delete;
  ~condition() {
    if (!waiting_.empty()) detail::fatal("a condition was destroyed while somebody waited for it");
  }

  /// Waits until it is notified.
  [[nodiscard]] wait_awaiter wait() noexcept;

  /// Waits until it is notified, without the lock of `held` meanwhile.
  ///
  /// Lifetime  borrows `held` until completion.
  [[nodiscard]] wait_awaiter wait(mutex::guard& held) noexcept;

  /// Wakes the one who has waited longest. Has no effect on who waits from now on.
  void notify_one() noexcept;
  /// Wakes all who wait now, in the order they came.
  void notify_all() noexcept;

 private:
  class [[nodiscard]] wait_awaiter final : public waiter,
                                           public detail::wait_queue<wait_awaiter>::place,
                                           private mutex::claim {
   public:
    wait_awaiter(condition& c, mutex::guard* held) noexcept : condition_(c), guard_(held) {}

    void await_resume() const noexcept {}
    waiting_for describe() const noexcept override {
      return {phase_ == phase::waits ? "a condition" : "a mutex"};
    }

   private:
    friend class condition;
    enum class phase : std::uint8_t { waits, was_notified, gave_up };

    bool start() noexcept override {
      condition_.waiting_.push(*this);
      if (guard_ != nullptr) {
        mutex_ = guard_->mutex_.release();
        if (mutex_ == nullptr)
          detail::fatal("a wait on a condition was given a guard that holds no lock");
        mutex_->leave();
      }
      return false;
    }
    void stop() noexcept override {
      if (phase_ != phase::waits) return;  // it ends as soon as it has the lock
      condition_.waiting_.remove(*this);
      wake(phase::gave_up);
    }
    void wake(phase how) noexcept {
      phase_ = how;
      if (mutex_ != nullptr)
        mutex_->come_back(*this);
      else
        finish();
    }
    void granted() noexcept override {
      guard_->mutex_.reset(mutex_);
      finish();
    }
    void finish() noexcept {
      if (phase_ == phase::was_notified)
        complete();
      else
        stopped();
    }

    condition& condition_;
    mutex::guard* guard_;
    mutex* mutex_ = nullptr;  // to come back to
    phase phase_ = phase::waits;
  };

  detail::wait_queue<wait_awaiter> waiting_;
};

inline condition::wait_awaiter condition::wait() noexcept { return {*this, nullptr}; }
inline condition::wait_awaiter condition::wait(mutex::guard& held) noexcept {
  return {*this, &held};
}

inline void condition::notify_one() noexcept {
  if (wait_awaiter* const first = waiting_.pop()) first->wake(wait_awaiter::phase::was_notified);
}
inline void condition::notify_all() noexcept {
  while (wait_awaiter* const first = waiting_.pop()) first->wake(wait_awaiter::phase::was_notified);
}

}  // namespace coax::inline COAX_ABI
