#pragma once

#include <coax/config.hpp>
#include <coax/io/operation.hpp>

#include <poll.h>

#include <cerrno>

namespace coax::inline COAX_ABI::operations {

/// Waits until one of `events` is true of a descriptor, or it has failed or hung up.
///
/// Result    the events that are true: among those asked for, and POLLERR, POLLHUP.
/// Errors    EBADF; else as poll(2).
/// See       poll(2), io_uring_prep_poll_add(3).
class poll final : public basic_operation<poll, short> {
 public:
  poll(int fd, short events) noexcept : basic_operation(fd, events, watching::borrowed) {}

  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_poll_add(&sqe, fd(), static_cast<unsigned short>(waits_for()));
#endif
  }
  int perform(syscalls& calls) noexcept override {
    pollfd ready{fd(), waits_for(), 0};
    const int count = calls.poll(&ready, 1);
    if (count <= 0) return count < 0 ? count : -EAGAIN;
    return (ready.revents & POLLNVAL) != 0 ? -EBADF : ready.revents;
  }

  result<short> value(int answer) const noexcept { return static_cast<short>(answer); }
};

}  // namespace coax::inline COAX_ABI::operations
