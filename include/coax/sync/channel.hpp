#pragma once

#include <coax/config.hpp>
#include <coax/sync/queued_wait.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

/// A queue between tasks, of bounded length: who sends to a full one waits, and so does who receives
/// from an empty one. Any number of tasks may do either.
///
/// Values come out in the order in which they were sent, and go to those who receive in the order in
/// which these came. With a capacity of 0 nothing is kept: each `send` waits for the `receive` that
/// takes its value.
///
/// A value that was sent is received, or destroyed with the channel. A `send` that was cancelled or
/// timed out has not sent, and its value is destroyed; such a `receive` has taken nothing. One that
/// has happened beats both.
///
/// Lifetime  must outlive everyone who waits on it.
/// Thread    the reactor's.
template <class T>
class channel {
  static_assert(alignof(T) <= alignof(std::max_align_t),
                "values are not aligned beyond that: give a pointer");

  static_assert(std::is_object_v<T> && std::is_nothrow_move_constructible_v<T>,
                "what goes through a channel must move without throwing");
  class send_awaiter;
  class receive_awaiter;

 public:
  /// Takes the memory for `capacity` values at once.
  ///
  /// Errors    std::bad_alloc; std::invalid_argument for more than any memory holds, such as a
  ///           negative number.
  explicit channel(std::size_t capacity) : kept_(checked(capacity)) {}
  channel(const channel&) = delete;
  channel& operator=(const channel&) = delete;
  ~channel() {
    if (!senders_.empty() || !receivers_.empty())
      detail::fatal("a channel was destroyed while somebody waited to send or to receive");
  }

  /// Waits until there is room for `value`.
  ///
  /// Result    true when it was sent; false, and `value` is destroyed, once the channel is closed.
  [[nodiscard]] send_awaiter send(T value) noexcept {
    detail::require_safe_argument<T>();
    return send_awaiter(*this, std::move(value));
  }

  /// Sends `value` if that needs no waiting: to many who must not wait for the slowest.
  ///
  /// Result    true when it was sent; false, and `value` is destroyed, when the channel is full or
  ///           closed.
  [[nodiscard]] bool try_send(T value) noexcept { return !closed_ && put(value); }

  /// Waits for a value.
  ///
  /// Result    an optional `T`; empty once the channel is closed and nothing is left in it.
  [[nodiscard]] receive_awaiter receive() noexcept { return receive_awaiter(*this); }

  /// Nothing can be sent any more: who waits to send gets false, and who waits to receive gets
  /// nothing. What was sent can still be received. Idempotent.
  void close() noexcept {
    closed_ = true;
    while (send_awaiter* const refused = senders_.pop()) refused->complete();
    while (receive_awaiter* const last = receivers_.pop()) last->complete();
  }

 private:
  class [[nodiscard]] send_awaiter final : public detail::queued_wait<send_awaiter> {
   public:
    send_awaiter(channel& c, T&& value) noexcept : channel_(c), value_(std::move(value)) {}

    bool await_resume() const noexcept { return sent_; }
    waiting_for describe() const noexcept override { return {"room in a channel"}; }
    auto& line() noexcept { return channel_.senders_; }

   private:
    friend class channel;
    bool ready_now() noexcept override {
      if (!channel_.closed_) sent_ = channel_.put(value_);
      return sent_ || channel_.closed_;
    }
    T&& take() noexcept {
      sent_ = true;
      this->complete();
      return std::move(value_);
    }

    channel& channel_;
    T value_;
    bool sent_ = false;
  };

  class [[nodiscard]] receive_awaiter final : public detail::queued_wait<receive_awaiter> {
   public:
    explicit receive_awaiter(channel& c) noexcept : channel_(c) {}

    std::optional<T> await_resume() noexcept { return std::move(value_); }
    waiting_for describe() const noexcept override { return {"a value from a channel"}; }
    auto& line() noexcept { return channel_.receivers_; }

   private:
    friend class channel;
    bool ready_now() noexcept override { return channel_.take(value_) || channel_.closed_; }
    void give(T& value) noexcept {
      value_.emplace(std::move(value));
      this->complete();
    }

    channel& channel_;
    std::optional<T> value_;
  };

  static std::size_t checked(std::size_t capacity) {
    if (capacity > PTRDIFF_MAX / sizeof(std::optional<T>))
      detail::throw_invalid_argument("coax: the capacity of a channel is negative, or too large");
    return capacity;
  }

  // Whoever waits, waits because nothing can be done for it: senders only while all room is taken,
  // receivers only while nothing is kept and nobody waits to send. So nobody overtakes them.

  bool put(T& value) noexcept {
    if (receive_awaiter* const first = receivers_.pop()) {
      first->give(value);
      return true;
    }
    if (count_ == kept_.size()) return false;
    keep(std::move(value));
    return true;
  }

  bool take(std::optional<T>& into) noexcept {
    if (count_ != 0) {
      std::optional<T>& oldest = kept_[oldest_];
      into.emplace(std::move(*oldest));
      oldest.reset();
      oldest_ = (oldest_ + 1) % kept_.size();
      --count_;
      if (send_awaiter* const next = senders_.pop()) keep(next->take());
      return true;
    }
    send_awaiter* const first = senders_.pop();
    if (first != nullptr) into.emplace(first->take());
    return first != nullptr;
  }

  void keep(T&& value) noexcept {
    kept_[(oldest_ + count_) % kept_.size()].emplace(std::move(value));
    ++count_;
  }

  std::vector<std::optional<T>> kept_;  // a ring
  std::size_t oldest_ = 0;
  std::size_t count_ = 0;
  detail::wait_queue<send_awaiter> senders_;
  detail::wait_queue<receive_awaiter> receivers_;
  bool closed_ = false;
};

}  // namespace coax::inline COAX_ABI
