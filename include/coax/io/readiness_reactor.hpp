#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>

#include <poll.h>

#include <cerrno>

namespace coax::inline COAX_ABI {

/// A reactor over a kernel that says when a call is worth trying: perform; if it would block, park;
/// when it is ready, queue; perform again.
///
/// epoll and the simulation differ only in how they park, wait and tell the time, and in their
/// `syscalls`.
class readiness_reactor : public reactor {
 protected:
  using reactor::reactor;

  // --- what is left to a backend ---

  /// Sees to it that `became_ready` is called once `d` may be ready for what its reader and writer
  /// wait for. An owned descriptor that is registered needs no more. Result: 0 or -errno.
  virtual int park(descriptor& d, const operation& op) noexcept = 0;

  // --- what a backend reports ---

  /// The kernel has reported `events` for `d`.
  void became_ready(descriptor& d, unsigned events) noexcept {
    d.ready |= events;
    if ((events & (POLLRDHUP | POLLHUP | POLLERR)) != 0) d.ready |= POLLIN;
    if ((events & (POLLHUP | POLLERR)) != 0) d.ready |= POLLOUT;
    if (d.reader != nullptr) try_later(*d.reader);
    if (d.writer != nullptr && d.writer != d.reader) try_later(*d.writer);
  }

 private:
  /// Whether the kernel has said all it knows, and has not reported the descriptor since.
  static bool must_wait(const operation& op) noexcept {
    return op.watched_as() == watching::stream &&
           (op.at_->ready & static_cast<unsigned>(op.waits_for())) == 0;
  }

  bool worth_a_call(const operation& op) noexcept final { return !must_wait(op); }

  bool submit(operation& op) noexcept final {
    const progress made = must_wait(op) ? progress::would_wait : call(op);
    return made == progress::ended || go_on(op, made);
  }

  /// One that has its turn to come ends then.
  void cancel(operation& op) noexcept final {
    if (!op.has_turn_) was_stopped(op);
  }

  bool go_on(operation& op, progress made) noexcept final {
    if (made == progress::goes_on) return give_turn(op), false;
    descriptor& d = *op.at_;
    if (d.owned && d.registered) return false;
    const int failed = park(d, op);
    return failed < 0 && take(op, failed);
  }

  /// The call is made when `op` has its turn: right before what becomes of its result, while that
  /// lies in the caches.
  void try_later(operation& op) noexcept {
    if (!op.has_turn_ && !must_wait(op)) give_turn(op);
  }
  void give_turn(operation& op) noexcept {
    op.has_turn_ = true;
    make_ready(op);
  }
};

}  // namespace coax::inline COAX_ABI
