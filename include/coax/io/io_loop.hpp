#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>
#include <coax/io/connection_end.hpp>
#include <coax/io/descriptors.hpp>
#include <coax/io/homes.hpp>
#include <coax/io/inbox.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/owner.hpp>
#include <coax/io/spare_fds.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/undelivered.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace coax::inline COAX_ABI {

/// A loop on which operations begin and end.
///
/// This class knows the rules that do not depend on how the kernel is asked: who may wait on a
/// descriptor, what an answer means, and what stopping and closing mean. A backend submits and cancels.
///
/// Thread    one.
class io_loop : public loop {
 public:
  /// The one that runs on this thread; the program ends with a message where there is none.
  static io_loop& current() noexcept { return static_cast<io_loop&>(loop::current()); }

  /// Operations that have begun and not ended. A multishot receive that nobody waits for is none.
  std::size_t in_flight() const noexcept { return in_flight_; }

  /// Operations that have begun; of those that ended, how many were given up.
  std::uint64_t submitted() const noexcept { return submitted_; }
  std::uint64_t cancelled() const noexcept { return cancelled_; }

  /// Buffers that are taken from those of the reactor: leased, received ahead, or lying ready in the
  /// kernel.
  std::size_t buffers_in_use() const noexcept { return buffers_ ? buffers_->in_use() : 0; }

  // --- for operations ---

  syscalls& system() noexcept { return calls_; }
  const syscalls& system() const noexcept { return calls_; }

  /// Begins `op`. True when it ended at once.
  bool start(operation& op) noexcept {
    check_runs_here();
    if (!is_plain(op) && ends_at_once(op)) return true;
    if (op.reads()) op.at_->reader = &op;
    if (op.writes()) op.at_->writer = &op;
    ++in_flight_;
    ++submitted_;
    if (!submit(op)) return false;
    release(op);
    return true;
  }

  /// Asks `op`, which has begun, to end. It ends as stopped, or with its result if that came first.
  void stop(operation& op) noexcept {
    check_runs_here();
    if (op.stop_requested_) return;
    op.stop_requested_ = true;
    cancel(op);
  }

  /// Changes when `fd` is closed, so that who comes back to a number can see whether it still is
  /// the same.
  std::uint32_t life_of(int fd) noexcept {
    const descriptor* d = descriptors_.known(fd);
    return d == nullptr ? 0 : d->life;
  }

  /// Takes the place of the one task that accepts from the listener `fd`, which keeps it while it waits out
  /// a shortage and no operation is pending. Result: 0 or -errno.
  [[nodiscard]] int begin_accepting(int fd) noexcept {
    descriptor* d = nullptr;
    if (detail::caught([&] { d = descriptors_.find(fd); })) return -ENOMEM;
    if (d == nullptr || d->closing) return -EBADF;
    if (d->owned) begin_life(*d, false, false);  // of a stream that another thread has closed
    if (d->accepting) return -EBUSY;
    d->accepting = true;
    ++acceptors_;
    return 0;
  }
  /// `is_open`: the descriptor has not been closed since.
  void end_accepting(int fd, bool is_open) noexcept {
    --acceptors_;
    if (is_open) descriptors_.known(fd)->accepting = false;
  }

  /// Holds a descriptor for each task that accepts, until the end of the run. False when one is not to be had.
  [[nodiscard]] bool hold_spare_fds() noexcept { return spares_.hold(acceptors_); }
  detail::spare_fds& spares() noexcept { return spares_; }

  /// A buffer to receive into; a private one when those of the reactor are all in use. Null when
  /// there is no memory.
  detail::buffer* take_buffer() noexcept {
    detail::buffer_pool* pool = buffers();
    detail::buffer* taken = pool == nullptr ? nullptr : pool->take();
    return taken != nullptr ? taken : detail::buffer::make_private();
  }

  /// Result: `answer`, which the kernel gave of a stream, 0 for its end or -errno; of an end that follows an
  /// error by which the connection was lost, that error. The kernel tells it only once and shows an end
  /// then, and who reads must not take that for the peer's, whoever was told.
  static int told_again(descriptor& d, int answer) noexcept {
    switch (-answer) {
      case 0:
        return -d.lost;
      case ECONNRESET:
      case ECONNABORTED:
      case ECONNREFUSED:
      case ETIMEDOUT:
      case EHOSTDOWN:
      case EHOSTUNREACH:
      case ENETUNREACH:
        d.lost = static_cast<std::uint8_t>(-answer) & 0x7f;
        return answer;
      default:
        return answer;
    }
  }

  // --- for streams ---

  /// Takes over the descriptor of a new stream. Errors: std::bad_alloc.
  void own(int fd, bool tcp) {
    descriptor* d = descriptors_.find(fd);
    if (d == nullptr) return;
    begin_life(*d, true, tcp);
    if (home_ != 0) detail::homes::moves_in(fd, home_);
  }

  /// Ends what is pending on the stream `fd` as `close` does, but leaves it open, for whoever alone has it
  /// now. True once all of that has ended: then it can be used again, whatever was cut off on it.
  [[nodiscard]] bool vacate(int fd) noexcept {
    descriptor* d = descriptors_.known(fd);
    if (d == nullptr) return true;
    if (!d->closing && (d->reader != nullptr || d->writer != nullptr)) {
      d->stays_open = true;
      end_what_waits(*d);
    }
    d->read_cut = d->write_cut = false;
    return !d->closing;
  }

  /// This side of the stream `fd` was ended: has who waits to write to it try again, for the kernel need not say so.
  void tell_writer(int fd) noexcept {
    descriptor* d = descriptors_.known(fd);
    if (d != nullptr && d->writer != nullptr && !d->closing) may_be_ready(*d->writer);
  }

  /// What closing does to the socket itself, which other processes may share.
  enum class reach { everywhere, here };

  /// Closes `fd`. While an operation is pending on it the operation fails with
  /// std::errc::operation_canceled, and the number stays taken until that has ended; a connection
  /// is shut down at once all the same, unless it is to be reset, which it is once it is closed. Where
  /// nobody waits there is no shutdown, for another process may share the socket.
  ///
  /// In the child of a fork, which must leave the connection to its parent, only the descriptor is closed.
  void close(int fd, reach how_far = reach::everywhere) noexcept {
    if (!owner_.in_this_process()) {
      calls_.close(fd);
      return;
    }
    descriptor* const d = descriptors_.known(fd);
    const detail::kept_of_stream kept = detail::undelivered::take(fd);
    const bool unread = kept.received.has_bytes() || (d != nullptr && d->received.has_bytes());
    if (unread) detail::reset_on_close(calls_, fd);
    const bool may_shut_down = how_far == reach::everywhere && !unread;
    if (d != nullptr && !d->idle()) return close_once_idle(*d, may_shut_down);
    const bool own = d != nullptr && d->owned;
    if (d != nullptr) end_life(*d);
    if (may_shut_down && !own) return detail::close_elsewhere(calls_, fd);
    calls_.close(fd);
  }

 protected:
  io_loop(syscalls& calls, clock::time_point start)
      : loop(start),
        // One on the kernel has calls of its own, which it counts.
        calls_(&calls == &syscalls::kernel() ? own_calls_ : calls),
        descriptors_(calls_),
        spares_(calls_),
        home_(&calls_ == &own_calls_ ? number() : 0) {}
  ~io_loop() = default;

  // --- the seam: what a backend does ---

  /// How far calls have brought an operation.
  enum class progress : std::uint8_t {
    ended,       ///< it has taken its last answer
    would_wait,  ///< there is no more to be had now
    goes_on,     ///< there may be more, but others are to have their turn
  };

  /// Makes the call of `op`, as long as that gets it on.
  progress call(operation& op) noexcept {
    descriptor& d = *op.at_;
    const auto wanted = static_cast<unsigned>(op.waits_for());
    for (int tries = 0; tries < tries_max; ++tries) {
      const int answer = op.perform(calls_);
      spend_inline_completions(more_than_a_completion(op, answer));
      if (answer == -EINTR) continue;
      if (answer == -EAGAIN) {
        if (there_is_more(op)) continue;
        // What was seen once of a hang-up stays true, but it does not make a call ready that says
        // it is not.
        d.ready &= ~wanted;
        return progress::would_wait;
      }
      // A TCP read that came back short has emptied the socket, so the next one need not ask. Not
      // so once the peer has ended the stream or sent urgent data: these came with an edge that is
      // not repeated, and there is more to read.
      if (op.drained() && short_read_is_all_ && d.tcp && (d.ready & descriptor::sticky) == 0)
        d.ready &= ~wanted;
      if (take(op, answer)) return progress::ended;
      if (op.watched_as() == watching::stream && (d.ready & wanted) == 0)
        return progress::would_wait;
    }
    return progress::goes_on;
  }

  /// A kernel that gives fewer bytes than it has, as a simulation does on purpose, says so: then
  /// only EAGAIN means that there is no more.
  void short_reads_leave_more() noexcept { short_read_is_all_ = false; }

  /// Asks the kernel. True when `op` has taken its last answer already; else `ended` or
  /// `given_up` follows.
  virtual bool submit(operation& op) noexcept = 0;
  /// Asks the kernel to give `op` up. `ended` or `given_up` follows.
  virtual void cancel(operation& op) noexcept = 0;
  /// The call of `op`, which waits, may give an answer now.
  virtual void may_be_ready(operation&) noexcept {}
  /// The entry of a descriptor that nobody waits on any more is about to be closed or forgotten.
  virtual void forget(descriptor&) noexcept {}
  /// Asks the kernel to end the multishot receive of a descriptor. `multishot_ended` follows.
  virtual void stop_multishot(descriptor&) noexcept {}
  /// Has it end now, if that can be, rather than in the next turn.
  virtual void hurry_multishot_end(const descriptor&) noexcept {}
  /// Whether one is in the kernel, be it of a descriptor that is gone.
  virtual bool has_multishots() const noexcept { return false; }

  // --- what a backend reports ---

  /// Passes an answer of the kernel to `op`. True when that ended it; false to do it again.
  static bool take(operation& op, int answer) noexcept {
    if (answer > 0 && !op.at_->closing) return op.take(answer);
    return take_end(op, answer);
  }

  /// `op` has taken its last answer.
  void ended(operation& op) noexcept {
    release(op);
    op.complete();
  }

  /// `op` ended without an answer, because it was asked to, or because its descriptor was closed.
  void given_up(operation& op) noexcept {
    ++cancelled_;
    if (op.at_->is_awaited_by(op)) op.cut_off();  // else its number stands for another stream now
    release(op);
    if (op.stop_requested_) return op.stopped();
    op.result_ = -ECANCELED;
    op.complete();
  }

  /// The multishot receive of `d` has had its last completion.
  void multishot_ended(descriptor& d) noexcept {
    d.multishot = d.multishot_stops = false;
    settle(d);
  }

  descriptor_table& descriptors() noexcept { return descriptors_; }

  /// The buffers of this reactor, made when first asked for. Null when there is no memory.
  detail::buffer_pool* buffers() noexcept {
    if (!buffers_) make_buffers();
    return buffers_.get();
  }

  // --- for the end of a run ---

  void stop_multishots() noexcept {
    if (!has_multishots()) return;
    descriptors_.for_each([this](descriptor& d) {
      if (d.multishot) stop_multishot(d);
    });
  }

  void keep_undelivered() noexcept {
    descriptors_.for_each([this](descriptor& d) {
      if (!d.owned) return;
      const bool is_ours = home_ == 0 || detail::homes::moves_out(d.fd, home_);
      if (d.received.empty() && !d.read_cut && !d.write_cut && d.lost == 0) return;
      // Another thread has closed it, and may have opened another by its number.
      if (!is_ours || calls_.is_open(d.fd) < 0) return d.received.clear();
      detail::undelivered::keep(d.fd,
                                {std::move(d.received), d.read_cut == 1, d.write_cut == 1, d.lost});
    });
  }

  const detail::owner& owner() const noexcept { return owner_; }

 private:
  friend class operation;

  /// Cheaper than `owner_.check()`, which each turn has made.
  void check_runs_here() const noexcept {
#ifndef NDEBUG
    if (running() != this) detail::fatal_other_thread();
    owner_.check_process();
#endif
  }

  // One operation tries so often in a row at most, so that a transfer of gigabytes lets others in
  // between.
  static constexpr int tries_max = 16;

  /// Whether there is something to read though `op` was told EAGAIN. At urgent data recv(2) says so while
  /// a signal is pending, whatever came behind that; and no edge would tell of it again.
  bool there_is_more(const operation& op) noexcept {
    if (!op.reads() || op.watched_as() != watching::stream) return false;
    return (op.at_->ready & POLLPRI) != 0 && calls_.true_of(op.fd(), POLLIN) > 0;
  }

  /// For how many completions of waits a call counts, besides that of its operation, and about as many
  /// again for each 8 KB that it has moved. So a peer that always has more to send, and takes all that
  /// is sent to it, has others wait for 64 KB.
  static int more_than_a_completion(const operation& op, int answer) noexcept {
    constexpr int of_the_call = 8;
    constexpr int bytes_of_one = 1024;
    const bool moved = op.watched_as() == watching::stream && answer > 0;
    return of_the_call + (moved ? answer / bytes_of_one : 0);
  }

  /// Whether no rule stands against `op`, as is the rule; then it has its descriptor.
  bool is_plain(operation& op) noexcept {
    descriptor* const d = descriptors_.known(op.fd());
    if (d == nullptr || !d->is_plain() || op.watched_as() != watching::stream) return false;
    if (op.asks_nothing_ || side_taken(*d, op)) return false;
    op.at_ = d;
    return true;
  }

  static bool side_taken(const descriptor& d, const operation& op) noexcept {
    return (op.reads() && d.reader != nullptr) || (op.writes() && d.writer != nullptr);
  }

  /// Whether `op` is refused, or finds its result with the descriptor. Also gets ready what must be
  /// before the first operation of a descriptor.
  [[gnu::noinline]] bool ends_at_once(operation& op) noexcept {
    if (op.asks_nothing_) return true;
    if (detail::caught([&] { op.at_ = descriptors_.find(op.fd()); }))
      return op.result_ = -ENOMEM, true;
    descriptor* const d = op.at_;
    if (d == nullptr || d->closing) return op.result_ = -EBADF, true;
    if (side_taken(*d, op)) return op.result_ = -EBUSY, true;
    if (op.watched_as() != watching::stream) return false;
    if (!d->owned) take_over(*d);  // it was made in another run
    if ((op.reads() && d->read_cut) || (op.writes() && d->write_cut))
      return op.result_ = operation::cut_before, true;
    return !d->received.empty() && op.take_received(d->received);
  }

  /// Takes an answer that is not merely so many bytes.
  [[gnu::noinline]] static bool take_end(operation& op, int answer) noexcept {
    if (answer <= 0 && op.watched_as() == watching::stream) answer = told_again(*op.at_, answer);
    if (!op.at_->closing) return op.take(answer);
    // To read nothing may be the work of the shutdown.
    const bool is_result = answer > 0 || (answer == 0 && op.zero_is_a_result());
    return op.take(is_result ? answer : -ECANCELED) || op.take(-ECANCELED);
  }

  void release(operation& op) noexcept {
    --in_flight_;
    descriptor& d = *op.at_;
    if (d.reader == &op) d.reader = nullptr;
    if (d.writer == &op) d.writer = nullptr;
    settle(d);
  }

  /// Does what was put off while something was pending on `d`.
  void settle(descriptor& d) noexcept {
    if ((!d.owned || d.closing) && d.idle()) settle_now(d);
  }
  [[gnu::noinline]] void settle_now(descriptor& d) noexcept {
    if (!d.owned) forget(d);
    if (!d.closing) return;
    if (d.stays_open) {
      d.closing = d.stays_open = false;
      return;
    }
    const int fd = d.fd;
    end_life(d);
    calls_.close(fd);
  }

  /// It is about to be closed. Another process may keep the same socket open, and the kernel would go on to report it.
  void end_life(descriptor& d) noexcept {
    if (detail::has_forked.load(std::memory_order_relaxed)) forget(d);
    if (home_ != 0) detail::homes::moves_out(d.fd, home_);
    d.renew(false, false);
  }

  void take_over(descriptor& d) noexcept {
    if (home_ != 0) {
      detail::homes::check(d.fd, home_);
      detail::homes::moves_in(d.fd, home_);
    }
    if (d.idle()) {
      d.renew(true, false);
    } else {
      // Somebody waits on it as on a borrowed one, and must be woken all the same.
      d.owned = true;
      d.ready = descriptor::unknown;
    }
    detail::kept_of_stream kept = detail::undelivered::take(d.fd);
    d.received = std::move(kept.received);
    d.read_cut = kept.read_cut;
    d.write_cut = kept.write_cut;
    d.lost = kept.lost & 0x7f;
  }

  /// The number of `d` stands for something else than before; who still waits for that is forsaken.
  void begin_life(descriptor& d, bool owned, bool tcp) noexcept {
    cancel_all(d);
    detail::undelivered::take(d.fd);
    d.renew(owned, tcp);
  }

  /// Ends what is pending on `d`, the last of which closes it.
  void close_once_idle(descriptor& d, bool may_shut_down) noexcept {
    d.received.clear();
    d.stays_open = false;
    const bool somebody_waits = d.reader != nullptr || d.writer != nullptr;
    if (may_shut_down && somebody_waits && !detail::has_unread(calls_, d.fd) &&
        !detail::is_to_be_reset(calls_, d.fd))
      calls_.shutdown(d.fd, SHUT_RDWR);
    end_what_waits(d);
    if (!somebody_waits) hurry_multishot_end(d);
  }
  void end_what_waits(descriptor& d) noexcept {
    d.closing = true;
    cancel_all(d);
  }
  void cancel_all(descriptor& d) noexcept {
    if (d.multishot) stop_multishot(d);
    operation* const writer = d.writer;  // cancelling the last one may renew the entry
    if (d.reader != nullptr) cancel(*d.reader);
    if (writer != nullptr && d.writer == writer) cancel(*writer);
  }

  [[gnu::noinline, gnu::cold]] void make_buffers() noexcept {
    buffers_ = detail::buffer_pool::make();
  }

  syscalls own_calls_;
  syscalls& calls_;
  detail::buffer_pool::owned buffers_;
  descriptor_table descriptors_;  // after the buffers: what was received goes back to them
  std::size_t in_flight_ = 0;
  std::size_t acceptors_ = 0;
  detail::spare_fds spares_;
  std::uint64_t submitted_ = 0;
  std::uint64_t cancelled_ = 0;
  bool short_read_is_all_ = true;
  std::uint32_t home_;  // of the streams made here; 0 where they are not the kernel's
  detail::owner owner_;
};

inline bool operation::start_here() noexcept { return io_loop::current().start(*this); }
inline void operation::stop_here() noexcept { io_loop::current().stop(*this); }

}  // namespace coax::inline COAX_ABI
