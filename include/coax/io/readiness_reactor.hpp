#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>

#include <poll.h>

#include <cerrno>

namespace coax::inline COAX_ABI {

/// A reactor over a kernel that says when a call is worth trying: perform; if it would block, park;
/// perform again.
///
/// epoll and the simulation differ only in how they park, wait and tell the time, and in their
/// `syscalls`.
class readiness_reactor : public reactor {
 protected:
  using reactor::reactor;

  /// A kernel that gives fewer bytes than it has, as a simulation does on purpose, says so: then
  /// only EAGAIN means that there is no more.
  void short_reads_leave_more() noexcept { short_read_is_all_ = false; }

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
    operation* const reader = d.reader;
    operation* const writer = d.writer;
    // One that is queued for its next try will see it then; it must not end while it is in the
    // queue.
    if (reader != nullptr && !reader->retrying_) progress(*reader);
    if (writer != nullptr && writer != reader && d.writer == writer && !writer->retrying_)
      progress(*writer);
  }

  /// True while operations wait for their next try without the kernel's word.
  bool has_retries() const noexcept { return !retries_.empty(); }

  void run_retries() noexcept {
    for (std::size_t left = retries_.size(); left > 0; --left) {
      auto& op = static_cast<operation&>(*retries_.pop());
      op.retrying_ = false;
      progress(op);
    }
  }

 private:
  // One operation tries so often in a row at most, so that a transfer of gigabytes lets others in
  // between.
  static constexpr int tries_max = 16;

  bool submit(operation& op) noexcept final { return attempt(op); }

  void cancel(operation& op) noexcept final {
    if (op.retrying_) retries_.remove(op);
    op.retrying_ = false;
    was_stopped(op);
  }

  void progress(operation& op) noexcept {
    if (attempt(op)) ended(op);
  }

  /// True when `op` has taken its last answer; else it is parked, or queued for another try.
  bool attempt(operation& op) noexcept { return must_wait(op) ? wait_for(op) : try_it(op); }

  /// Whether the kernel has said all it knows, and has not reported the descriptor since.
  static bool must_wait(const operation& op) noexcept {
    return op.watched_as() == watching::stream &&
           (op.at_->ready & static_cast<unsigned>(op.waits_for())) == 0;
  }

  [[gnu::noinline]] bool try_it(operation& op) noexcept {
    descriptor& d = *op.at_;
    const auto wanted = static_cast<unsigned>(op.waits_for());
    for (int tries = 0; tries < tries_max; ++tries) {
      const int answer = op.perform(system());
      if (answer == -EINTR) continue;
      if (answer == -EAGAIN) {
        // What was seen once of a hang-up stays true, but it does not make a call ready that says
        // it is not.
        d.ready &= ~wanted;
        return wait_for(op);
      }
      // A TCP read that came back short has emptied the socket, so the next one need not ask. Not
      // so once the peer has ended the stream or sent urgent data: these came with an edge that is
      // not repeated, and there is more to read.
      if (op.drained() && short_read_is_all_ && d.tcp && (d.ready & descriptor::sticky) == 0)
        d.ready &= ~wanted;
      if (take(op, answer)) return true;
      if (op.stop_requested()) break;
      if (must_wait(op)) return wait_for(op);
    }
    op.retrying_ = true;
    retries_.push(op);
    return false;
  }

  bool wait_for(operation& op) noexcept {
    descriptor& d = *op.at_;
    if (d.owned && d.registered) return false;
    const int failed = park(d, op);
    return failed < 0 && take(op, failed);
  }

  ready_queue retries_;
  bool short_read_is_all_ = true;
};

}  // namespace coax::inline COAX_ABI
