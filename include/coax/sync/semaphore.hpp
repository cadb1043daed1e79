#pragma once

#include <coax/config.hpp>
#include <coax/sync/queued_wait.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace coax::inline COAX_ABI {

namespace detail {

/// A negative number that was converted is none.
inline bool is_count(std::size_t n) noexcept { return n > 0 && n <= PTRDIFF_MAX; }

}  // namespace detail

/// Lets at most `count` in at a time: `auto permit = co_await s.acquire();`
///
/// Those who wait get a permit in turn, handed over by the one who releases it: nobody comes in
/// between.
///
/// Lifetime  must outlive all permits and everyone who waits for one.
/// Thread    the reactor's.
class semaphore {
  class acquire_awaiter;
  struct releaser {
    void operator()(semaphore* s) const noexcept { s->release(); }
  };

 public:
  /// One of the `count`, for as long as it lives. It may be moved to another task.
  class [[nodiscard]] permit {
   public:
    /// Gives it back before the permit ends. No effect on one that was given back.
    void release() noexcept { semaphore_.reset(); }

   private:
    friend class semaphore;
    explicit permit(semaphore& s) noexcept : semaphore_(&s) {}

    std::unique_ptr<semaphore, releaser> semaphore_;
  };

  /// Errors    std::invalid_argument for 0, which would let nobody in, and for a negative number.
  explicit semaphore(std::size_t count) : count_(count), free_(count) {
    if (!detail::is_count(count))
      detail::throw_invalid_argument("coax: the count of a semaphore is not positive");
  }
  semaphore(const semaphore&) = delete;
  semaphore& operator=(const semaphore&) = delete;
  ~semaphore() {
    if (free_ != count_)
      detail::fatal("a semaphore was destroyed while somebody held or waited for a permit");
  }

  /// Waits until a permit is free.
  ///
  /// Result    a `permit`.
  [[nodiscard]] acquire_awaiter acquire() noexcept;

 private:
  bool try_acquire() noexcept {
    if (free_ == 0) return false;
    --free_;
    return true;
  }
  void release() noexcept;

  std::size_t count_;
  std::size_t free_;  // while there are any, nobody waits
  detail::wait_queue<acquire_awaiter> waiting_;
};

class [[nodiscard]] semaphore::acquire_awaiter final : public detail::queued_wait<acquire_awaiter> {
 public:
  explicit acquire_awaiter(semaphore& s) noexcept : semaphore_(s) {}
  permit await_resume() noexcept { return permit(semaphore_); }
  waiting_for describe() const noexcept override { return {"a semaphore"}; }
  auto& line() noexcept { return semaphore_.waiting_; }

 private:
  friend class semaphore;
  bool ready_now() noexcept override { return semaphore_.try_acquire(); }

  semaphore& semaphore_;
};

inline semaphore::acquire_awaiter semaphore::acquire() noexcept { return acquire_awaiter(*this); }

inline void semaphore::release() noexcept {
  if (acquire_awaiter* const next = waiting_.pop())
    next->complete();  // its permit goes to the next: nobody can come in between
  else
    ++free_;
}

}  // namespace coax::inline COAX_ABI
