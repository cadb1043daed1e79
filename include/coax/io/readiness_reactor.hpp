#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <optional>

namespace coax::inline COAX_ABI {

/// A reactor over a kernel that says when a call is worth trying: perform; if it would block, park;
/// when it is ready, queue; perform again.
///
/// What is ready is read from a few descriptors in a row, then the tasks run that waited for it, then
/// what these write is written in a row, and so on. A system call leaves little of a program in the
/// caches, so code that runs between two calls runs slowly; and what has been read from many
/// descriptors is out of them again before it is used.
///
/// epoll and the simulation differ only in how they park, wait and tell the time, and in their
/// `syscalls`.
class readiness_reactor : public reactor {
 public:
  bool would_wait() const noexcept final {
    return !has_ready() && reads_.empty() && writes_.empty();
  }

 protected:
  using reactor::reactor;

  // --- what is left to a backend ---

  /// Waits until something `became_ready` or `deadline` has passed; without one, for ever.
  virtual void wait(std::optional<clock::time_point> deadline) noexcept = 0;

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
  // So much is read in a row.
  static constexpr std::size_t calls_max = 16;
  static constexpr std::size_t bytes_max = 16 * 1024;

  void poll(std::optional<clock::time_point> deadline) noexcept final {
    wait(deadline);
    reads_left_ = reads_.size();
    make_reads();
  }

  bool has_more() noexcept final {
    put_off_ready();
    for (std::size_t left = writes_.size(); left > 0; --left) make_first_call(writes_);
    make_reads();
    return has_ready();
  }

  void make_reads() noexcept {
    bytes_ = 0;
    for (together_ = 0; reads_left_ > 0 && together_ < calls_max && bytes_ < bytes_max;
         ++together_) {
      make_first_call(reads_);
      --reads_left_;
    }
  }

  /// If its operation was asked to stop after it had been put in line, its result came first.
  void make_first_call(ready_queue& line) noexcept {
    auto& op = static_cast<operation&>(*line.pop());
    op.in_line_ = false;
    if (!op.at_->is_awaited_by(op) || op.at_->closing) return was_stopped(op);
    const progress made = call(op);
    if (made != progress::ended) {
      if (op.stop_requested_) return was_stopped(op);
      if (!go_on(op, made)) return;
    }
    if (op.result_ > 0) bytes_ += static_cast<std::size_t>(op.result_);
    ended(op);
  }

  bool submit(operation& op) noexcept final {
    if (must_wait(op)) return go_on(op, progress::would_wait);
    // Where several tasks have been woken together, others are about to write too.
    if (is_writer(op) && together_ > 1) return go_on(op, progress::goes_on);
    const progress made = call(op);
    return made == progress::ended || go_on(op, made);
  }

  /// One that is in line ends when its call is made.
  void cancel(operation& op) noexcept final {
    if (!op.in_line_) was_stopped(op);
  }

  /// True when `op` has taken its last answer after all.
  bool go_on(operation& op, progress made) noexcept {
    if (made == progress::goes_on) return put_in_line(op), false;
    descriptor& d = *op.at_;
    if (d.owned && d.registered) return false;
    const int failed = park(d, op);
    return failed < 0 && take(op, failed);
  }

  /// Whether the kernel has said all it knows, and has not reported the descriptor since.
  static bool must_wait(const operation& op) noexcept {
    return op.watched_as() == watching::stream &&
           (op.at_->ready & static_cast<unsigned>(op.waits_for())) == 0;
  }

  void try_later(operation& op) noexcept {
    if (!op.in_line_ && !must_wait(op)) put_in_line(op);
  }
  void put_in_line(operation& op) noexcept {
    op.in_line_ = true;
    (is_writer(op) ? writes_ : reads_).push(op);
  }

  // Operations whose calls are to be made.
  ready_queue reads_;
  ready_queue writes_;
  std::size_t reads_left_ = 0;  // those of this turn
  std::size_t together_ = 0;    // reads made in a row, last
  std::size_t bytes_ = 0;       // what came of them
};

}  // namespace coax::inline COAX_ABI
