#pragma once

#include <coax/config.hpp>
#include <coax/io/descriptors.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>

#include <poll.h>

#include <cerrno>

namespace coax::inline COAX_ABI::operations {

/// Waits until one of `events` is true of a descriptor, or it has failed or hung up.
///
/// Result    the events that are true: among those asked for, and POLLERR, POLLHUP.
/// Errors    EBADF; EMFILE, on io_uring, where a descriptor is needed for it and none is left; else as
///           poll(2).
/// See       poll(2), io_uring_prep_poll_add(3).
class poll final : public basic_operation<poll, short> {
 public:
  poll(int fd, short events) noexcept : basic_operation(fd, events, watching::borrowed) {}
  poll(poll&&) = default;

  const char* name() const noexcept override { return "poll"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    // io_uring also wakes for a half-close that nobody asked for, again and again, and never for
    // urgent data alone. Where that would show, an epoll(7) descriptor stands for the events: it is
    // readable when one is true.
    if (!asks_for_input() && stand_in()) return io_uring_prep_poll_add(&sqe, set_.get(), POLLIN);
    io_uring_prep_poll_add(&sqe, fd(), static_cast<unsigned short>(waits_for()));
#endif
  }
  first_try tries_first() const noexcept override {
    return asks_for_input() ? first_try::never : first_try::always;
  }
  int perform(syscalls& calls) noexcept override {
    const int now = calls.true_of(fd(), waits_for());
    if (now <= 0) return now < 0 ? now : -EAGAIN;
    return (now & POLLNVAL) != 0 ? -EBADF : now;
  }
  bool take(int answer) noexcept override {
    if (answer > 0 && at_->closing)
      answer = -ECANCELED;  // what is true now, closing has brought about
    if (answer > 0 && set_) {
      answer = perform(syscalls::current());
      if (answer == -EAGAIN || answer == -EINTR) return false;
    }
    set_.reset();
    result_ = answer > 0 ? answer & (waits_for() | POLLERR | POLLHUP) : answer;
    if (result_ == 0)
      result_ = -EMFILE;  // woken for what nobody asked for, as nothing could stand in
    return true;
  }

  result<short> value(int answer) const noexcept { return static_cast<short>(answer); }

 private:
  bool asks_for_input() const noexcept { return (waits_for() & POLLIN) != 0; }
  bool stand_in() noexcept {
    if (set_) return true;
    syscalls& calls = syscalls::current();
    set_.reset(calls.epoll_create());
    if (set_ && calls.epoll_add(set_.get(), fd(), static_cast<unsigned short>(waits_for())) < 0)
      set_.reset();
    return static_cast<bool>(set_);
  }

  unique_fd set_;
};

}  // namespace coax::inline COAX_ABI::operations
