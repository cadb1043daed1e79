#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace coax::inline COAX_ABI {

/// What a multishot receive has delivered before anybody asked for it: bytes in the order in which
/// they came, and then the end, if that has come.
class inbox {
 public:
  inbox() = default;
  inbox(inbox&& other) noexcept
      : last_(std::exchange(other.last_, nullptr)),
        end_(std::exchange(other.end_, not_ended)),
        count_(std::exchange(other.count_, std::uint16_t{0})) {}
  inbox& operator=(inbox&& other) noexcept {
    if (this != &other) {
      clear();
      last_ = std::exchange(other.last_, nullptr);
      end_ = std::exchange(other.end_, not_ended);
      count_ = std::exchange(other.count_, std::uint16_t{0});
    }
    return *this;
  }
  ~inbox() { clear(); }

  /// True when there is nothing to take, neither bytes nor an end.
  bool empty() const noexcept { return last_ == nullptr && end_ == not_ended; }
  bool has_bytes() const noexcept { return last_ != nullptr; }
  std::size_t size() const noexcept { return count_; }

  /// Takes over `b`, which has at least a byte.
  void push(detail::buffer& b) noexcept {
    if (last_ == nullptr) {
      b.next = &b;
    } else {
      b.next = last_->next;
      last_->next = &b;
    }
    last_ = &b;
    ++count_;
  }
  detail::buffer& front() noexcept { return *last_->next; }
  detail::buffer& pop() noexcept {
    detail::buffer& first = *last_->next;
    if (&first == last_)
      last_ = nullptr;
    else
      last_->next = first.next;
    --count_;
    return first;
  }

  /// The answer that came last: 0 is the end of the stream, else -errno.
  void end(int answer) noexcept { end_ = static_cast<std::int16_t>(answer); }
  /// Takes the end. An error is reported once, as the kernel does; what comes after it, the kernel
  /// is asked.
  int take_end() noexcept { return std::exchange(end_, not_ended); }

  void clear() noexcept {
    while (last_ != nullptr) pop().release();
    end_ = not_ended;
  }

 private:
  static constexpr std::int16_t not_ended = 1;

  detail::buffer* last_ = nullptr;  // its `next` is the first
  std::int16_t end_ = not_ended;
  std::uint16_t count_ = 0;
};

}  // namespace coax::inline COAX_ABI
