#pragma once

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>

#include <utility>

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
    if (first_ != nullptr) detail::fatal("an event was destroyed while somebody waited for it");
  }

  /// Lets pass everybody who waits, in the order they came, and who comes from now on. Idempotent.
  void set() noexcept;
  void reset() noexcept { set_ = false; }
  bool is_set() const noexcept { return set_; }

  /// Waits until the event is set; at once when it is. A reset does not call back who was let pass
  /// already.
  [[nodiscard]] wait_awaiter wait() noexcept;

 private:
  class [[nodiscard]] wait_awaiter final : public waiter {
   public:
    explicit wait_awaiter(event& e) noexcept : event_(e) {}
    void await_resume() const noexcept {}
    waiting_for describe() const noexcept override { return {"an event"}; }

   private:
    friend class event;
    bool ready_now() noexcept override { return event_.set_; }
    bool start() noexcept override {
      previous_ = std::exchange(event_.last_, this);
      (previous_ == nullptr ? event_.first_ : previous_->next_) = this;
      return false;
    }
    void stop() noexcept override {
      (previous_ == nullptr ? event_.first_ : previous_->next_) = next_;
      (next_ == nullptr ? event_.last_ : next_->previous_) = previous_;
      stopped();
    }

    event& event_;
    wait_awaiter* previous_ = nullptr;
    wait_awaiter* next_ = nullptr;
  };

  bool set_ = false;
  wait_awaiter* first_ = nullptr;
  wait_awaiter* last_ = nullptr;
};

inline void event::set() noexcept {
  set_ = true;
  last_ = nullptr;
  for (wait_awaiter* at = std::exchange(first_, nullptr); at != nullptr;) {
    wait_awaiter* const next = at->next_;
    at->complete();
    at = next;
  }
}

inline event::wait_awaiter event::wait() noexcept { return wait_awaiter(*this); }

}  // namespace coax::inline COAX_ABI
