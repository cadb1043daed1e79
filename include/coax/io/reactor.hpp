#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>
#include <coax/io/descriptors.hpp>
#include <coax/io/inbox.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/operations/poll.hpp>
#include <coax/io/owner.hpp>
#include <coax/io/services.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/undelivered.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace coax::inline COAX_ABI {

/// A loop that waits for the kernel: operations go in, and end.
///
/// This class knows the rules that do not depend on how the kernel is asked: who may wait on a
/// descriptor, what stopping and closing mean, and how other threads get in. A backend submits,
/// cancels and waits.
///
/// Thread    one, but for `wake` and `post`.
class reactor : public loop {
 public:
  /// The reactor that runs on this thread; the program ends with a message where there is none.
  static reactor& current() noexcept { return static_cast<reactor&>(loop::current()); }

  virtual ~reactor() {
    posted_.drop_all();
    calls_.close(wake_fd_.release());
  }

  /// "io_uring" or "epoll".
  virtual std::string_view backend() const noexcept = 0;

  /// Why this is not io_uring, in words; empty when nothing stood in the way of the one that was
  /// wanted.
  const std::string& fallback_reason() const noexcept { return fallback_reason_; }
  void set_fallback_reason(std::string why) { fallback_reason_ = std::move(why); }

  /// Whether `blocking` calls at once, on this thread, what it would give to a thread of the pool:
  /// where time is simulated, nothing may depend on how threads are scheduled.
  virtual bool runs_blocking_inline() const noexcept { return false; }

  /// See options::spin.
  void set_spin(clock::duration how_long) noexcept { spin_ = how_long; }

  /// Operations that have begun and not ended. A multishot receive that nobody waits for is none.
  std::size_t in_flight() const noexcept { return in_flight_; }

  /// Operations that have begun; of those that ended, how many were given up.
  std::uint64_t submitted() const noexcept { return submitted_; }
  std::uint64_t cancelled() const noexcept { return cancelled_; }

  /// Buffers that are taken from those of the reactor: leased, received ahead, or lying ready in the
  /// kernel.
  std::size_t buffers_in_use() const noexcept { return buffers_ ? buffers_->in_use() : 0; }

  clock::time_point now() const noexcept override {
    return clock::time_point(std::chrono::steady_clock::now().time_since_epoch());
  }

  /// One turn: waits for the kernel if nothing is ready, then runs what is ready, then the timers
  /// that are due. Completions come before timers, so that what has completed beats its timeout.
  void turn() noexcept {
    owner_.check();
    const running_here guard(*this);
    poll(has_ready() ? std::optional(clock::time_point::min()) : deadlines().next());
    run_ready();
    run_timers();
  }

  /// True when the next turn waits for the kernel or a timer: all that can run has run.
  bool would_wait() const noexcept { return !has_ready(); }

  /// Makes the reactor's `poll` return. Thread: any; also from a signal handler.
  virtual void wake() noexcept {
    const std::uint64_t one = 1;
    static_cast<void>(!::write(wake_fd_.get(), &one, sizeof(one)));  // full: it is awake already
  }

  /// Makes `node` ready on this reactor's thread. Those of one thread stay in order.
  ///
  /// Result    false when the run has ended: then nothing happens to `node`.
  /// Lifetime  `node` is dropped if the run ends before its turn. The reactor may be destroyed as
  ///           soon as `node` has run, though this call may not have returned by then.
  /// Thread    any.
  bool post(ready_node& node) noexcept {
    const std::lock_guard lock(posted_mutex_);
    if (posts_closed_) return false;
    const bool first = posted_.empty();
    if (first && running() == this) return make_ready(node), true;
    posted_.push(node);
    // Only the first of many pays for a system call. Under the lock: once it is released the node
    // may run, and the reactor be gone.
    if (first) wake();
    return true;
  }

  /// Takes `node` back, if it was posted and has not run. Linear in what waits.
  void withdraw(ready_node& node) noexcept {
    const std::lock_guard lock(posted_mutex_);
    if (!posted_.remove(node)) remove_ready(node);
  }

  /// Runs `t` until the run ends, for the reactor itself. It must not throw.
  void serve(task<> t) { services_.spawn(std::move(t)); }

  /// The time from the first turn of a reactor to its last. At its end everything that waits for
  /// the reactor's own sake is cancelled, and nothing is left in the kernel.
  class session {
   public:
    explicit session(reactor& r) : reactor_(r), running_(r) {
      r.owner_.check();
      r.serve(r.wait_for_posts());
      r.let_post(true);
    }
    session(const session&) = delete;
    session& operator=(const session&) = delete;
    ~session() {
      reactor_.services_.cancel();
      while (!reactor_.services_.all_ended()) reactor_.turn();
      reactor_.let_post(false);
      reactor_.make_ready(reactor_.posted_);
      reactor_.drop_ready();
      reactor_.stop_multishots();
      while (reactor_.has_multishots()) reactor_.turn();
      if (reactor_.in_flight_ != 0)
        detail::fatal(
            "a run has ended while a coroutine that is in no scope still waited in the kernel");
      if (reactor_.elsewhere_ != 0 || reactor_.deadlines().size() != 0)
        detail::fatal(
            "a run has ended while a coroutine that is in no scope still waited for a timer or another thread");
      reactor_.keep_undelivered();
    }

   private:
    reactor& reactor_;
    running_here running_;
  };

  /// Waits for one of `wanted` (signal n is bit n - 1) where signals are not the process's.
  virtual std::optional<task<int>> own_signals([[maybe_unused]] std::uint64_t wanted) {
    return std::nullopt;
  }

  // --- for a run ---

  /// What this reactor runs for, from the beginning to the end of that; null outside.
  void runs_for(root* main) noexcept { main_ = main; }
  bool runs_for_something() const noexcept { return main_ != nullptr; }

  /// Counts the waits that end by a post from another thread, which must find this reactor alive.
  void waits_elsewhere() noexcept { ++elsewhere_; }
  void waited_elsewhere() noexcept { --elsewhere_; }

  /// Something that is in no scope has thrown `why`: the run ends with it.
  void failed(std::exception_ptr why) noexcept {
    if (!failure_) failure_ = std::move(why);
    if (main_ != nullptr) main_->cancel();
  }
  void rethrow_failure() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  // --- for operations ---

  syscalls& system() noexcept { return calls_; }
  const syscalls& system() const noexcept { return calls_; }

  /// Begins `op`. True when it ended at once.
  bool start(operation& op) noexcept {
    check_runs_here();
    if (op.at_ == nullptr && !is_plain(op) && ends_at_once(op)) return true;
    if (is_reader(op)) op.at_->reader = &op;
    if (is_writer(op)) op.at_->writer = &op;
    ++in_flight_;
    ++submitted_;
    if (!submit(op)) return false;
    release(op);
    return true;
  }

  /// Makes the call of `op` when it is worth trying and no rule stands against it. True when it has
  /// taken its last answer, and need not begin; false to begin it.
  bool does_at_once(operation& op) noexcept {
    check_runs_here();
    if (!is_plain(op) || !worth_a_call(op) || !spend_inline_completion()) return false;
    if (call(op) != progress::ended) return false;
    ++submitted_;
    return true;
  }

  /// `op`, which the backend has made ready, has its turn. True when it has ended, and its coroutine
  /// is to be resumed. If it was asked to stop after it had been made ready, its result came first.
  bool ends_in_turn(operation& op) noexcept {
    op.has_turn_ = false;
    if (!op.at_->is_awaited_by(op) || op.at_->closing) return was_stopped(op), false;
    const progress made = call(op);
    if (made != progress::ended) {
      if (op.stop_requested_) return was_stopped(op), false;
      if (!go_on(op, made)) return false;
    }
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
  std::uint32_t life_of(int fd) {
    const descriptor* d = descriptors_.find(fd);
    return d == nullptr ? 0 : d->life;
  }

  /// A buffer to receive into; a private one when those of the reactor are all in use. Null when
  /// there is no memory.
  detail::buffer* take_buffer() noexcept {
    detail::buffer_pool* pool = buffers();
    detail::buffer* taken = pool == nullptr ? nullptr : pool->take();
    return taken != nullptr ? taken : detail::buffer::make_private();
  }

  // --- for streams ---

  /// Takes over the descriptor of a new stream.
  void own(int fd, bool tcp) {
    descriptor* d = descriptors_.find(fd);
    if (d == nullptr) return;
    forsake_waiters(*d);
    detail::undelivered::take(fd);  // of one that had this number
    d->renew(true, tcp);
  }

  /// What closing does to the socket itself, which other processes may share.
  enum class closing { everywhere, here };

  /// Closes `fd`. While an operation is pending on it the operation fails with
  /// std::errc::operation_canceled, and the number stays taken until that has ended; a connection
  /// is shut down at once all the same.
  void close(int fd, closing reach = closing::everywhere) noexcept {
    descriptor* d = descriptors_.known(fd);
    if (d != nullptr) d->received.clear();
    detail::undelivered::take(fd);
    if (d == nullptr || d->idle()) {
      if (d != nullptr) d->renew(false, false);
      calls_.close(fd);
      return;
    }
    d->closing = true;
    if (reach == closing::everywhere) calls_.shutdown(fd, SHUT_RDWR);
    if (d->multishot) stop_multishot(*d);
    operation* const writer = d->writer;  // cancelling the last one renews the entry
    if (d->reader != nullptr) cancel(*d->reader);
    if (writer != nullptr && d->writer == writer) cancel(*writer);
  }

 protected:
  explicit reactor(syscalls& calls = syscalls::kernel())
      : reactor(calls, clock::time_point(std::chrono::steady_clock::now().time_since_epoch())) {}
  /// For a clock of its own, which reads `start` now.
  reactor(syscalls& calls, clock::time_point start)
      : loop(start),
        // A reactor on the kernel has calls of its own, which it counts.
        calls_(&calls == &syscalls::kernel() ? own_calls_ : calls),
        descriptors_(calls_) {
    const int made = calls_.eventfd();
    if (made < 0) detail::throw_system_error({-made, std::system_category()}, "coax: eventfd");
    wake_fd_.reset(made);
    descriptors_.find(made);  // there is memory for it now, or there is no reactor
  }

  /// Makes the reactor, and its system calls, this thread's for as long as the guard lives.
  class running_here {
   public:
    explicit running_here(reactor& r) noexcept : loop_(r), calls_(r.calls_) {}

   private:
    loop::running_here loop_;
    syscalls::current_here calls_;
  };

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

  /// Whether the call of `op` may well succeed now, and costs less than to ask the kernel.
  virtual bool worth_a_call([[maybe_unused]] const operation& op) noexcept { return false; }
  /// Asks the kernel. True when `op` has taken its last answer already; else `ended` or
  /// `was_stopped` follows.
  virtual bool submit(operation& op) noexcept = 0;
  /// Asks the kernel to give `op` up. `ended` or `was_stopped` follows.
  virtual void cancel(operation& op) noexcept = 0;
  /// What is to become of `op`, which the backend had made ready, and whose calls have not ended it.
  /// True when it has taken its last answer after all.
  virtual bool go_on([[maybe_unused]] operation& op, [[maybe_unused]] progress made) noexcept {
    return false;
  }
  /// Submits everything and waits until something has ended or `deadline` has passed; without one,
  /// for ever. Resumes nothing: what ends becomes ready.
  virtual void poll(std::optional<clock::time_point> deadline) noexcept = 0;
  /// The entry of a descriptor that nobody waits on any more is about to be closed or forgotten.
  virtual void forget(descriptor&) noexcept {}
  /// Asks the kernel to end the multishot receive of a descriptor. `multishot_ended` follows.
  virtual void stop_multishot(descriptor&) noexcept {}
  /// Whether one is in the kernel, be it of a descriptor that is gone.
  virtual bool has_multishots() const noexcept { return false; }

  // --- what a backend reports ---

  /// `rough_now` for a reactor on the kernel's clock.
  static clock::time_point coarse_clock() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    constexpr std::chrono::milliseconds tick_max(10);  // it is behind by at most this
    return clock::time_point(std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec) +
                             tick_max);
  }

  /// Before the thread sleeps until `deadline`: looks again and again whether `there` is something
  /// to do, for as long as it was told to. True when there is.
  template <class There>
  bool spin(std::optional<clock::time_point> deadline, There&& there) noexcept {
    if (spin_ <= clock::duration::zero() || deadline == clock::time_point::min()) return false;
    clock::time_point until = timeout(spin_).after(now());
    if (deadline) until = std::min(until, *deadline);
    while (!there())
      if (now() >= until) return false;
    return true;
  }

  /// Passes an answer of the kernel to `op`. True when that ended it; false to do it again.
  static bool take(operation& op, int answer) noexcept {
    if (answer > 0 && !op.at_->closing) return op.take(answer);
    return take_end(op, answer);
  }

  /// The kernel says only once by which error a connection was lost, and then shows an end. Who
  /// reads must not take that for the peer's, although it was a write that was told.
  static int end_of(const descriptor& d) noexcept { return -d.lost; }

  /// `op` has taken its last answer.
  void ended(operation& op) noexcept {
    release(op);
    op.complete();
  }

  /// `op` ended without an answer, because it was asked to, or because its descriptor was closed.
  void was_stopped(operation& op) noexcept {
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
    if (!buffers_) buffers_.reset(detail::buffer_pool::make());
    return buffers_.get();
  }

  static bool is_writer(const operation& op) noexcept {
    return (op.waits_for() & interest::writable) != 0;
  }
  /// Whoever does not wait for writing counts as a reader: urgent data and hang-ups are news from
  /// the peer.
  static bool is_reader(const operation& op) noexcept {
    return (op.waits_for() & ~interest::writable) != 0 || !is_writer(op);
  }

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
    if (side_taken(*d, op)) return false;
    op.at_ = d;
    return true;
  }

  static bool side_taken(const descriptor& d, const operation& op) noexcept {
    return (is_reader(op) && d.reader != nullptr) || (is_writer(op) && d.writer != nullptr);
  }

  /// Whether `op` is refused, or finds its result with the descriptor. Also gets ready what must be
  /// before the first operation of a descriptor.
  [[gnu::noinline]] bool ends_at_once(operation& op) noexcept {
    if (detail::caught([&] { op.at_ = descriptors_.find(op.fd()); }))
      return op.result_ = -ENOMEM, true;
    descriptor* const d = op.at_;
    if (d == nullptr || d->closing) return op.result_ = -EBADF, true;
    if (side_taken(*d, op)) return op.result_ = -EBUSY, true;
    if (op.watched_as() != watching::stream) return false;
    if (!d->owned) take_over(*d);  // it was made on a reactor that is gone
    if ((is_reader(op) && d->read_cut) || (is_writer(op) && d->write_cut))
      return op.result_ = operation::cut_before, true;
    return is_reader(op) && !d->received.empty() && op.take_received(d->received);
  }

  /// Takes an answer that is not merely so many bytes.
  static bool take_end(operation& op, int answer) noexcept {
    if (answer <= 0) answer = told_again(op, answer);
    if (!op.at_->closing) return op.take(answer);
    // To read nothing may be the work of the shutdown.
    const bool is_result = answer > 0 || (answer == 0 && op.zero_is_a_result());
    return op.take(is_result ? answer : -ECANCELED) || op.take(-ECANCELED);
  }

  static int told_again(const operation& op, int answer) noexcept {
    if (op.watched_as() != watching::stream) return answer;
    descriptor& d = *op.at_;
    switch (-answer) {
      case 0:
        return end_of(d);
      case ECONNRESET:
      case ETIMEDOUT:
      case EHOSTUNREACH:
      case ENETUNREACH:
        d.lost = static_cast<std::uint8_t>(-answer) & 0x7f;
        return answer;
      default:
        return answer;
    }
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
    if ((d.owned && !d.closing) || !d.idle()) return;
    // Also before it is closed: another process may keep the same socket open, and the kernel
    // would go on to report it.
    if (!d.owned) forget(d);
    if (d.closing) {
      const int fd = d.fd;
      d.renew(false, false);
      calls_.close(fd);
    }
  }

  static void take_over(descriptor& d) noexcept {
    if (d.idle()) {
      d.renew(true, false);
    } else {
      // Somebody waits on it as on a borrowed one, and must be woken all the same.
      d.owned = true;
      d.ready = descriptor::unknown;
    }
    d.received = detail::undelivered::take(d.fd);
  }

  /// Somebody closed a borrowed descriptor under a pending wait, and its number came back as a new
  /// stream.
  void forsake_waiters(descriptor& d) noexcept {
    operation* const writer = d.writer;
    if (d.reader != nullptr) cancel(*d.reader);
    if (writer != nullptr && d.writer == writer) cancel(*writer);
    if (d.multishot) stop_multishot(d);
    d.reader = d.writer = nullptr;
  }

  void stop_multishots() noexcept {
    if (!has_multishots()) return;
    descriptors_.for_each([this](descriptor& d) {
      if (d.multishot) stop_multishot(d);
    });
  }

  /// Takes in what other threads have posted.
  task<> wait_for_posts() {
    while (true) {
      auto woken = co_await operations::poll(wake_fd_.get(), POLLIN);
      if (!woken) detail::fatal("a reactor cannot wait for its own wake-up");
      std::uint64_t count = 0;
      // Read before the queue is looked at: what is posted after that wakes it again.
      calls_.read(wake_fd_.get(), &count, sizeof(count));
      const std::lock_guard lock(posted_mutex_);
      make_ready(posted_);
    }
  }

  void let_post(bool open) noexcept {
    const std::lock_guard lock(posted_mutex_);
    posts_closed_ = !open;
  }

  void keep_undelivered() noexcept {
    if (!buffers_) return;
    descriptors_.for_each([](descriptor& d) {
      if (!d.received.empty()) detail::undelivered::keep(d.fd, std::move(d.received));
    });
  }

  struct abandoned {
    void operator()(detail::buffer_pool* pool) const noexcept { pool->abandon(); }
  };

  syscalls own_calls_;
  syscalls& calls_;
  unique_fd wake_fd_;
  std::unique_ptr<detail::buffer_pool, abandoned> buffers_;
  descriptor_table descriptors_;  // after the buffers: what was received goes back to them
  std::size_t in_flight_ = 0;
  std::uint64_t submitted_ = 0;
  std::uint64_t cancelled_ = 0;
  std::size_t elsewhere_ = 0;
  clock::duration spin_{0};
  bool short_read_is_all_ = true;
  std::string fallback_reason_;
  detail::services services_;
  detail::owner owner_;
  root* main_ = nullptr;
  std::exception_ptr failure_;
  std::mutex posted_mutex_;
  ready_queue posted_;
  bool posts_closed_ = false;
};

inline bool operation::start() noexcept { return reactor::current().start(*this); }
inline bool operation::done_at_once(const coax::root& awaiting) noexcept {
  must_be_new();
  if (awaiting.stopping() || !reactor::current().does_at_once(*this)) return false;
  completed_at_once();
  return true;
}
inline void operation::stop() noexcept { reactor::current().stop(*this); }
inline void operation::run() noexcept {
  if (!has_turn_) return resume();
  if (reactor::current().ends_in_turn(*this)) complete_in_turn();
}

}  // namespace coax::inline COAX_ABI
