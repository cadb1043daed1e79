#pragma once

#include <coax/config.hpp>
#include <coax/io/io_loop.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

namespace coax::inline COAX_ABI::operations {

/// Accepts one connection, close-on-exec. It owns what it accepted until somebody takes it: a
/// connection that was accepted although nobody waits any more is closed.
///
/// Result    the new descriptor.
/// Errors    as accept(2), all of them: riding some out is for the listener. With watching::shared, out of
///           descriptors only when the reactor has no spare one either.
/// See       accept4(2), io_uring_prep_accept(3).
class accept final : public basic_operation<accept, unique_fd> {
 public:
  static constexpr short waits_for = interest::readable;

  explicit accept(int fd, watching how = watching::borrowed) noexcept : basic_operation(fd, how) {}
  accept(accept&&) = default;

  const char* name() const noexcept override { return "accept"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_accept(&sqe, fd(), nullptr, nullptr, SOCK_CLOEXEC);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    if (watched_as() == watching::borrowed) {
      // It may be in blocking mode, and that is not ours to change.
      const int ready = calls.true_of(fd(), POLLIN);
      if (ready < 0) return ready;
      // Never ready for what it was not made for: that is an error, which the call below tells.
      if (ready == 0 && calls.listens(fd()) == 0) return -EAGAIN;
    }
    return calls.accept(fd(), SOCK_CLOEXEC);
  }
  /// Of connections that wait, one in each turn would come by the ring; a call takes the next at
  /// once.
  first_try tries_first() const noexcept override {
    return watched_as() == watching::shared ? first_try::always : first_try::never;
  }
  bool take(int answer) noexcept override {
    const bool is_short = answer == -EMFILE || answer == -ENFILE;
    if (is_short && watched_as() == watching::shared) {
      answer = accept_by_spare(fd());
      // Nobody has connected: the kernel asks for a descriptor first. Now there is one.
      if (answer == -EAGAIN) return false;
    }
    result_ = answer;
    if (answer >= 0) accepted_.reset(answer);
    return true;
  }
  /// It is a descriptor like others.
  bool zero_is_a_result() const noexcept override { return true; }

  result<unique_fd> value(int) noexcept { return std::move(accepted_); }

 private:
  static int accept_by_spare(int fd) noexcept {
    io_loop& here = io_loop::current();
    here.spares().give_up_one();
    return here.system().accept(fd, SOCK_CLOEXEC);
  }

  unique_fd accepted_;
};

}  // namespace coax::inline COAX_ABI::operations
