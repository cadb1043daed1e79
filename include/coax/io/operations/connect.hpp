#pragma once

#include <coax/config.hpp>
#include <coax/io/operation.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

namespace coax::inline COAX_ABI::operations {

/// Connects a socket.
///
/// Errors    as connect(2).
/// Lifetime  borrows the address until completion.
/// See       connect(2), io_uring_prep_connect(3).
class connect final : public basic_operation<connect, void> {
 public:
  static constexpr short waits_for = interest::writable;

  connect(int fd, const sockaddr* to, socklen_t size) noexcept
      : basic_operation(fd, watching::borrowed), to_(to), size_(size) {}

  const char* name() const noexcept override { return "connect"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_connect(&sqe, fd(), to_, size_);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    if (in_progress_) {
      // Writable, or failed: poll says that it is over, SO_ERROR how.
      const int ready = calls.true_of(fd(), POLLOUT);
      if (ready <= 0) return ready < 0 ? ready : -EAGAIN;
      return calls.connect_outcome(fd());
    }
    const int answer = calls.connect(fd(), to_, size_);
    in_progress_ = answer == -EINPROGRESS || answer == -EINTR;  // interrupted, it goes on
    return in_progress_ ? -EAGAIN : answer == -EAGAIN ? no_room : answer;
  }
  bool take(int answer) noexcept override {
    result_ = answer == no_room ? -EAGAIN : answer;
    return true;
  }

  result<void> value(int) const noexcept { return {}; }

 private:
  static constexpr int no_room = -100'001;  // EAGAIN of connect(2) is an answer, not "would block"

  const sockaddr* to_;
  socklen_t size_;
  bool in_progress_ = false;
};

}  // namespace coax::inline COAX_ABI::operations
