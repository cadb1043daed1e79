#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>
#include <coax/io/descriptors.hpp>
#include <coax/io/inbox.hpp>
#include <coax/io/io_loop.hpp>
#include <coax/io/leased_buffer.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/syscalls.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <utility>

namespace coax::inline COAX_ABI::operations {

/// Receives from a stream socket into a buffer of the reactor's, which is taken only when there is
/// something to receive.
///
/// On io_uring the bytes come from the multishot receive of the descriptor, which this starts. Where
/// that is not to be had it waits until there is something, and calls recv(2).
///
/// Result    a lease of what there is.
/// Errors    coax::errc::end_of_stream when the peer has ended the stream; ENOMEM; else as recv(2).
/// See       recv(2), io_uring_prep_recv_multishot(3).
class receive final : public basic_operation<receive, leased_buffer> {
 public:
  static constexpr short waits_for = interest::readable;

  explicit receive(int fd) noexcept : basic_operation(fd, watching::stream) {}

  const char* name() const noexcept override { return "recv"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
    polls_ = true;
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_poll_add(&sqe, fd(), POLLIN);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    detail::buffer* into = io_loop::current().take_buffer();
    if (into == nullptr) return -ENOMEM;
    received_ = leased_buffer(*into);
    const int got = calls.recv(fd(), into->data(), detail::buffer::bytes_max, MSG_DONTWAIT);
    if (got <= 0) {
      received_ = leased_buffer();
      return got;
    }
    drained_ = got < static_cast<int>(detail::buffer::bytes_max);
    if (drained_) at_->floods = false;
    into->fill(static_cast<std::uint32_t>(got));
    return got;
  }
  bool take(int answer) noexcept override {
    if (std::exchange(polls_, false) && answer > 0) {
      answer = at_->closing ? -ECANCELED : io_loop::told_again(*at_, perform(syscalls::current()));
      if (answer == -EAGAIN || answer == -EINTR) return false;
    }
    result_ = answer;
    return true;
  }

  bool wants_multishot() const noexcept override { return true; }
  /// From a peer that floods there is something to receive.
  first_try tries_first() const noexcept override {
    return at_->floods ? first_try::always : first_try::never;
  }
  bool take_received(inbox& from) noexcept override {
    if (!from.has_bytes()) return take(from.take_end());
    received_ = leased_buffer(from.pop());
    result_ = 1;
    return true;
  }

  result<leased_buffer> value(int answer) noexcept {
    if (answer == 0) return errc::end_of_stream;
    return std::move(received_);
  }

 private:
  bool polls_ = false;  // what is in the ring only says that there is something
  leased_buffer received_;
};

}  // namespace coax::inline COAX_ABI::operations
