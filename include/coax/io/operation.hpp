#pragma once

#include <coax/config.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/task/result.hpp>
#include <coax/task/root.hpp>

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <system_error>

struct io_uring_sqe;

namespace coax::inline COAX_ABI {

struct descriptor;
class inbox;

/// What makes trying an operation worth while: poll(2) events.
namespace interest {
inline constexpr short readable = POLLIN;
inline constexpr short writable = POLLOUT;
}  // namespace interest

/// How the reactor may watch the descriptor of an operation.
enum class watching : std::uint8_t {
  stream,    ///< ours alone: registered once, readiness is remembered
  borrowed,  ///< may be closed and its number reused behind our back: registered for each wait
  shared,  ///< a listener that other processes accept from too: interest only while somebody waits
};

/// One thing asked of the kernel, which describes itself: a reactor needs to know no more of it
/// than this.
///
/// An operation lives in the frame of the coroutine that awaits it. Adding one means writing one
/// struct: how to fill a submission (`prepare`), how to call it without waiting (`perform`), and
/// what an answer means (`take`).
class operation : public waiter {
 public:
  int fd() const noexcept { return fd_; }
  short waits_for() const noexcept { return waits_for_; }
  watching watched_as() const noexcept { return watching_; }
  bool writes() const noexcept { return writes_; }
  /// Also one that waits for neither: urgent data and hang-ups come from the peer.
  bool reads() const noexcept { return reads_; }

  /// The name of the call, for a dump.
  virtual const char* name() const noexcept = 0;
  waiting_for describe() const noexcept final { return {name(), fd_}; }

  /// Completion form: fills the submission. What it points to stays as it is until the operation
  /// ends.
  virtual void prepare(io_uring_sqe& sqe) noexcept = 0;

  /// Readiness form: the call, without waiting. Result: as the system call, -EAGAIN if it would
  /// have to wait.
  virtual int perform(syscalls& calls) noexcept = 0;

  /// Takes an answer of either form. True when the operation is done, false to do it again.
  virtual bool take(int answer) noexcept {
    result_ = answer;
    return true;
  }

  /// Whether io_uring is to call `perform` before it queues a submission.
  enum class first_try : std::uint8_t {
    never,
    when_few,  ///< where it is a system call less: when little else is ready
    always,
  };
  virtual first_try tries_first() const noexcept { return first_try::never; }

  /// Whether the answer 0 is a result to be delivered also when the descriptor was closed meanwhile.
  virtual bool zero_is_a_result() const noexcept { return false; }

  /// Whether it is served best by a multishot receive of its descriptor. While there is one, every
  /// operation that reads a stream is served by it.
  virtual bool wants_multishot() const noexcept { return false; }

  /// Takes what came before, of which there is some. True when the operation is done.
  virtual bool take_received(inbox& from) noexcept {
    static_cast<void>(from);
    return false;
  }

  /// Told when it ends without its result, because it was asked to stop.
  virtual void cut_off() noexcept {}

  /// The last `perform` took all there was.
  bool drained() const noexcept { return drained_; }
  bool stop_requested() const noexcept { return stop_requested_; }

 protected:
  operation(int fd, short waits_for, watching how) noexcept
      : fd_(fd),
        watching_(how),
        writes_((waits_for & interest::writable) != 0),
        reads_((waits_for & ~interest::writable) != 0 || !writes_),
        waits_for_(waits_for) {}
  operation(const operation&) = default;
  ~operation() = default;

  /// -errno or one of coax::errc, negated and beyond errno, as an error code.
  static std::error_code error_of(int answer) noexcept {
    if (answer == cut_before) return errc::transfer_cut;
    return detail::error_of(answer);
  }
  static constexpr int cut_before = -100'000;
  static constexpr std::size_t bytes_max = 1U << 30;  // the answer of one call is an int
  static constexpr auto at_file_offset = ~0ULL;       // as the ring takes it

  // In the order that leaves no gap but one at the end, for what is derived: each connection that waits
  // holds an operation.
 private:
  int fd_;

 protected:
  int result_ = 0;
  descriptor* at_ = nullptr;  // its entry in the reactor's table, once started
  bool drained_ : 1 = false;
  // It has no room, or no bytes: its answer is 0, whatever the descriptor.
  bool asks_nothing_ : 1 = false;

 private:
  friend class io_loop;
  friend class readiness_reactor;
  friend class completion_reactor;
  friend class uring_reactor;

  bool start() noexcept final { return start_here(); }
  void stop() noexcept final { stop_here(); }
  // By the loop of this thread, and apart: a virtual function without a body would tie this class to
  // each file that includes it.
  bool start_here() noexcept;
  void stop_here() noexcept;

  watching watching_ : 2;
  bool writes_ : 1;
  bool reads_ : 1;
  bool stop_requested_ : 1 = false;
  bool in_line_ : 1 = false;  // readiness: it is among those whose call is to be made
  bool polling_ : 1 = false;  // io_uring: what is in the ring is a poll for `waits_for`
  // io_uring: that poll ends too soon, so it pauses in its stead, ever longer.
  std::uint8_t pauses_ : 4 = 0;
  bool cancel_queued_ : 1 = false;  // io_uring: a cancellation waits for room in the ring
  bool by_multishot_ : 1 = false;   // completion: the kernel does not have it, but serves it
  bool no_multishot_ : 1 = false;   // completion: that was tried
  short waits_for_;
};

/// Base of an operation that is awaited for a `result<T>`; `Derived::value(answer)` makes the
/// value.
template <class Derived, class T>
class basic_operation : public operation {
 public:
  [[nodiscard]] result<T> await_resume() noexcept {
    if (result_ < 0) return error_of(result_);
    return static_cast<Derived&>(*this).value(result_);
  }

 protected:
  basic_operation(const basic_operation&) = default;
  ~basic_operation() = default;
  explicit basic_operation(int fd, watching how) noexcept
      : operation(fd, Derived::waits_for, how) {}
  basic_operation(int fd, short waits_for, watching how) noexcept : operation(fd, waits_for, how) {}
};

}  // namespace coax::inline COAX_ABI
