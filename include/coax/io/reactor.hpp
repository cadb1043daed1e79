#pragma once

#include <coax/config.hpp>
#include <coax/io/io_loop.hpp>
#include <coax/io/operations/poll.hpp>
#include <coax/io/services.hpp>
#include <coax/io/signal_bits.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace coax::inline COAX_ABI {

/// A loop that waits for the kernel, and how other threads get in: what a program runs on.
///
/// Thread    one, but for `wake` and `post`.
class reactor : public io_loop {
 public:
  /// The reactor that runs on this thread; the program ends with a message where there is none.
  static reactor& current() noexcept { return static_cast<reactor&>(loop::current()); }

  virtual ~reactor() {
    posted_.drop_all();
    system().close(wake_fd_.release());
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
  void set_spin(timeout how_long) noexcept { spin_ = how_long; }
  timeout spins_for() const noexcept { return spin_; }

  clock::time_point now() const noexcept override {
    return clock::time_point(std::chrono::steady_clock::now().time_since_epoch());
  }

  /// One turn: waits for the kernel if nothing is ready; runs what is ready, and again while
  /// `make_calls` ends something; then fires the timers that are due. Completions come before timers, also
  /// those of a long turn, so that what has completed beats its timeout.
  void turn() noexcept {
    owner().check();
    const running_here guard(*this);
    poll(would_wait() ? look_by() : std::optional(clock::time_point::min()));
    turn_begins();
    bool ran = false;
    do {
      ran = ran || has_ready();
      run_ready();
    } while (make_calls());
    turn_ends();
    run_timers([&] {
      if (ran) look_again();
    });
  }

  /// True when the next turn waits for the kernel or a timer: all that can run has run.
  virtual bool would_wait() const noexcept { return !has_ready(); }

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
    owner().check_process();
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
      r.owner().check();
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
      if (reactor_.in_flight() != 0)
        detail::fatal(
            "a run has ended while a coroutine that is in no scope still waited in the kernel");
      if (reactor_.elsewhere_ != 0 || reactor_.deadlines().size() != 0)
        detail::fatal(
            "a run has ended while a coroutine that is in no scope still waited for a timer or another thread");
      reactor_.keep_undelivered();
      reactor_.spares().give_up();
    }

   private:
    reactor& reactor_;
    running_here running_;
  };

  /// Waits for one of `wanted` where signals are not the process's.
  virtual std::optional<task<int>> own_signals([[maybe_unused]] detail::signal_bits wanted) {
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
    if (failure_) detail::rethrow(std::exchange(failure_, nullptr));
  }

 protected:
  explicit reactor(syscalls& calls = syscalls::kernel())
      : reactor(calls, clock::time_point(std::chrono::steady_clock::now().time_since_epoch())) {}
  /// For a clock of its own, which reads `start` now.
  reactor(syscalls& calls, clock::time_point start) : io_loop(calls, start) {
    const int made = system().eventfd();
    if (made < 0) detail::throw_system_error(detail::error_of(made), "coax: eventfd");
    wake_fd_.reset(made);
    descriptors().find(made);  // there is memory for it now, or there is no reactor
  }

  /// Makes the reactor, and its system calls, this thread's for as long as the guard lives.
  class running_here {
   public:
    explicit running_here(reactor& r) noexcept : loop_(r), calls_(r.system()) {}

   private:
    loop::running_here loop_;
    syscalls::current_here calls_;
  };

  // --- the seam: what a backend does ---

  /// Submits everything and waits until something has ended or `deadline` has passed; without one,
  /// for ever. Resumes nothing: what ends becomes ready.
  virtual void poll(std::optional<clock::time_point> deadline) noexcept = 0;

  /// Takes in all that the kernel has completed by now, but not for ever what it completes meanwhile.
  /// Resumes nothing: what ends becomes ready. This is for a kernel that one look shows it all.
  virtual void look_again() noexcept { poll(clock::time_point::min()); }

  /// Makes calls that were kept until tasks had run. True to run tasks once more in this turn.
  virtual bool make_calls() noexcept { return false; }

  // --- for a backend ---

  /// Without waiting there is no going on, and to try for ever would burn the core.
  [[noreturn, gnu::cold]] static void fatal_no_wait(const char* call, int error) noexcept {
    std::fprintf(stderr, "coax: %s: %s\n", call, std::strerror(error));
    detail::fatal("the kernel does not let this reactor wait any more");
  }

  /// Whether the kernel's timer has to be set for `deadline`: only when that is sooner than what it is
  /// set for. Most deadlines are dropped before they come, and later ones follow; that the timer goes
  /// off for nothing now and then costs less.
  bool needs_alarm(std::optional<clock::time_point> deadline) const noexcept {
    return deadline && *deadline < alarm_;
  }
  bool has_alarm() const noexcept { return alarm_ != clock::time_point::max(); }
  void alarm_is_set(clock::time_point t) noexcept { alarm_ = t; }
  void alarm_went_off() noexcept { alarm_ = clock::time_point::max(); }
  /// As timerfd_settime(2) and io_uring_prep_timeout(3) take an absolute time; never 0.
  template <class Timespec>
  static Timespec alarm_time(clock::time_point t) noexcept {
    const clock::duration since = std::max(t.time_since_epoch(), clock::duration(1));
    const auto whole = std::chrono::duration_cast<std::chrono::seconds>(since);
    Timespec time{};
    time.tv_sec = static_cast<decltype(time.tv_sec)>(whole.count());
    time.tv_nsec = static_cast<decltype(time.tv_nsec)>((since - whole).count());
    return time;
  }

  /// Before the thread sleeps until `deadline`: looks again and again whether `there` is something
  /// to do, for as long as it was told to. True when there is.
  template <class There>
  bool spin(std::optional<clock::time_point> deadline, There&& there) noexcept {
    if (spin_.value() <= clock::duration::zero() || deadline == clock::time_point::min())
      return false;
    const clock::time_point until = spin_.after(now());
    while (!there())
      if (now() >= until) return false;
    return true;
  }

 private:
  /// Takes in what other threads have posted.
  task<> wait_for_posts() {
    while (true) {
      auto woken = co_await operations::poll(wake_fd_.get(), POLLIN);
      if (!woken) detail::fatal("a reactor cannot wait for its own wake-up");
      std::uint64_t count = 0;
      // Read before the queue is looked at: what is posted after that wakes it again.
      system().read(wake_fd_.get(), &count, sizeof(count));
      const std::lock_guard lock(posted_mutex_);
      make_ready(posted_);
    }
  }

  void let_post(bool open) noexcept {
    const std::lock_guard lock(posted_mutex_);
    posts_closed_ = !open;
  }

  unique_fd wake_fd_;
  clock::time_point alarm_ = clock::time_point::max();  // when the kernel's timer goes off
  timeout spin_ = clock::duration(0);
  std::string fallback_reason_;
  detail::services services_;
  std::size_t elsewhere_ = 0;
  root* main_ = nullptr;
  std::exception_ptr failure_;
  std::mutex posted_mutex_;
  ready_queue posted_;
  bool posts_closed_ = false;
};

}  // namespace coax::inline COAX_ABI
