#pragma once

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/locals.hpp>
#include <coax/task/location.hpp>
#include <coax/task/loop.hpp>

#include <coroutine>
#include <cstdint>
#include <source_location>
#include <type_traits>
#include <utility>

/// How waiting and cancelling work, in one place.
///
/// A **root** is a chain of tasks in which each awaits the next. It waits in at most one
/// **waiter**, which the innermost task awaits: an operation, a timer, a lock, or several roots at
/// once.
///
/// - `root::cancel()` marks the root and asks its waiter to stop. It never resumes or destroys
///   anything.
/// - Being asked ends in exactly one of `complete()` or `stopped()`, now or later.
/// - `complete()` makes the coroutine ready; from then on a cancel misses it, so that a result is
///   never lost.
/// - `stopped()` unwinds the root if the root is being cancelled. If it is not, the waiter was
///   stopped by what is around it (a timeout), and the coroutine is resumed to say so.
/// - Unwinding and resuming happen only from the ready queue.

namespace coax::inline COAX_ABI {

class promise_base;

namespace detail {

template <class Awaiter>
class foreign_awaiter;

/// The end of an await of a task: it lives in the parent's frame and owns the child's.
///
/// The child is started inside of that await. Should it also end in there, the await sees it, and nobody
/// is to be resumed for it: hence a mark, in the lowest bit of the parent's address, where it costs no
/// memory.
class task_link {
 public:
  promise_base* parent() const noexcept {
    return reinterpret_cast<promise_base*>(parent_and_mark_ & ~inside);
  }
  bool child_is_inside() const noexcept { return (parent_and_mark_ & inside) != 0; }

  std::coroutine_handle<> child;

 protected:
  static constexpr std::uintptr_t inside = 1;

  void awaited_by(promise_base& parent, std::uintptr_t mark) noexcept {
    parent_and_mark_ = reinterpret_cast<std::uintptr_t>(&parent) | mark;
  }
  void child_has_left() noexcept { parent_and_mark_ &= ~inside; }

 private:
  std::uintptr_t parent_and_mark_;  // once it is awaited
};

}  // namespace detail

/// What all promises of tasks have in common.
class promise_base {
 public:
  promise_base() = default;
  promise_base(const promise_base&) = delete;
  promise_base& operator=(const promise_base&) = delete;

  /// Where this coroutine awaits, or awaited last.
  std::source_location where() const noexcept { return detail::source_location_of(where_); }

  coax::root* root() const noexcept { return root_; }

  /// The task that awaits this one; null for the first of a root. It must have a root.
  const promise_base* awaited_by() const noexcept {
    return link_ == nullptr ? nullptr : link_->parent();
  }

 protected:
  template <class Awaiter>
  friend class detail::foreign_awaiter;

  ~promise_base() = default;

  /// Before the coroutine has a root, that says where this is: see detail::initial_awaiter.
  void say_where() noexcept { here_ = this; }
  bool is_where_it_said() noexcept {
    if (here_ != this) return false;
    root_ = nullptr;
    return true;
  }

  /// Its coroutine, found without asking whoever holds it: nothing but its own frame is touched. It is as
  /// far from here as from the promise that this is a base of, which detail::initial_awaiter makes sure of.
  std::coroutine_handle<> coroutine() noexcept {
    return std::coroutine_handle<promise_base>::from_promise(*this);
  }

  /// The coroutine has returned or thrown, and is suspended for good.
  inline void finished() noexcept;

  /// The coroutine was resumed by something that is not of coax.
  void resumed_by_others() const noexcept;

  /// The coroutine awaits something: if its chain is suspended now, this is the task that waits.
  void now_innermost() noexcept;

  detail::location where_ = nullptr;

 private:
  friend class root;
  template <class T>
  friend class task_awaiter;

  /// `finished`, where the loop has to go on with what is around it.
  void tell_loop() noexcept;

  union {
    coax::root* root_ = nullptr;
    const promise_base* here_;  // at first, see `say_where`
  };
  detail::task_link* link_;  // once it has a root; null: the first of it
};

static_assert(alignof(promise_base) > 1, "task_link marks its address");

/// What a coroutine waits for, in words a person reads in a dump: {"a mutex"}, {"recv", 7}.
struct waiting_for {
  const char* what;
  int fd = -1;  ///< the descriptor, where it is one
};

template <class P>
concept task_promise = std::is_base_of_v<promise_base, P>;

/// Base of everything a coroutine can wait for. Lives in the awaiting frame.
///
/// A derived class says how the wait begins (`start`) and how it is given up (`stop`), and calls
/// `complete` or `stopped` exactly once after `start` has returned false.
class waiter : public ready_node {
 public:
  waiter() = default;
  waiter(const waiter& other) noexcept : ready_node(other), starts_always_(other.starts_always_) {
    if (other.state_ != state::idle)
      detail::fatal("something that is being awaited was copied or moved");
  }
  waiter& operator=(const waiter&) = delete;

  bool await_ready() const noexcept { return false; }

  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) noexcept {
    if constexpr (task_promise<P>)
      return begin(coroutine, coroutine.promise().root());
    else
      return begin(coroutine, nullptr);  // of another library: in no scope, so nobody cancels it
  }

  /// Asks the wait to end without its result. Has no effect on one that has ended already.
  void request_stop() noexcept {
    if (state_ == state::waiting) stop();
  }

  /// True once the wait was given up because somebody asked.
  bool was_stopped() const noexcept { return state_ == state::stopped; }
  bool is_waiting() const noexcept { return state_ == state::waiting; }

  /// What it waits for. Allocates nothing.
  virtual waiting_for describe() const noexcept = 0;

  /// The roots it waits for, when it waits for roots.
  virtual const root_list* branches() const noexcept { return nullptr; }

  /// The turn in which it began to wait, in tenths of a second: see loop::turn_began.
  std::uint32_t since() const noexcept { return since_; }

  coax::root* root() const noexcept { return root_; }

 protected:
  /// A wait that starts even while its root is being cancelled: the roots it waits for inherit
  /// that, and end by themselves.
  struct starts_always {};
  explicit waiter(starts_always) noexcept : starts_always_(true) {}
  [[gnu::always_inline]] ~waiter() {
    if (state_ == state::waiting || queued_)
      detail::fatal("a coroutine was destroyed while it waited: cancel it, and let it unwind");
  }

  /// Takes the result if it is there without waiting. All that is tried while the root is being
  /// cancelled.
  virtual bool ready_now() noexcept { return false; }
  /// Begins; true when the result is there already.
  virtual bool start() noexcept = 0;
  virtual void stop() noexcept = 0;

  void complete() noexcept;
  void stopped() noexcept;

  /// Resumes the coroutine, whose wait has ended.
  void run() noexcept final {
    queued_ = false;
    loop::running()->set_running_root(root_);
    coroutine_.resume();
  }

 private:
  enum class state : std::uint8_t { idle, waiting, completed, stopped };

  /// True to suspend the coroutine.
  bool begin(std::coroutine_handle<> coroutine, coax::root* r) noexcept;
  void resume_later() noexcept {
    queued_ = true;
    loop::current().make_ready(*this);
  }
  void leave_root() noexcept;

  std::coroutine_handle<> coroutine_;
  coax::root* root_ = nullptr;
  state state_ = state::idle;
  bool starts_always_ = false;
  bool queued_ = false;
  std::uint32_t since_ = 0;
};

/// A chain of tasks, from the one that was spawned (or is a branch of a race) to the one that
/// waits.
///
/// Whoever owns the root owns the frame of its first task: see `destroy_first`.
class root : public ready_node {
 public:
  /// Asks the chain to unwind at its next wait. Idempotent.
  void cancel() noexcept {
    check_loop();
    if (cancelled_) return;
    cancelled_ = true;
    if (stopping() && waiter_ != nullptr) waiter_->request_stop();
  }

  bool cancelled() const noexcept { return cancelled_; }

  /// True when the next wait of the chain unwinds instead.
  bool stopping() const noexcept { return cancelled_ && shields_ == 0; }

  /// Between the two a request to cancel waits. They nest.
  void shield() noexcept {
    if (++shields_ == 0) detail::fatal("65,536 shields are nested");
  }
  void unshield() noexcept { --shields_; }

  /// The chain, which has suspended itself, goes on at the next turn, or unwinds then.
  void yield() noexcept {
    check_loop();
    if (stopping()) return unwind_later();
    resume_later();
  }

  // --- for a dump ---

  enum class phase : std::uint8_t { unstarted, waiting, resuming, unwinding, finished };

  phase current_phase() const noexcept { return phase_; }
  /// The innermost task of the chain, while it is suspended.
  const promise_base* innermost() const noexcept { return leaf_; }
  /// What the chain waits for; null when it is ready, or runs.
  const waiter* waits_for() const noexcept { return waiter_; }
  const root_list* list() const noexcept { return list_; }
  root* next() const noexcept { return after_; }

  /// What its task_local variables are; see task_local.
  detail::locals_reference& locals() noexcept { return locals_; }

 protected:
  root() = default;
  root(const root&) = delete;
  root& operator=(const root&) = delete;
  ~root() { leave(); }

  /// The first task, which `adopt` was given; null when it was unwound.
  template <class P>
  std::coroutine_handle<P> first() const noexcept {
    return std::coroutine_handle<P>::from_address(first_.address());
  }
  /// As part of the chain: what is destroyed with it finds its task_local variables.
  void destroy_first() noexcept {
    if (!first_) return;
    loop* const here = loop::running();
    root* const before = here == nullptr ? nullptr : here->running_root();
    if (here != nullptr) here->set_running_root(this);
    std::exchange(first_, nullptr).destroy();
    if (here != nullptr) here->set_running_root(before);
  }

  enum class outcome : std::uint8_t { finished, unwound };

  /// The first task has finished, and its frame still holds the result; or it was unwound, and its
  /// frame is gone. The root is in its list no more, but still knows which that was.
  virtual void ended(outcome how) noexcept = 0;

  /// Takes up the chain that begins with `first`, as one of `list`.
  template <class P>
  void adopt(std::coroutine_handle<P> first, root_list& list) noexcept {
    first_ = first;
    leaf_ = &first.promise();
    leaf_->root_ = this;
    leaf_->link_ = nullptr;
    loop& here = loop::current();
    if (list.of() != nullptr && list.of()->root() != nullptr) list.of()->root()->check_loop();
    join(list, here);
    const root* by = here.running_root();
    if (by == nullptr && list.of() != nullptr) by = list.of()->root();  // begun between two tasks
    if (by != nullptr) locals_ = by->locals_;
  }
  template <class P>
  void adopt(std::coroutine_handle<P> first) noexcept {
    adopt(first, loop::current().roots());
  }

  /// Starts at the next turn; cancelled before, it is destroyed without having run.
  void start_later() noexcept { loop::current().make_ready(*this); }

  /// Starts now, up to the first wait. True when it finished; `ended` is then not called.
  bool start_now() noexcept {
    loop& here = loop::current();
    if (!here.may_start_inline()) {
      resume_later();
      return false;
    }
    phase_ = phase::waiting;
    root* const starter = here.running_root();
    here.set_running_root(this);
    inside_ = true;
    here.start_inline(first_);
    inside_ = false;
    here.set_running_root(starter);
    if (!first_.done()) return false;
    leave();
    return true;
  }

 private:
  friend class waiter;
  friend class promise_base;
  template <class T>
  friend class task_awaiter;

  inline void run() noexcept final;
  void resume() noexcept;
  void unwind() noexcept;

  void join(root_list& list, loop& here) noexcept {
    list_ = &list;
    listed_ = true;
    before_ = list.last_;
    (before_ == nullptr ? list.first_ : before_->after_) = this;
    list.last_ = this;
    loop_ = here.number();
    ++here.counted().roots;
  }
  /// It has ended, or is destroyed before it has.
  void leave() noexcept {
    if (!listed_) return;
    listed_ = false;
    (before_ == nullptr ? list_->first_ : before_->after_) = after_;
    (after_ == nullptr ? list_->last_ : after_->before_) = before_;
    if (loop* const l = loop::running()) --l->counted().roots;
  }

  void check_loop() const noexcept {
#ifndef NDEBUG
    const loop* const here = loop::running();
    if (loop_ != 0 && (here == nullptr || loop_ != here->number()))
      detail::fatal(
          "a task was woken or cancelled from a thread that is not its reactor's: coax::post there what is to be done");
#endif
  }

  void unwind_later() noexcept {
    phase_ = phase::unwinding;
    loop::current().make_ready(*this);
  }
  void resume_later() noexcept {
    phase_ = phase::resuming;
    loop::current().make_ready(*this);
  }

  // What each wait and each turn looks at comes first, together; and no gaps: each connection is served
  // by a root.
  std::uint32_t loop_ = 0;  // the number of that where it runs, once it was started
  std::uint16_t shields_ = 0;
  phase phase_ = phase::unstarted;
  bool cancelled_ : 1 = false;
  bool listed_ : 1 = false;
  bool inside_ : 1 = false;       // of start_now, the first task; compare task_link
  promise_base* leaf_ = nullptr;  // the innermost task while the chain is suspended
  waiter* waiter_ = nullptr;      // what it waits for
  std::coroutine_handle<> first_;
  root_list* list_ = nullptr;
  root* before_ = nullptr;
  root* after_ = nullptr;
  detail::locals_reference locals_;
};

inline bool waiter::begin(std::coroutine_handle<> coroutine, coax::root* r) noexcept {
  if (state_ != state::idle)
    detail::fatal("something was awaited twice: call what makes it once for each await");
  loop& here = loop::current();
  coroutine_ = coroutine;
  root_ = r;
  if (r != nullptr) r->check_loop();
  if (r != nullptr && r->stopping() && !starts_always_) {
    if (!ready_now()) {
      state_ = state::stopped;
      r->unwind_later();
      return true;
    }
  } else {
    if (r != nullptr) r->waiter_ = this;
    state_ = state::waiting;
    since_ = here.turn_began();
    if (!start()) return true;
    if (r != nullptr) r->waiter_ = nullptr;
  }
  state_ = state::completed;
  if (here.spend_inline_completion()) return false;
  resume_later();
  return true;
}

inline void waiter::leave_root() noexcept {
  if (root_ == nullptr) return;
  root_->check_loop();
  root_->waiter_ = nullptr;
}

inline void waiter::complete() noexcept {
  leave_root();
  state_ = state::completed;
  resume_later();
}

inline void waiter::stopped() noexcept {
  leave_root();
  state_ = state::stopped;
  if (root_ != nullptr && root_->stopping()) return root_->unwind_later();
  resume_later();
}

[[gnu::always_inline]] inline void promise_base::finished() noexcept {
  if (link_ != nullptr) {
    root_->leaf_ = link_->parent();
    if (link_->child_is_inside()) return;
  }
  tell_loop();
}

[[gnu::noinline]] inline void promise_base::tell_loop() noexcept {
  if (link_ != nullptr) {
    root_->phase_ = root::phase::resuming;
  } else {
    if (root_->inside_) return;
    root_->phase_ = root::phase::finished;
  }
  loop::current().run_next(*root_);
}

inline void promise_base::resumed_by_others() const noexcept {
  root_->check_loop();
  loop::current().set_running_root(root_);
}

inline void promise_base::now_innermost() noexcept { root_->leaf_ = this; }

inline void root::run() noexcept {
  // The most frequent first.
  if (phase_ == phase::resuming) return resume();
  if (phase_ == phase::unstarted && !stopping()) return resume();
  if (phase_ == phase::finished) {
    leave();
    return ended(outcome::finished);
  }
  if (phase_ == phase::waiting)
    detail::fatal("a chain of tasks was in the ready queue while it waited");
  unwind();
}

inline void root::resume() noexcept {
  phase_ = phase::waiting;
  loop::running()->set_running_root(this);
  leaf_->coroutine().resume();
}

/// Destroys the chain from the leaf outward, one frame after the other: nested destructors would
/// recurse, and a deep chain would overflow the stack.
[[gnu::noinline, gnu::cold]] inline void root::unwind() noexcept {
  loop::current().set_running_root(this);
  for (promise_base* at = leaf_; at != nullptr;) {
    detail::task_link* link = at->link_;
    const std::coroutine_handle<> frame = at->coroutine();
    if (link != nullptr) {
      leaf_ = at = link->parent();
      link->child = nullptr;  // the parent's awaiter must not destroy it a second time
    } else {
      at = nullptr;
    }
    frame.destroy();
  }
  first_ = nullptr;
  leaf_ = nullptr;
  loop::current().set_running_root(nullptr);
  leave();
  ended(outcome::unwound);
}

}  // namespace coax::inline COAX_ABI
