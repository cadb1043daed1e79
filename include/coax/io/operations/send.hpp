#pragma once

#include <coax/config.hpp>
#include <coax/io/descriptors.hpp>
#include <coax/io/operation.hpp>

#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <span>

namespace coax::inline COAX_ABI::operations {

/// Sends on a stream socket: everything, or what the socket takes at once.
///
/// Result    bytes taken over by the kernel.
/// Errors    as send(2); a closed peer is EPIPE, never a signal.
/// Lifetime  borrows the buffer until completion.
/// See       send(2), io_uring_prep_send(3).
class send final : public basic_operation<send, std::size_t> {
 public:
  static constexpr short waits_for = interest::writable;
  enum class until { some, all };

  send(int fd, std::span<const std::byte> from, until enough) noexcept
      : basic_operation(fd, watching::stream), from_(from), enough_(enough) {
    asks_nothing_ = from_.empty();
  }

  const char* name() const noexcept override { return "send"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    // Left to wait for itself, a send to a peer that has ended its side would block a thread of the kernel's, where
    // a cancellation does not reach it.
    io_uring_prep_send(&sqe, fd(), rest().data(), rest().size(), MSG_DONTWAIT | MSG_NOSIGNAL);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    return calls.send(fd(), rest().data(), rest().size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  /// Where one message is all there is to do, a plain call saves entering the ring for it; where
  /// there are several, one system call submits them all.
  first_try tries_first() const noexcept override { return first_try::when_few; }

  bool take(int answer) noexcept override {
    result_ = answer;
    if (answer > 0) sent_ += static_cast<std::size_t>(answer);
    if (answer < 0 && sent_ > 0) cut_off();
    return enough_ == until::some || answer < 0 || sent_ == from_.size();
  }
  void cut_off() noexcept override {
    if (sent_ > 0) at_->write_cut = true;
  }

  result<std::size_t> value(int) const noexcept { return sent_; }

 private:
  std::span<const std::byte> rest() const noexcept {
    return from_.subspan(sent_, std::min(from_.size() - sent_, bytes_max));
  }

  std::span<const std::byte> from_;
  std::size_t sent_ = 0;
  until enough_;
};

}  // namespace coax::inline COAX_ABI::operations
