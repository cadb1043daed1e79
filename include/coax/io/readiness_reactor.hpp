#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>

#include <poll.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace coax::inline COAX_ABI {

/// A reactor over a kernel that says when a call is worth trying: perform; if it would block, park;
/// when it is ready, put in line; perform again.
///
/// A turn repeats: make a row of the calls that may succeed, run the tasks they end, make the writes
/// these have put off. Not a read, its task, its write, and so on: a system call displaces the program
/// from the caches, so code between two calls runs slowly. Not all reads first: what is read early would
/// have left the caches before its task runs.
///
/// epoll and the simulation differ only in how they park, wait and tell the time, and in their
/// `syscalls`.
class readiness_reactor : public reactor {
 public:
  bool would_wait() const noexcept final {
    return reactor::would_wait() && calls_.empty() && writes_.empty();
  }

 protected:
  using reactor::reactor;

  // --- what is left to a backend ---

  /// So many descriptors does a wait report at most, and so many calls are made in a turn.
  static constexpr std::size_t reports_max = 256;

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

  static unsigned wanted_by(const operation* op) noexcept {
    return op == nullptr ? 0 : static_cast<std::uint16_t>(op->waits_for());
  }

 private:
  // A row ends after so many calls, and after one with which so many bytes have come.
  static constexpr std::size_t calls_in_row_max = 16;
  static constexpr std::size_t bytes_in_row = 16 * 1024;

  void poll(std::optional<clock::time_point> deadline) noexcept final {
    wait(deadline);
    left_ = std::min(calls_.size(), reports_max);
    make_row();
  }

  void look_again() noexcept final {
    for (std::size_t left = 1 + descriptors().size() / reports_max; left > 0; --left) {
      wait(clock::time_point::min());
      if (calls_.empty()) return;
      for (left_ = calls_.size(); left_ > 0;) make_row();
    }
  }

  bool make_calls() noexcept final {
    while (!writes_.empty()) make_next_call(writes_);
    make_row();
    return has_ready() || left_ > 0;
  }

  void make_row() noexcept {
    std::size_t bytes = 0;
    for (in_row_ = 0; left_ > 0 && in_row_ < calls_in_row_max && bytes < bytes_in_row;
         ++in_row_, --left_)
      bytes += make_next_call(calls_);
  }

  /// Makes the call of the first in line. If that was asked to stop meanwhile, a result still comes
  /// first. Result: the bytes of a stream that came of it.
  [[gnu::noinline]] std::size_t make_next_call(ready_queue& line) noexcept {
    auto& op = static_cast<operation&>(*line.pop());
    op.in_line_ = false;
    if (!op.at_->is_awaited_by(op) || op.at_->closing) return given_up(op), 0;
    const progress made = call(op);
    if (made != progress::ended) {
      if (op.stop_requested_) return given_up(op), 0;
      if (!go_on(op, made)) return 0;
    }
    const bool moved = op.watched_as() == watching::stream && op.result_ > 0;
    const std::size_t bytes = moved ? static_cast<std::size_t>(op.result_) : 0;
    ended(op);
    return bytes;
  }

  bool submit(operation& op) noexcept final {
    if (must_wait(op)) return fails_to_park(op);
    // Others that were woken together with this task are about to write too.
    if (op.writes() && in_row_ > 1) return put_in_line(op, writes_), false;
    const progress made = call(op);
    return made == progress::ended || go_on(op, made);
  }

  /// One that is in line ends when its call is made.
  void cancel(operation& op) noexcept final {
    if (!op.in_line_) given_up(op);
  }

  /// True when `op` has taken its last answer after all.
  bool go_on(operation& op, progress made) noexcept {
    if (made == progress::would_wait) return fails_to_park(op);
    return put_in_line(op, calls_), false;  // for the next turn: others are to have theirs
  }
  /// True when that has ended `op`.
  bool fails_to_park(operation& op) noexcept {
    descriptor& d = *op.at_;
    if (d.owned && d.registered && op.watched_as() == watching::stream) return false;
    const int failed = park(d, op);
    return failed < 0 && take(op, failed);
  }

  /// Whether the kernel has said all it knows, and has not reported the descriptor since.
  static bool must_wait(const operation& op) noexcept {
    return op.watched_as() == watching::stream &&
           (op.at_->ready & static_cast<unsigned>(op.waits_for())) == 0;
  }

  void may_be_ready(operation& op) noexcept final {
    op.at_->ready |= static_cast<unsigned>(op.waits_for());
    try_later(op);
  }
  void try_later(operation& op) noexcept {
    if (!op.in_line_ && !must_wait(op)) put_in_line(op, calls_);
  }
  static void put_in_line(operation& op, ready_queue& line) noexcept {
    op.in_line_ = true;
    line.push(op);
  }

  ready_queue calls_;       // operations that were reported, or go on
  ready_queue writes_;      // those that tasks have begun in this row
  std::size_t left_ = 0;    // of `calls_`: how many belong to this turn
  std::size_t in_row_ = 0;  // how many were made in the last row
};

}  // namespace coax::inline COAX_ABI
