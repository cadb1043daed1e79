#pragma once

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/returned.hpp>
#include <coax/task/root.hpp>

#include <coroutine>
#include <cstddef>
#include <exception>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

// The tag makes it part of the symbol of a function that merely gives a task: see config.hpp.
template <class T>
class [[gnu::abi_tag(COAX_ABI_TEXT)]] task;
template <class T>
class task_awaiter;

namespace detail {

template <class A>
inline constexpr bool is_task_awaiter_v = false;
template <class T>
inline constexpr bool is_task_awaiter_v<task_awaiter<T>> = true;

/// Whether an awaiter resumes the task through its loop, as all of coax do.
template <class A>
concept resumed_by_loop = std::is_base_of_v<waiter, A> || is_task_awaiter_v<A> ||
                          requires { typename A::resumed_by_loop; };

/// Whether tasks await it otherwise than other coroutines do.
template <class A>
concept has_await_by_task = requires { typename std::remove_cvref_t<A>::by_task; };

template <class A>
concept has_member_co_await = requires(A&& a) { std::forward<A>(a).operator co_await(); };
template <class A>
concept has_free_co_await = requires(A&& a) { operator co_await(std::forward<A>(a)); };

/// What a `co_await` of `a` waits with.
template <class A>
decltype(auto) awaiter_of(A&& a) {
  if constexpr (has_member_co_await<A>)
    return std::forward<A>(a).operator co_await();
  else if constexpr (has_free_co_await<A>)
    return operator co_await(std::forward<A>(a));
  else
    return static_cast<std::remove_reference_t<A>&>(a);
}

/// Stands for an awaiter that lives elsewhere in the frame. Awaiting the awaiter itself, whether as
/// lvalue or rvalue, makes g++ 12 copy it to yet another place, and an operation stays where it is.
template <class Awaiter>
class awaiter_reference {
 public:
  explicit awaiter_reference(Awaiter& awaiter) noexcept : awaiter_(awaiter) {}

  bool await_ready() { return awaiter_.await_ready(); }
  template <class P>
  auto await_suspend(std::coroutine_handle<P> coroutine) {
    return awaiter_.await_suspend(coroutine);
  }
  decltype(auto) await_resume() { return awaiter_.await_resume(); }

 private:
  Awaiter& awaiter_;
};

/// Around an awaiter of another library, which resumes the task by itself: the loop is told then that
/// it is this task that runs. `Awaiter` is a reference where it lives elsewhere in the frame.
template <class Awaiter>
class foreign_awaiter {
 public:
  template <class Make>
  foreign_awaiter(promise_base& promise, const Make& make) : promise_(promise), awaiter_(make()) {}

  bool await_ready() { return awaiter_.await_ready(); }
  template <class P>
  auto await_suspend(std::coroutine_handle<P> coroutine) {
    return awaiter_.await_suspend(coroutine);
  }
  decltype(auto) await_resume() {
    promise_.resumed_by_others();
    return awaiter_.await_resume();
  }

 private:
  promise_base& promise_;
  Awaiter awaiter_;
};

/// The first suspension of a task, and the guard against a defect of g++ 12.
///
/// g++ 12 lays out wrongly the frame of a coroutine that tests an awaited value directly, `if
/// (co_await x)`, `while (co_await x)` or `switch (co_await x)`, and declares no local variable:
/// its promise then overlaps what lies behind the frame. Such a frame shows at its first
/// suspension, before any harm is done: the promise is not where it said it was.
class initial_awaiter {
 public:
  bool await_ready() const noexcept { return false; }
  template <class Promise>
  void await_suspend(std::coroutine_handle<Promise> self) const noexcept {
    if (!self.promise().is_where_it_said() || self.promise().coroutine() != self)
      fatal(
          "this compiler has laid out a coroutine frame wrongly (a defect of g++ 12: `if (co_await x)`, `while "
          "(co_await x)` or `switch (co_await x)` in a coroutine without local variables). Name the awaited value: "
          "`auto r = co_await x; if (r)` or `while (auto r = co_await x)`");
  }
  void await_resume() const noexcept {}
};

class final_awaiter {
 public:
  bool await_ready() const noexcept { return false; }
  template <class Promise>
  [[gnu::always_inline]] void await_suspend(std::coroutine_handle<Promise> self) const noexcept {
    self.promise().finished();
  }
  void await_resume() const noexcept {}
};

/// All of a promise but what `co_return` calls.
template <class T>
class promise_of : public promise_base, public framed {
  static_assert(!std::is_reference_v<T>,
                "a task gives a value: return a pointer or std::reference_wrapper");
  static_assert(alignof(returned<T>) <= alignof(std::max_align_t),
                "compilers do not align coroutine frames beyond that");

 public:
  using promise = typename task<T>::promise_type;

  task<T> get_return_object() noexcept;
  initial_awaiter initial_suspend() noexcept {
    this->say_where();
    return {};
  }
  final_awaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { returned_.fail(std::current_exception()); }

  /// What the body threw, once the coroutine has ended.
  std::exception_ptr exception() const noexcept { return returned_.exception(); }
  detail::returned<T>& outcome() noexcept { return returned_; }
  /// What it gave, moved out; rethrows what it threw.
  T take() { return returned_.take(); }

  using promise_base::coroutine;
  using promise_base::finished;
  using promise_base::is_where_it_said;

  /// Remembers where the coroutine waits, and gives what it waits with.
  template <class Awaitable>
  decltype(auto) await_transform(Awaitable&& awaitable,
                                 location where = __builtin_source_location()) noexcept {
    static_assert(
        has_member_co_await<Awaitable> || !has_member_co_await<std::remove_reference_t<Awaitable>>,
        "a task is awaited once, and then is gone: co_await std::move(task)");
    where_ = where;
    now_innermost();
    const auto make = [&]() -> decltype(auto) {
      if constexpr (has_await_by_task<Awaitable>)
        return typename std::remove_cvref_t<Awaitable>::by_task();
      else
        return awaiter_of(std::forward<Awaitable>(awaitable));
    };
    using awaiter = decltype(make());
    if constexpr (!resumed_by_loop<std::remove_reference_t<awaiter>>)
      return foreign_awaiter<awaiter>(*this, make);
    else if constexpr (std::is_reference_v<awaiter>)
      return awaiter_reference<std::remove_reference_t<awaiter>>(make());
    else
      return make();
  }

 protected:
  returned<T> returned_;
};

}  // namespace detail

/// A coroutine that gives a `T`, started by awaiting or spawning it, and at most once.
///
/// Lazy: calling the function runs nothing. Parameters taken by value live in its frame;
/// references, spans and string_views must outlive it. `co_await f()` runs it as part of the
/// caller; cancelling the caller unwinds both.
///
/// Errors    what the body throws is rethrown where it is awaited.
/// Thread    the reactor's.
template <class T = void>
class [[nodiscard("a task does nothing until it is awaited or spawned"),
        gnu::abi_tag(COAX_ABI_TEXT)]] task {
 public:
  class promise_type;
  using value_type = T;

  task(task&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
  task& operator=(task&& other) noexcept {
    if (this != &other) {
      if (coroutine_) coroutine_.destroy();
      coroutine_ = std::exchange(other.coroutine_, nullptr);
    }
    return *this;
  }
  ~task() {
    if (coroutine_) coroutine_.destroy();
  }

  /// Runs the task as part of the awaiting one. An lvalue must be moved: a task can be awaited
  /// once.
  task_awaiter<T> operator co_await() && noexcept {
    if (!coroutine_) detail::fatal("a task was awaited twice, or after it had been moved from");
    return task_awaiter<T>(std::exchange(coroutine_, nullptr));
  }

  /// Gives up the coroutine: for what starts tasks otherwise than by awaiting them.
  std::coroutine_handle<promise_type> release() && noexcept {
    return std::exchange(coroutine_, nullptr);
  }

 private:
  friend class detail::promise_of<T>;
  explicit task(std::coroutine_handle<promise_type> coroutine) noexcept : coroutine_(coroutine) {}

  std::coroutine_handle<promise_type> coroutine_;
};

template <class T>
class task<T>::promise_type : public detail::promise_of<T> {
 public:
  template <class U = T>
  void return_value(U&& value) {
    this->returned_.set(std::forward<U>(value));
  }
};

template <>
class task<void>::promise_type : public detail::promise_of<void> {
 public:
  void return_void() const noexcept {}
};

template <class T>
task<T> detail::promise_of<T>::get_return_object() noexcept {
  return task<T>(std::coroutine_handle<promise>::from_promise(static_cast<promise&>(*this)));
}

/// The await of a task by a task.
///
/// The child runs inside the parent's await. If it finishes there, the parent was never suspended,
/// and a million such awaits in a loop cost no stack. If it suspends, its end makes the loop resume
/// the parent.
template <class T>
class [[nodiscard]] task_awaiter : private detail::task_link {
 public:
  using promise = typename task<T>::promise_type;

  explicit task_awaiter(std::coroutine_handle<promise> coroutine) noexcept { child = coroutine; }
  task_awaiter(const task_awaiter&) = delete;
  task_awaiter& operator=(const task_awaiter&) = delete;
  ~task_awaiter() {
    if (child) child.destroy();
  }

  bool await_ready() const noexcept { return false; }

  // Inline, as is all that a task goes through which ends at once: it costs a quarter less with g++, and
  // half with clang.
  template <class P>
  [[gnu::always_inline]] bool await_suspend(std::coroutine_handle<P> coroutine) noexcept {
    static_assert(task_promise<P>,
                  "a coax::task is awaited by a coax::task; elsewhere, spawn it in a scope");
    coax::root& root = *coroutine.promise().root();
    promise_base& begun = callee();
    begun.root_ = &root;
    begun.link_ = this;

    loop& here = loop::current();
    if (here.may_start_inline()) {
      awaited_by(coroutine.promise(), inside);
      here.start_inline(child);
      if (child.done()) return false;
      child_has_left();
    } else {
      awaited_by(coroutine.promise(), 0);
      root.leaf_ = &begun;
      root.resume_later();
    }
    return true;
  }

  T await_resume() { return callee().take(); }

 private:
  promise& callee() const noexcept {
    return std::coroutine_handle<promise>::from_address(child.address()).promise();
  }
};

}  // namespace coax::inline COAX_ABI
