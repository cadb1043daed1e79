#pragma once

#include <coax/config.hpp>
#include <coax/sync/queued_wait.hpp>
#include <coax/task/boxed.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

/// The idle workers of a server: each parks until it is handed something to work on, a connection
/// as a rule.
///
/// Last in, first out: the worker that parked last, whose memory is warmest, serves next. A
/// `reservation` is a permit to hand over one `T`. There are never more permits than idle workers,
/// so who reserves before it accepts leaves in the kernel's backlog what nobody could serve.
///
/// What was handed off is never lost: a worker takes it, or, when the idle worker that the permit
/// counted on was cancelled meanwhile, it waits for the next one to park; with the stack itself it
/// is destroyed.
///
/// Lifetime  must outlive everyone who waits on it.
/// Thread    the reactor's.
template <class T>
class worker_stack {
  static_assert(std::is_nothrow_move_constructible_v<T>,
                "what is handed over must move without throwing");
  class reserve_awaiter;
  class park_awaiter;
  struct giver_back {
    void operator()(worker_stack* stack) const noexcept { stack->return_permit(); }
  };

 public:
  /// The right to hand over one `T`. Not used, it is given back when it is destroyed.
  class [[nodiscard]] reservation {
   public:
    /// Gives `item` to the worker that parked last, which runs at the next turn. A reservation
    /// serves once.
    ///
    /// Errors    std::bad_alloc, when no worker is idle any more and there is no memory to keep
    ///           `item` for the next; it is destroyed then.
    void hand_off(T item) {
      if (stack_ == nullptr)
        detail::fatal("a reservation was used twice: reserve once for each hand_off");
      stack_.release()->deliver(std::move(item));
    }

   private:
    friend class reserve_awaiter;
    explicit reservation(worker_stack& stack) noexcept : stack_(&stack) {}

    std::unique_ptr<worker_stack, giver_back> stack_;
  };

  worker_stack() = default;
  worker_stack(const worker_stack&) = delete;
  worker_stack& operator=(const worker_stack&) = delete;
  ~worker_stack() {
    if (!parked_.empty() || !reservers_.empty() || permits_ != 0)
      detail::fatal(
          "a worker_stack was destroyed while it was in use: it must outlive its workers and reservations");
  }

  /// Waits, as an idle worker, until something is handed over.
  ///
  /// Result    an optional `T`; empty once the stack is closed and nothing is left to serve.
  /// Errors    std::bad_alloc.
  [[nodiscard]] detail::boxed<park_awaiter> park() {
    return detail::boxed<park_awaiter>::make(*this);
  }

  /// Waits until a worker is idle that no other reservation counts on; those who wait are served in
  /// turn.
  ///
  /// Result    an optional `reservation`; empty once the stack is closed.
  [[nodiscard]] reserve_awaiter reserve() noexcept { return reserve_awaiter(*this); }

  /// No more work will come: idle workers leave, and so do those who wait for a reservation.
  /// Reservations that are out stay good, and so many workers stay until these are used or given
  /// back. Idempotent.
  void close() noexcept {
    closed_ = true;
    while (reserve_awaiter* r = reservers_.pop()) r->complete();
    release_spare_workers();
  }

  /// Workers that are parked.
  std::size_t size() const noexcept { return parked_.size(); }
  bool empty() const noexcept { return parked_.empty(); }

 private:
  class [[nodiscard]] park_awaiter final : public waiter,
                                           public detail::wait_queue<park_awaiter>::place {
   public:
    explicit park_awaiter(worker_stack& stack) noexcept : stack_(stack) {}

    waiting_for describe() const noexcept override { return {"work, parked on a worker_stack"}; }
    std::optional<T> await_resume() { return std::move(item_); }

   private:
    friend class worker_stack;
    bool ready_now() noexcept override {
      return stack_.take_unserved(item_) || stack_.nothing_will_come();
    }
    bool start() noexcept override {
      if (ready_now()) return true;
      stack_.parked_.push(*this);
      stack_.grant_what_is_free();
      return false;
    }
    void stop() noexcept override {
      stack_.parked_.remove(*this);
      stopped();
    }

    worker_stack& stack_;
    std::optional<T> item_;
  };

  class [[nodiscard]] reserve_awaiter final : public detail::queued_wait<reserve_awaiter> {
   public:
    explicit reserve_awaiter(worker_stack& stack) noexcept : stack_(stack) {}

    waiting_for describe() const noexcept override { return {"an idle worker"}; }
    auto& line() noexcept { return stack_.reservers_; }
    std::optional<reservation> await_resume() noexcept {
      if (!granted_) return std::nullopt;
      return reservation(stack_);
    }

   private:
    friend class worker_stack;
    bool ready_now() noexcept override {
      if (stack_.closed_) return true;
      if (stack_.parked_.size() <= stack_.permits_) return false;  // so where others wait
      ++stack_.permits_;
      granted_ = true;
      return true;
    }
    void grant() noexcept {
      ++stack_.permits_;
      granted_ = true;
      this->complete();
    }

    worker_stack& stack_;
    bool granted_ = false;
  };

  // --- permits: at most one for each idle worker, but that a worker may be cancelled under one ---

  void grant_what_is_free() noexcept {
    while (parked_.size() > permits_) {
      reserve_awaiter* r = reservers_.pop();
      if (r == nullptr) return;
      r->grant();
    }
  }
  void return_permit() noexcept {
    --permits_;
    if (closed_)
      release_spare_workers();
    else
      grant_what_is_free();
  }
  void release_spare_workers() noexcept {
    while (parked_.size() > permits_) parked_.pop_last()->complete();
  }
  bool nothing_will_come() const noexcept { return closed_ && parked_.size() >= permits_; }

  // --- items ---

  void deliver(T&& item) {
    --permits_;
    if (park_awaiter* worker = parked_.pop_last()) {
      worker->item_.emplace(std::move(item));
      worker->complete();
    } else {
      unserved_.push_back(std::move(item));
    }
  }
  bool take_unserved(std::optional<T>& into) {
    if (unserved_.empty()) return false;
    into.emplace(std::move(unserved_.front()));
    unserved_.pop_front();
    return true;
  }

  detail::wait_queue<park_awaiter> parked_;
  detail::wait_queue<reserve_awaiter> reservers_;
  std::size_t permits_ = 0;  // reservations that are out
  std::deque<T> unserved_;   // handed off when no worker was idle any more
  bool closed_ = false;
};

}  // namespace coax::inline COAX_ABI
