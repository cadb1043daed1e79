#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/ready_queue.hpp>
#include <coax/task/timers.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ratio>
#include <utility>

namespace coax::inline COAX_ABI {

class root;
class waiter;

/// Roots that belong together, in the order they began: all that a loop runs, or those that one
/// wait is for. What a dump walks.
class root_list {
 public:
  root_list() = default;
  explicit root_list(waiter& of) noexcept : of_(&of) {}
  root_list(const root_list&) = delete;
  root_list& operator=(const root_list&) = delete;

  root* first() const noexcept { return first_; }
  bool empty() const noexcept { return first_ == nullptr; }

  /// The wait that these are the branches of; null for those of a loop.
  waiter* of() const noexcept { return of_; }

 private:
  friend class root;

  waiter* of_ = nullptr;
  root* first_ = nullptr;
  root* last_ = nullptr;
};

/// What tasks need from whatever runs them: a queue of what is ready, timers, and the time.
///
/// Nothing here knows of a file descriptor. A reactor is a loop that also waits for the kernel.
///
/// Thread    one: the thread that runs it.
class loop {
 public:
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  /// The loop that runs on this thread, or null.
  static loop* running() noexcept { return running_; }

  /// The loop that runs on this thread. Where none runs, the program ends with a message: to wait,
  /// a coroutine needs something that wakes it.
  static loop& current() noexcept {
    if (running_ == nullptr)
      detail::fatal(
          "no reactor runs on this thread (or only one of another copy of coax, in a shared object): await from a "
          "task started by coax::run");
    return *running_;
  }

  /// Puts `node` at the end of the queue.
  void make_ready(ready_node& node) noexcept {
    check_running();
    ready_.push(node);
  }

  /// Runs `node` right after the one that is running now: how a finished child hands over to its
  /// parent without a call, so that a chain of any length completes in constant stack.
  void run_next(ready_node& node) noexcept {
    if (next_ != nullptr || !dispatching_) return make_ready(node);
    next_ = &node;
  }

  timers& deadlines() noexcept { return timers_; }
  const timers& deadlines() const noexcept { return timers_; }
  /// Sets `t`. What has a limit begins to count first, so that ties fire in the order of setting.
  void set_timer(timer& t, clock::time_point deadline) noexcept {
    count_limits();
    timers_.set(t, deadline);
  }
  /// When to look at the timers again: see timers::look_by, timers::next.
  std::optional<clock::time_point> look_by() noexcept {
    count_limits();
    return timers_.look_by();
  }
  std::optional<clock::time_point> next_deadline() noexcept {
    count_limits();
    return timers_.next();
  }
  virtual clock::time_point now() const noexcept = 0;

  /// The roots that were started here and are not a branch of another.
  root_list& roots() noexcept { return roots_; }
  const root_list& roots() const noexcept { return roots_; }

  /// The root whose code runs now; null between two of them.
  coax::root* running_root() const noexcept { return running_root_; }
  void set_running_root(coax::root* r) noexcept { running_root_ = r; }

  /// When this turn began, in tenths of a second: what a wait remembers of its beginning. Four bytes
  /// of them last for 13 years.
  std::uint32_t turn_began() const noexcept { return turn_began_; }
  static std::uint32_t tenths(clock::time_point t) noexcept {
    using unit = std::chrono::duration<std::int64_t, std::deci>;
    return static_cast<std::uint32_t>(
        std::chrono::duration_cast<unit>(t.time_since_epoch()).count());
  }

  /// Waits for several roots that are being stopped, see detail::composite.
  ready_queue& stop_line() noexcept { return stop_line_; }

  /// What the loop has done so far.
  struct counters {
    std::uint64_t turns = 0;           ///< see reactor::turn
    std::size_t ready_high_water = 0;  ///< the longest that queue has been
    std::size_t roots = 0;             ///< that are alive
  };
  const counters& counted() const noexcept { return counted_; }
  counters& counted() noexcept { return counted_; }

  /// Tasks are started inside of the awaits that begin them only to a bounded depth of the stack.
  bool may_start_inline() const noexcept { return depth_ < inline_depth_max; }
  /// Runs `coroutine` up to its first wait.
  void start_inline(std::coroutine_handle<> coroutine) noexcept {
    const int outside = depth_;
    depth_ = outside + 1;
    coroutine.resume();
    depth_ = outside;
  }

  /// Each time it is resumed, a coroutine may complete only so many waits at once; beyond, it queues like
  /// everybody, so that a connection that always has data cannot keep the loop.
  bool spend_inline_completion() noexcept {
    if (inline_left_ <= 0) return false;
    --inline_left_;
    return true;
  }

  /// No other loop of this program has it; never 0.
  std::uint32_t number() const noexcept { return number_; }

 protected:
  explicit loop(clock::time_point start) noexcept : timers_(start) {}
  ~loop() = default;

  /// Counts one that costs more than others as so many.
  void spend_inline_completions(int count) noexcept {
    if (inline_left_ > 0) inline_left_ -= count;
  }

  bool has_ready() const noexcept { return !ready_.empty(); }
  void make_ready(ready_queue& nodes) noexcept { ready_.append(nodes); }
  /// Takes `node` out, whether it waits for this turn or the next.
  bool remove_ready(ready_node& node) noexcept {
    return ready_.remove(node) || put_off_.remove(node);
  }

  /// This loop is not going to turn again: tells so those that still wait for their turn.
  void drop_ready() noexcept { ready_.drop_all(); }

  void turn_begins() noexcept {
    turn_began_ = tenths(now());
    ++counted_.turns;
  }

  /// Runs what is ready now, at most a budget of it. The rest, and what becomes ready meanwhile, waits
  /// for the next turn.
  void run_ready() noexcept {
    const bool outer = std::exchange(dispatching_, true);
    if (ready_.size() > counted_.ready_high_water) counted_.ready_high_water = ready_.size();
    for (std::size_t left = ready_.size() < run_budget ? ready_.size() : run_budget; left > 0;
         --left) {
      for (ready_node* node = ready_.pop(); node != nullptr; node = std::exchange(next_, nullptr)) {
        inline_left_ = inline_completions_max;
        node->run();
        running_root_ = nullptr;
      }
    }
    dispatching_ = outer;
    put_off_.append(ready_);
  }

  /// What was put off is ready for the next turn.
  void turn_ends() noexcept { ready_.append(put_off_); }

  /// Fires the timers that are due; calls `look` before, if any may be. The clock is read only when a timer
  /// is set.
  template <class Look>
  void run_timers(Look&& look) noexcept {
    if (timers_.size() == 0) return;
    const clock::time_point time = now();
    timers_.count_from(time);
    if (timers_.may_be_due(time)) look();
    timers_.expire(time);
  }

  /// Makes a loop this thread's for as long as the guard lives.
  class running_here {
   public:
    explicit running_here(loop& l) noexcept : before_(std::exchange(running_, &l)) {}
    running_here(const running_here&) = delete;
    running_here& operator=(const running_here&) = delete;
    ~running_here() { running_ = before_; }

   private:
    loop* before_;
  };

 private:
  static constexpr int inline_depth_max = 64;
  static constexpr int inline_completions_max = 64;
  static constexpr std::size_t run_budget = 256;

  void count_limits() noexcept {
    if (timers_.has_uncounted()) timers_.count_from(now());
  }

  void check_running() const noexcept {
#ifndef NDEBUG
    if (running_ != this)
      detail::fatal("something was made ready on a loop that does not run on this thread");
#endif
  }

  static inline constinit thread_local loop* running_ = nullptr;
  static inline constinit std::atomic<std::uint32_t> numbered_{0};

  const std::uint32_t number_ = ++numbered_;

  ready_queue ready_;
  ready_queue put_off_;
  ready_queue stop_line_;
  ready_node* next_ = nullptr;
  coax::root* running_root_ = nullptr;
  root_list roots_;
  counters counted_;
  std::uint32_t turn_began_ = 0;
  bool dispatching_ = false;
  int depth_ = 0;
  int inline_left_ = inline_completions_max;
  timers timers_;
};

inline clock::time_point clock::now() noexcept {
  if (const loop* here = loop::running()) return here->now();
  return time_point(std::chrono::steady_clock::now().time_since_epoch());
}

/// The time now, by the clock of this thread's reactor.
inline clock::time_point now() noexcept { return clock::now(); }

}  // namespace coax::inline COAX_ABI
