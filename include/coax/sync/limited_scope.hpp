#pragma once

#include <coax/config.hpp>
#include <coax/sync/semaphore.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/task.hpp>

#include <cstddef>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

template <class F>
task<> limited(std::size_t limit, F body);

/// What a limited scope spawns: `fn`, with a permit that is released when the child has ended and
/// its arguments are gone.
template <class F>
class with_permit {
 public:
  with_permit(semaphore::permit permit, F&& fn) : permit_(std::move(permit)), fn_(std::move(fn)) {}

  template <class... A>
  task<> operator()(A&&... args) {
    return detail::invoke(fn_, std::forward<A>(args)...);
  }

 private:
  semaphore::permit permit_;
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
  /// does. Those who wait spawn in turn. A child that spawns counts itself: if all of them wait to
  /// spawn, they wait for ever.
  ///
  /// `fn` and `args` are taken at the call. When the wait is cancelled nothing is spawned, and they
  /// are destroyed.
  ///
  /// Errors    std::bad_alloc, and what `fn` throws before it gives its task; nothing is spawned
  ///           then.
  template <class F, class... A>
  [[nodiscard]] task<> spawn(F&& fn, A&&... args) {
    detail::require_safe_closure<F>();
    (detail::require_safe_argument<A>(), ...);
    if constexpr (detail::can_be_spawned<F, A...>())
      return spawn_in_turn<std::decay_t<F>, std::decay_t<A>...>(*this, std::forward<F>(fn),
                                                                std::forward<A>(args)...);
  }

  /// As `scope::cancel`. A spawn that waits unwinds with the body or the child that called it.
  void cancel() noexcept { scope_->cancel(); }

  /// As `scope::join_within`.
  detail::join_awaiter join_within(timeout limit) noexcept { return scope_->join_within(limit); }

  /// Children that have not ended.
  std::size_t size() const noexcept { return scope_->size(); }

 private:
  template <class F>
  friend task<> detail::limited(std::size_t limit, F body);

  explicit limited_scope(std::size_t limit) : permits_(limit) {}
  ~limited_scope() = default;

  template <class F, class... A>
  static task<> spawn_in_turn(limited_scope& self, F fn, A... args) {
    auto permit = co_await self.permits_.acquire();
    self.scope_->spawn(detail::with_permit<F>(std::move(permit), std::move(fn)),
                       std::move(args)...);
  }

  semaphore permits_;
  scope* scope_ = nullptr;
};

namespace detail {

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

}  // namespace detail

/// Runs `body(limited_scope&)` as `with_scope(body)` does, in a scope in which at most `limit`
/// children live at a time.
///
/// Errors    std::invalid_argument for a limit of 0, or a negative one; else as with_scope(body).
template <class F>
task<> with_scope(std::size_t limit, F&& body) {
  detail::require_safe_closure<F>();
  static_assert(
      std::is_same_v<detail::given_t<std::decay_t<F>&, limited_scope&>, task<>>,
      "the body of a limited scope takes a coax::limited_scope& and gives a coax::task<>");
  if (!detail::is_count(limit))
    detail::throw_invalid_argument("coax: the limit of a scope is not positive");
  return detail::limited<std::decay_t<F>>(limit, std::forward<F>(body));
}

}  // namespace coax::inline COAX_ABI
