#pragma once

#include <coax/config.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/composite.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/task.hpp>
#include <coax/task/timers.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

class scope;

namespace detail {

template <class F>
task<> scoped(F body);

/// Whether `fn(args...)` can be spawned. If not, the program does not compile, and says why.
template <class F, class... A>
consteval bool can_be_spawned() noexcept {
  using given = given_t<std::decay_t<F>&, std::unwrap_ref_decay_t<A>...>;
  constexpr bool is_task = is_task_v<std::decay_t<F>>;
  constexpr bool is_called = !std::is_same_v<given, not_callable>;
  constexpr bool gives_task = std::is_same_v<given, task<>>;
  static_assert(!is_task,
                "spawn takes a function and its arguments, not a task: spawn(fn, args...)");
  static_assert(
      is_task || is_called,
      "spawn copies the arguments, and the function cannot be called with the copies: say std::ref for what it takes by reference");
  static_assert(!is_called || gives_task,
                "spawn takes a function that gives a task<>: a result would have nobody to go to");
  return gives_task;
}

/// A child of a scope: a root in the list of the scope's end.
class scope_child : public root, public framed {
 public:
  /// Takes up `t` as a child of `owner`, and owns itself from then on.
  void begin(scope& owner, task<> t) noexcept;

 protected:
  scope_child() = default;
  ~scope_child() = default;

  /// What is to be done when `child` has ended.
  template <class Child>
  static void end(Child& child, outcome how) noexcept;
};

/// A child with what it was spawned with: a coroutine lambda runs in its closure, and parameters
/// taken by reference refer to these arguments, so both live as long as the child. Of a plain function
/// nothing need be kept.
template <class F, class... A>
class spawned final : public scope_child {
 public:
  template <class G, class... B>
  explicit spawned(std::in_place_t, G&& fn, B&&... args)
      : kept_(std::forward<G>(fn)), args_(std::forward<B>(args)...) {}

  /// The task of the function, which was `given` to spawn.
  template <class G>
  task<> call([[maybe_unused]] G& given) {
    const auto with = [&](A&... args) -> task<> {
      if constexpr (is_plain)
        return detail::invoke(given, std::forward<A>(args)...);
      else
        return detail::invoke(kept_, std::forward<A>(args)...);
    };
    return std::apply(with, args_);
  }

 private:
  void ended(outcome how) noexcept override { scope_child::end(*this, how); }

  static constexpr bool is_plain = std::is_function_v<std::remove_pointer_t<F>>;
  struct nothing {
    explicit nothing(F) noexcept {}
  };

  [[no_unique_address]] std::conditional_t<is_plain, nothing, F> kept_;
  [[no_unique_address]] std::tuple<A...> args_;
};

/// The wait for the body and all children of a scope.
class scope_end final : public composite {
 public:
  scope_end(scope& s, task<> body) noexcept : scope_(s), body_(std::move(body)) {}
  void await_resume() const { rethrow_failure(); }
  waiting_for describe() const noexcept override { return {"a scope to end"}; }

 private:
  friend class coax::scope;
  friend class scope_child;
  inline void begin() noexcept override;
  inline void cancel_branches() noexcept override;
  void cancel_all() noexcept { composite::cancel_branches(); }
  void cancel_all_but_the_body() noexcept;

  scope& scope_;
  branch<void> body_;
};

/// The wait of `join_within`.
class [[nodiscard]] join_awaiter final : public waiter, private timer {
 public:
  join_awaiter(scope& s, timeout limit) noexcept : scope_(s), limit_(limit) {}
  join_awaiter(const join_awaiter& other) noexcept
      : waiter(other), timer(), scope_(other.scope_), limit_(other.limit_) {}
  join_awaiter& operator=(const join_awaiter&) = delete;
  ~join_awaiter() = default;

  bool await_resume() const noexcept { return by_themselves_; }
  waiting_for describe() const noexcept override { return {"the children of a scope"}; }

 private:
  friend class coax::scope;
  inline bool start() noexcept override;
  inline void stop() noexcept override;
  inline void expired() noexcept override;

  void all_ended() noexcept;

  scope& scope_;
  timeout limit_;
  bool by_themselves_ = true;
};

}  // namespace detail

/// The tasks that were spawned together and end together: no task outlives its scope.
///
/// Made by `with_scope`. The first exception of the body or of a child cancels all the others, and
/// is rethrown by `with_scope` after the last has ended.
///
/// Thread    the reactor's.
class scope {
 public:
  scope(const scope&) = delete;
  scope& operator=(const scope&) = delete;

  /// Starts `fn(args...)`, which gives a task<>, as a child. It first runs at the next turn of the
  /// loop.
  ///
  /// `fn` and `args` are copied or moved into the child and live as long as it does; say std::ref
  /// for what is to be referred to. Spawning into a scope that is being cancelled, or whose join
  /// has run out, has no effect: the arguments are destroyed.
  ///
  /// Errors    std::bad_alloc, and what `fn` throws before it gives its task; nothing is spawned
  ///           then.
  template <class F, class... A>
  void spawn(F&& fn, A&&... args) {
    if constexpr (detail::can_be_spawned<F, A...>()) {
      using child = detail::spawned<std::decay_t<F>, std::unwrap_ref_decay_t<A>...>;
      auto c =
          std::make_unique<child>(std::in_place, std::forward<F>(fn), std::forward<A>(args)...);
      if (takes_no_more()) return;
      task<> t = c->call(fn);
      if (takes_no_more()) return;  // by the function
      c.release()->begin(*this, std::move(t));
    }
  }

  /// Cancels the body and all children. They unwind at their next wait; `with_scope` then returns
  /// as usual.
  void cancel() noexcept {
    closed_ = true;
    if (!std::exchange(cancelled_, true)) end_->cancel_all();  // none is added from then on
  }

  /// Waits until all children have ended; after `limit`, cancels those that are left and waits for
  /// them to unwind. For the body of the scope; the body itself goes on.
  ///
  /// Result    whether the children it found have all ended by themselves in time; false where they were
  ///           cancelled. True when it finds none. Others may have been spawned before the body goes on.
  detail::join_awaiter join_within(timeout limit) noexcept { return {*this, limit}; }

  /// Children that have not ended.
  std::size_t size() const noexcept { return size_; }

 private:
  friend class detail::scope_child;
  friend class detail::scope_end;
  friend class detail::join_awaiter;
  template <class F>
  friend task<> detail::scoped(F body);

  scope() = default;
  ~scope() = default;

  /// It is closed, or the last has ended and it is about to return.
  bool takes_no_more() const noexcept { return closed_ || !end_->is_waiting(); }
  void cancel_children() noexcept {
    closed_ = true;
    end_->cancel_all_but_the_body();
  }
  void child_ended(const std::exception_ptr& failure, bool unwound) noexcept {
    --size_;
    if (size_ == 0 && join_ != nullptr) std::exchange(join_, nullptr)->all_ended();
    end_->branch_ended(failure, unwound);
  }

  detail::scope_end* end_ = nullptr;
  detail::join_awaiter* join_ = nullptr;
  std::size_t size_ = 0;
  bool closed_ = false;
  bool cancelled_ = false;
};

namespace detail {

inline void scope_child::begin(scope& owner, task<> t) noexcept {
  const auto frame = std::move(t).release();
  if (!frame) fatal("spawn was given a task that had been moved from");
  adopt(frame, owner.end_->list());
  ++owner.size_;
  owner.end_->branch_begun();
  start_later();
}

template <class Child>
void scope_child::end(Child& child, outcome how) noexcept {
  const bool unwound = how == outcome::unwound;
  std::exception_ptr failure;
  if (!unwound) failure = child.template first<task<>::promise_type>().promise().exception();
  child.destroy_first();  // before the arguments, which its parameters may refer to
  scope& owner = static_cast<scope_end*>(child.list()->of())->scope_;
  // Before the scope is told: it may end now, and what the arguments refer to with it.
  delete &child;
  owner.child_ended(failure, unwound);
}

inline void scope_end::begin() noexcept {
  scope_.end_ = this;
  scope_.closed_ = outer_stopping();
  body_.begin(*this);
}

inline void scope_end::cancel_branches() noexcept { scope_.cancel(); }

inline void scope_end::cancel_all_but_the_body() noexcept {
  for (coax::root* each = list().first(); each != nullptr; each = each->next())
    if (each != &body_) each->cancel();
}

inline bool join_awaiter::start() noexcept {
  if (scope_.size_ == 0) return true;
  if (scope_.join_ != nullptr) fatal("two tasks wait in join_within of one scope");
  scope_.join_ = this;
  loop::current().set_timer(*this, limit_.after(now()));
  return false;
}

inline void join_awaiter::stop() noexcept {
  scope_.join_ = nullptr;
  loop::current().deadlines().drop(*this);
  stopped();
}

inline void join_awaiter::expired() noexcept { scope_.cancel_children(); }

inline void join_awaiter::all_ended() noexcept {
  by_themselves_ = !scope_.closed_;
  loop::current().deadlines().drop(*this);
  complete();
}

template <class F>
task<> scope_body(F& body, scope& s) {
  co_await body(s);
}

/// The coroutine behind `with_scope`.
template <class F>
task<> scoped(F body) {
  scope s;
  co_await scope_end(s, scope_body(body, s));
}

}  // namespace detail

/// Runs `body(scope&)`, which gives a task<>, and waits for it and for everything it spawned.
///
/// Errors    the first exception of the body or of a child, after all have ended.
/// Lifetime  `body` is moved into the task. On g++ 12 a closure written into the call must be
///           trivially destructible (capture by reference): that compiler destroys others twice.
template <class F>
task<> with_scope(F&& body) {
  detail::require_safe_closure<F>();
  static_assert(std::is_same_v<detail::given_t<std::decay_t<F>&, scope&>, task<>>,
                "the body of a scope takes a coax::scope& and gives a coax::task<>");
  return detail::scoped<std::decay_t<F>>(std::forward<F>(body));
}

}  // namespace coax::inline COAX_ABI
