#pragma once

#include <coax/config.hpp>
#include <coax/sync/queued_wait.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

namespace coax::inline COAX_ABI {

/// A flag to wait for: set, it lets everybody pass until it is reset.
///
/// Lifetime  must outlive everyone who waits on it.
/// Thread    the reactor's.
class event {
  class wait_awaiter;

 public:
  event() = default;
  event(const event&) = delete;
  event& operator=(const event&) = delete;
  ~event() {
    if (!waiting_.empty()) detail::fatal("an event was destroyed while somebody waited for it");
  }

  /// Lets pass everybody who waits, in the order they came, and who comes from now on. Idempotent.
  void set() noexcept;
  void reset() noexcept { set_ = false; }
  bool is_set() const noexcept { return set_; }

  /// Waits until the event is set; at once when it is. A reset does not call back who was let pass
  /// already.
  [[nodiscard]] wait_awaiter wait() noexcept;

 private:
  class [[nodiscard]] wait_awaiter final : public detail::queued_wait<wait_awaiter> {
   public:
    explicit wait_awaiter(event& e) noexcept : event_(e) {}
    void await_resume() const noexcept {}
    waiting_for describe() const noexcept override { return {"an event"}; }
    auto& line() noexcept { return event_.waiting_; }

   private:
    friend class event;
    bool ready_now() noexcept override { return event_.set_; }

    event& event_;
  };

  bool set_ = false;
  detail::wait_queue<wait_awaiter> waiting_;
};

inline void event::set() noexcept {
  set_ = true;
  while (wait_awaiter* const waiting = waiting_.pop()) waiting->complete();
}

inline event::wait_awaiter event::wait() noexcept { return wait_awaiter(*this); }

}  // namespace coax::inline COAX_ABI
