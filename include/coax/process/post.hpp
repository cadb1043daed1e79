#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/loop.hpp>

#include <concepts>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// A function on its way to a reactor.
template <class F>
class posted_function final : public ready_node {
 public:
  template <class G>
  explicit posted_function(std::in_place_t, G&& fn) : fn_(std::forward<G>(fn)) {}

 private:
  void run() noexcept override {
    const std::unique_ptr<posted_function> self(this);
    reactor& here = reactor::current();
    // Once what the run was for has ended, so has what `fn` refers to.
    if (!here.runs_for_something()) return;
    if (std::exception_ptr failure = caught([this] { std::move(fn_)(); }))
      here.failed(std::move(failure));
  }
  void dropped() noexcept override { delete this; }

  F fn_;
};

}  // namespace detail

/// Calls `fn()` on the thread of `r`, at one of its next turns: the way into a reactor from other
/// threads. Inside `fn` one may do what a task may do, but not wait: set an event, cancel a scope,
/// hand something over.
///
/// Functions that one thread posts run in the order in which it posted them. If the run ends before
/// their turn they are destroyed without having run, there or, when it has ended already, here.
/// What was posted and has not run takes memory: it is for the caller to bound that.
///
/// Errors    what `fn` throws ends the run: its task is cancelled, and `run` throws it.
///           std::bad_alloc, here.
/// Lifetime  `fn` is copied or moved, and destroyed on the reactor's thread after it has run. `r`
///           must not have been destroyed when this is called; it may be as soon as `fn` has run.
/// Thread    any. In a simulation time goes on without waiting for what another thread will post.
template <class F>
  requires std::invocable<std::decay_t<F>>
void post(reactor& r, F&& fn) {
  static_assert(
      std::is_void_v<std::invoke_result_t<std::decay_t<F>>>,
      "post takes a function that gives nothing: a result would have nobody to go to, and a task nobody to run it");
  using posted = detail::posted_function<std::decay_t<F>>;
  auto node = std::make_unique<posted>(std::in_place, std::forward<F>(fn));
  if (r.post(*node)) static_cast<void>(node.release());
}

}  // namespace coax::inline COAX_ABI
