#pragma once

#include <coax/config.hpp>
#include <coax/sync/awaited_argument.hpp>
#include <coax/sync/semaphore.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/result.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/task.hpp>

#include <cstddef>
#include <functional>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// What a limited scope spawns: `fn` and the place it takes, which is free again when the child has
/// ended and its arguments are gone.
template <class F>
class in_a_place {
 public:
  in_a_place(semaphore::permit place, F&& fn) : place_(std::move(place)), fn_(std::move(fn)) {}

  template <class... A>
  task<> operator()(A&&... args) {
    return std::invoke(fn_, std::forward<A>(args)...);
  }

 private:
  semaphore::permit place_;
  F fn_;
};

}  // namespace detail

/// A scope with at most so many children at a time: to spawn another waits until one has ended.
///
/// Made by `with_scope(limit, body)`. Everything else is as in `scope`.
///
/// Thread    the reactor's.
class limited_scope {
 public:
  limited_scope(const limited_scope&) = delete;
  limited_scope& operator=(const limited_scope&) = delete;

  /// Waits until fewer children live than the limit, then starts `fn(args...)` as `scope::spawn`
  /// does. Those who wait spawn in turn. A child that spawns keeps its own place meanwhile.
  ///
  /// `fn` and `args` are taken at the call. When the wait is cancelled nothing is spawned, and they
  /// are destroyed.
  ///
  /// Errors    std::bad_alloc, and what `fn` throws before it gives its task; nothing is spawned
  ///           then.
  template <class F, class... A>
  [[nodiscard]] task<> spawn(F&& fn, A&&... args) {
    static_assert(
        std::is_same_v<std::invoke_result_t<std::decay_t<F>&, std::unwrap_ref_decay_t<A>...>,
                       task<>>,
        "spawn takes a function that gives a task<>: a result would have nobody to go to");
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
    static_assert(
        std::is_lvalue_reference_v<F> || std::is_trivially_destructible_v<std::remove_cvref_t<F>>,
        "g++ 12 destroys such a closure twice: capture by [&], or name the closure before the co_await");
    static_assert(
        ((std::is_lvalue_reference_v<A> || detail::survives_co_await<std::remove_cvref_t<A>>) &&
         ...),
        "g++ 12 destroys such an aggregate twice: give it a constructor, or pass a named one");
#endif
    return spawn_in_turn<std::decay_t<F>, std::decay_t<A>...>(*this, std::forward<F>(fn),
                                                              std::forward<A>(args)...);
  }

  /// As `scope::cancel`. Who waits to spawn unwinds too, as what it is: the body, or a child.
  void cancel() noexcept { scope_->cancel(); }

  /// As `scope::join_within`.
  detail::join_awaiter join_within(timeout limit) noexcept { return scope_->join_within(limit); }

  /// Children that have not ended.
  std::size_t size() const noexcept { return scope_->size(); }

 private:
  template <class F>
  friend task<> limited(std::size_t limit, F body);

  explicit limited_scope(std::size_t limit) : places_(limit) {}
  ~limited_scope() = default;

  template <class F, class... A>
  static task<> spawn_in_turn(limited_scope& self, F fn, A... args) {
    auto place = co_await self.places_.acquire();
    self.scope_->spawn(detail::in_a_place<F>(std::move(place), std::move(fn)), std::move(args)...);
  }

  semaphore places_;
  scope* scope_ = nullptr;
};

/// The coroutine behind `with_scope(limit, body)`.
template <class F>
task<> limited(std::size_t limit, F body) {
  limited_scope s(limit);  // here, where it outlives the children
  auto opened = [&](scope& unlimited) -> task<> {
    s.scope_ = &unlimited;
    return body(s);
  };
  co_await with_scope(opened);
}

/// Runs `body(limited_scope&)` as `with_scope(body)` does, in a scope in which at most `limit`
/// children live at a time.
///
/// Errors    std::invalid_argument for a limit of 0, or a negative one; else as with_scope(body).
template <class F>
task<> with_scope(std::size_t limit, F&& body) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
  static_assert(
      std::is_lvalue_reference_v<F> || std::is_trivially_destructible_v<std::remove_cvref_t<F>>,
      "g++ 12 destroys such a closure twice: capture by [&], or name the closure before the co_await");
#endif
  static_assert(
      std::is_same_v<std::invoke_result_t<std::decay_t<F>&, limited_scope&>, task<>>,
      "the body of a limited scope takes a coax::limited_scope& and gives a coax::task<>");
  if (!detail::is_count(limit))
    detail::throw_invalid_argument("coax: the limit of a scope is not positive");
  return limited<std::decay_t<F>>(limit, std::forward<F>(body));
}

}  // namespace coax::inline COAX_ABI
