#pragma once

#include <coax/config.hpp>
#include <coax/sync/queued_wait.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

#include <cstddef>
#include <memory>
#include <utility>

namespace coax::inline COAX_ABI {

/// A lock that is held across awaits: `auto held = co_await m.lock();`
///
/// What one task does between two awaits nobody can see half done, so that needs no lock. Those who
/// wait get the lock in turn, handed over by the one who unlocks: nobody comes in between. A task
/// that locks it twice waits for itself.
///
/// Lifetime  must outlive everyone who holds it or waits for it.
/// Thread    the reactor's.
class mutex {
  class lock_awaiter;
  struct unlocker {
    void operator()(mutex* held) const noexcept { held->unlock(); }
  };

 public:
  /// Holds the lock for as long as it lives.
  class [[nodiscard]] guard {
   public:
    /// Gives the lock up before the guard ends. No effect on one that holds nothing.
    void unlock() noexcept { mutex_.reset(); }

   private:
    friend class mutex;
    friend class condition;
    explicit guard(mutex& locked) noexcept : mutex_(&locked) {}

    std::unique_ptr<mutex, unlocker> mutex_;
  };

  mutex() = default;
  mutex(const mutex&) = delete;
  mutex& operator=(const mutex&) = delete;
  ~mutex() {
    if (locked_ || will_come_back_ != 0)
      detail::fatal("a mutex was destroyed while somebody held it or waited for it");
  }

  /// Waits until nobody holds the lock.
  ///
  /// Result    a `guard`.
  [[nodiscard]] lock_awaiter lock() noexcept;

 private:
  friend class condition;

  /// Somebody who wants the lock.
  class claim : public detail::wait_queue<claim>::place {
   public:
    virtual void granted() noexcept = 0;

   protected:
    claim() = default;
    claim(const claim&) = default;
    claim& operator=(const claim&) = delete;
    ~claim() = default;
  };

  bool try_lock() noexcept { return !std::exchange(locked_, true); }
  void unlock() noexcept {
    if (claim* const next = claims_.pop())
      next->granted();  // still locked: nobody can come in between
    else
      locked_ = false;
  }

  // a wait on a condition gives the lock up in between

  void leave() noexcept {
    ++will_come_back_;
    unlock();
  }
  void come_back(claim& c) noexcept {
    --will_come_back_;
    if (try_lock())
      c.granted();
    else
      claims_.push(c);
  }

  bool locked_ = false;
  std::size_t will_come_back_ = 0;
  detail::wait_queue<claim> claims_;
};

class [[nodiscard]] mutex::lock_awaiter final : public detail::queued_wait<lock_awaiter, claim> {
 public:
  explicit lock_awaiter(mutex& m) noexcept : mutex_(m) {}
  guard await_resume() noexcept { return guard(mutex_); }
  waiting_for describe() const noexcept override { return {"a mutex"}; }
  auto& line() noexcept { return mutex_.claims_; }

 private:
  bool ready_now() noexcept override { return mutex_.try_lock(); }
  void granted() noexcept override { complete(); }

  mutex& mutex_;
};

inline mutex::lock_awaiter mutex::lock() noexcept { return lock_awaiter(*this); }

}  // namespace coax::inline COAX_ABI
