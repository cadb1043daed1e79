#pragma once

#include <coax/config.hpp>

#if !defined(COAX_WITHOUT_URING)

#include <coax/io/completion_reactor.hpp>
#include <coax/io/provided_buffers.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/thread_sanitizer.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>

#include <liburing.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

namespace coax::inline COAX_ABI {

/// The reactor over io_uring(7): one ring, used by one thread, one system call a turn.
///
/// Only the final completion of an operation ends it; asking to cancel one merely makes that come
/// sooner. An answer of -EAGAIN (a descriptor in non-blocking mode) is followed by a poll in the
/// ring and another try.
class uring_reactor final : public completion_reactor {
 public:
  static constexpr unsigned setup_flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                          IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL |
                                          IORING_SETUP_CLAMP;

  /// Sets up a ring of `entries` submissions, at least 1.
  ///
  /// Errors    std::system_error as io_uring_queue_init_params(3): EPERM or ENOSYS where io_uring
  ///           is refused or unknown, EINVAL before Linux 6.1, ENOMEM when locked memory is short.
  explicit uring_reactor(unsigned entries, syscalls& calls = syscalls::kernel())
      : completion_reactor(calls) {
    if (const int failed = set_up(entries); failed < 0)
      detail::throw_system_error(detail::error_of(failed), "coax: io_uring_setup");
  }
  /// The same, but says in `failed` why there is no ring; it is then not to be used.
  uring_reactor(unsigned entries, std::error_code& failed) {
    if (const int answer = set_up(entries); answer < 0) failed = detail::error_of(answer);
  }
  ~uring_reactor() override {
    if (!is_set_up_) return;
    detail::ring_memory::about_to_be_unmapped();
    io_uring_queue_exit(&ring_);
  }

  std::string_view backend() const noexcept override { return "io_uring"; }

 private:
  static constexpr unsigned completions_per_entry = 4;
  static constexpr std::uint64_t of_alarm = 2;  // no operation is there
  static constexpr unsigned entries_max =
      1 << 14;  // more, and the kernel has no room for the completions
  // Up to so many completions in a turn count as few: see operation::first_try.
  static constexpr unsigned few = 1;

  // The pauses of an operation: from 1 ms, and doubling as long as they are in vain, to 256 ms.
  static constexpr std::uint8_t pauses_first = 1;
  static constexpr std::uint8_t pauses_max = 9;
  static constexpr std::array<__kernel_timespec, pauses_max + 1> pauses() noexcept {
    std::array<__kernel_timespec, pauses_max + 1> all{};
    for (int i = pauses_first; i <= pauses_max; ++i)
      all[static_cast<std::size_t>(i)].tv_nsec = 1'000'000LL << (i - pauses_first);
    return all;
  }

  /// Result    0 or -errno.
  int set_up(unsigned entries) noexcept {
    io_uring_params params{};
    params.flags = setup_flags | IORING_SETUP_CQSIZE;
    entries = std::min(entries, entries_max);
    params.cq_entries = entries * completions_per_entry;
    const int answer = io_uring_queue_init_params(entries, &ring_, &params);
    is_set_up_ = answer >= 0;
    if (!is_set_up_) return answer;
    detail::ring_memory::mapped();
    io_uring_register_ring_fd(&ring_);  // saves a look-up a turn; works without
    return answer;
  }

  bool submit(operation& op) noexcept override {
    if (served_by_multishot(op)) return false;
    if (calls_first(op) && call(op) == progress::ended) return true;
    put_into_kernel(op);
    return false;
  }

  /// Whether to make the call before the ring is asked. Of those that want it only where little is ready, one
  /// in a turn does: who has more to send is served by the ring.
  bool calls_first(const operation& op) noexcept {
    const operation::first_try when = op.tries_first();
    if (when != operation::first_try::when_few) return when == operation::first_try::always;
    if (completions_ > few || one_called_ || kernel_has_work()) return false;
    one_called_ = true;
    return true;
  }

  void cancel(operation& op) noexcept override {
    if (left_multishot(op)) return given_up(op);
    if (backlog_.remove(op)) return given_up(op);  // the kernel has not seen it
    queue_cancellation(op);
  }
  void may_be_ready(operation& op) noexcept override {
    if (!op.polling_) return;
    if (!backlog_.remove(op)) return queue_cancellation(op);
    op.polling_ = false;
    backlog_.push(op);
  }

  void poll(std::optional<clock::time_point> deadline) noexcept override {
    queue_backlog();
    if (provided_.is_open()) provided_.top_up();
    // What is still in line may be the very thing that ends the wait.
    const bool must_not_wait = !backlog_.empty() || !cancellations_.empty() || !stops_.empty() ||
                               deadline == clock::time_point::min() || !set_alarm(deadline);
    int entered = 0;
    if (!must_not_wait && found_by_spinning(deadline)) {
      if (kernel_has_work()) entered = system().ring_submit(ring_);
    } else if (!must_not_wait) {
      entered = system().ring_submit_and_wait(ring_);
      // Interrupted, perhaps by a stop of the process: what has come meanwhile is not there yet.
      if (io_uring_cq_ready(&ring_) == 0 && kernel_has_work()) {
        check(entered);
        entered = system().ring_submit(ring_);
      }
    } else if (io_uring_sq_ready(&ring_) != 0 || kernel_has_work()) {
      // Completions appear only when the ring is entered: looking at it would starve them.
      entered = system().ring_submit(ring_);
    }
    check(entered);
    reap();
    queue_backlog();
  }

  /// The kernel hands out some 20 at a time, and says when it has more.
  void look_again() noexcept override {
    constexpr std::size_t at_a_time = 16;
    for (std::size_t left = 2 + (in_flight() + multishots()) / at_a_time; left > 0; --left) {
      poll(clock::time_point::min());
      if (!kernel_has_work()) return;
    }
  }

  /// EINTR is a signal, ETIME the end of a wait that was limited; EAGAIN, EBUSY and ENOMEM say that completions
  /// must be reaped, or memory be free, before more is taken: what was not submitted stays queued for the next
  /// turn.
  static void check(int entered) noexcept {
    switch (-entered) {
      case EINTR:
      case EAGAIN:
      case EBUSY:
      case ENOMEM:
      case ETIME:
        return;
      case EBADR:
        detail::fatal("io_uring has lost completions: the kernel had no memory to keep them");
      default:
        if (entered < 0) fatal_no_wait("io_uring_enter", -entered);
    }
  }

  /// Sees to it that a wait ends at `deadline`. False when there is no room in the ring to say so.
  bool set_alarm(std::optional<clock::time_point> deadline) noexcept {
    if (!needs_alarm(deadline)) return true;
    io_uring_sqe* sqe = free_entry();
    if (sqe == nullptr) return false;
    alarm_time_ = alarm_time<__kernel_timespec>(*deadline);
    if (has_alarm()) {
      io_uring_prep_timeout_update(sqe, &alarm_time_, of_alarm, IORING_TIMEOUT_ABS);
      io_uring_sqe_set_data(sqe, nullptr);
    } else {
      io_uring_prep_timeout(sqe, &alarm_time_, 0, IORING_TIMEOUT_ABS);
      io_uring_sqe_set_data64(sqe, of_alarm);
    }
    alarm_is_set(*deadline);
    return true;
  }

  /// Looks at what the kernel shows without being called.
  bool found_by_spinning(std::optional<clock::time_point> deadline) noexcept {
    return spin(deadline, [this] {
      if (io_uring_sq_ready(&ring_) != 0) check(system().ring_submit(ring_));
      return io_uring_cq_ready(&ring_) != 0 || kernel_has_work();
    });
  }

  bool kernel_has_work() const noexcept {
    constexpr unsigned pending = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
    return (__atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED) & pending) != 0;
  }

  void reap() noexcept {
    const unsigned count = io_uring_cq_ready(&ring_);
    const unsigned head = *ring_.cq.khead;
    for (unsigned i = head; i != head + count; ++i) {
      const io_uring_cqe& cqe = ring_.cq.cqes[i & ring_.cq.ring_mask];
      const auto data = io_uring_cqe_get_data64(&cqe);
      if ((data & of_multishot) != 0)
        delivered(data, cqe.res, buffer_of(cqe), (cqe.flags & IORING_CQE_F_MORE) == 0);
      else if (data > of_alarm)
        completed(*static_cast<operation*>(io_uring_cqe_get_data(&cqe)), cqe.res);
      else if (data == of_alarm)
        alarm_went_off();
    }
    io_uring_cq_advance(&ring_, count);
    completions_ = count;
    one_called_ = false;
  }

  void completed(operation& op, int answer) noexcept {
    if (op.polling_ || answer < 0) return has_not_succeeded(op, answer);
    if (take(op, answer)) return finish(op);
    if (op.pauses_ > pauses_first) op.pauses_ = pauses_first;  // it gets on
    do_again(op);
  }
  [[gnu::noinline]] void has_not_succeeded(operation& op, int answer) noexcept {
    drop_cancellation(op);  // it has ended; what is asked next, if anything, is another thing
    if (op.polling_) {
      op.polling_ = false;
      // A poll also ends for a half-close, as often as it is asked, while a full socket is not ready at all.
      const bool ended_too_soon = answer >= 0 && (answer & op.waits_for()) == 0;
      if (ended_too_soon && op.pauses_ == 0) op.pauses_ = pauses_first;
      if (answer == -ETIME && op.pauses_ < pauses_max) ++op.pauses_;
      // It may be ready, the pause is over, or somebody knows better: ask for the thing itself.
      if (answer >= 0 || answer == -ETIME || (answer == -ECANCELED && !is_given_up(op)))
        answer = -EINTR;
    } else if (answer == -EAGAIN) {
      op.polling_ = !op.stop_requested_;
      answer = -EINTR;
    }
    if (answer == -ECANCELED && is_given_up(op)) return finish_stopped(op);
    if (answer != -EINTR && take(op, answer)) return finish(op);
    do_again(op);
  }
  /// Also where its number stands for something else by now.
  static bool is_given_up(const operation& op) noexcept {
    return op.stop_requested_ || op.at_->closing || !op.at_->is_awaited_by(op);
  }
  /// A request to stop that came between two steps wins.
  [[gnu::noinline]] void do_again(operation& op) noexcept {
    if (is_given_up(op)) return finish_stopped(op);
    queue(op);
  }
  void finish(operation& op) noexcept {
    drop_cancellation(op);
    ended(op);
  }
  void finish_stopped(operation& op) noexcept {
    op.polling_ = false;
    drop_cancellation(op);
    given_up(op);
  }

  // --- multishot receives ---

  bool arm_multishot(const descriptor& d) noexcept override {
    if (!may_arm()) return false;
    io_uring_sqe* sqe = free_entry();
    if (sqe == nullptr) return false;
    detail::prepare_multishot_recv(*sqe, d.fd);
    io_uring_sqe_set_data64(sqe, key_of(d));
    return true;
  }

  /// Whether a multishot receive would find a buffer, and can be stopped whatever happens.
  bool may_arm() noexcept {
    if (!provided_.is_open()) {
      if (cannot_provide_ || buffers() == nullptr) return false;
      cannot_provide_ = provided_.open(ring_, *buffers()) < 0;
      if (cannot_provide_) return false;
    }
    provided_.top_up();
    if (provided_.is_dry()) return false;
    if (multishots() < stops_.capacity()) return true;
    return !detail::caught([this] { stops_.reserve(multishots() * 2 + 64); });
  }

  /// The buffer that came with a completion, or null.
  detail::buffer* buffer_of(const io_uring_cqe& cqe) noexcept {
    if ((cqe.flags & IORING_CQE_F_BUFFER) == 0) return nullptr;
    return &provided_.taken(static_cast<std::uint16_t>(cqe.flags >> IORING_CQE_BUFFER_SHIFT));
  }

  void cancel_multishot(std::uint64_t key) noexcept override {
    stops_.push_back(key);  // it has the room: see may_arm
    queue_cancellations();
  }
  /// The ring is entered for the cancellation, and once more for what has come of it.
  void hurry_multishot_end(const descriptor& d) noexcept override {
    for (int left = 4; left > 0 && d.multishot; --left) {
      check(system().ring_submit(ring_));
      reap();
    }
  }
  void buffers_ran_dry() noexcept override { provided_.ran_dry(); }

  // --- the submission queue ---

  /// Puts `op` into the ring, or into the backlog when that is full.
  void put_into_kernel(operation& op) noexcept override {
    io_uring_sqe* sqe = free_entry();
    if (sqe == nullptr) return backlog_.push(op);
    if (!op.polling_)
      op.prepare(*sqe);
    else if (op.pauses_ != 0)
      io_uring_prep_timeout(sqe, &pauses_[op.pauses_], 0, 0);
    else
      io_uring_prep_poll_add(sqe, op.fd(), static_cast<std::uint16_t>(op.waits_for()));
    io_uring_sqe_set_data(sqe, &op);
  }

  io_uring_sqe* free_entry() noexcept {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    return sqe != nullptr ? sqe : entry_made_free();
  }
  [[gnu::noinline, gnu::cold]] io_uring_sqe* entry_made_free() noexcept {
    system().ring_submit(ring_);
    return io_uring_get_sqe(&ring_);  // null when the kernel wants completions reaped first
  }

  void queue_backlog() noexcept {
    // There are none as a rule, and this runs twice a turn.
    if (!stops_.empty() || !cancellations_.empty()) queue_cancellations();
    for (std::size_t left = backlog_.size(); left > 0 && io_uring_sq_space_left(&ring_) > 0; --left)
      queue(static_cast<operation&>(*backlog_.pop()));
  }

  void queue_cancellations() noexcept {
    while (!stops_.empty()) {
      io_uring_sqe* sqe = free_entry();
      if (sqe == nullptr) return;
      io_uring_prep_cancel64(sqe, stops_.back(), 0);
      io_uring_sqe_set_data(sqe, nullptr);
      stops_.pop_back();
    }
    while (!cancellations_.empty()) {
      io_uring_sqe* sqe = free_entry();
      if (sqe == nullptr) return;
      auto& op = static_cast<operation&>(*cancellations_.pop());
      op.cancel_queued_ = false;
      io_uring_prep_cancel(sqe, &op, 0);
      io_uring_sqe_set_data(sqe, nullptr);  // what it says, the operation's completion says too
    }
  }

  [[gnu::noinline]] void queue_cancellation(operation& op) noexcept {
    if (op.cancel_queued_) return;
    op.cancel_queued_ = true;
    cancellations_.push(op);
    queue_cancellations();
  }
  void drop_cancellation(operation& op) noexcept {
    if (!op.cancel_queued_) return;
    op.cancel_queued_ = false;
    cancellations_.remove(op);
  }

  io_uring ring_{};
  bool is_set_up_ = false;
  __kernel_timespec
      alarm_time_{};  // which the kernel reads as it takes the submission, as it does these
  std::array<__kernel_timespec, pauses_max + 1> pauses_ = pauses();
  detail::provided_buffers provided_;
  bool cannot_provide_ = false;
  unsigned completions_ = 0;          // in this turn
  bool one_called_ = false;           // in this turn, by `calls_first`
  std::vector<std::uint64_t> stops_;  // multishot receives that are to be cancelled
  // What the ring had no room for: operations, and cancellations of operations. Bounded, for they
  // live in their frames.
  ready_queue backlog_;
  ready_queue cancellations_;
};

}  // namespace coax::inline COAX_ABI

#endif
