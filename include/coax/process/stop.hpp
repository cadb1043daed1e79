#pragma once

#include <coax/config.hpp>
#include <coax/io/choose.hpp>
#include <coax/io/reactor.hpp>
#include <coax/process/run.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/task.hpp>

#include <atomic>
#include <stop_token>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// Cancels `target`, on the thread of its reactor, when a stop is requested on whichever thread.
template <class Target>
class stop_link final : private ready_node {
 public:
  stop_link(Target& target, const std::stop_token& stop)
      : reactor_(reactor::current()), target_(target), on_request_(stop, post_it{*this}) {}
  stop_link(const stop_link&) = delete;
  stop_link& operator=(const stop_link&) = delete;

 private:
  struct post_it {
    stop_link& link;
    void operator()() const noexcept {
      if (loop::running() == &link.reactor_) return link.target_.cancel();
      link.posted_ = true;
      link.reactor_.post(link);
    }
  };
  /// Outlives the callback: when it ends, nobody posts any more.
  struct withdrawn_at_end {
    stop_link& link;
    ~withdrawn_at_end() {
      if (link.posted_) link.reactor_.withdraw(link);
    }
  };

  void run() noexcept override {
    posted_ = false;
    target_.cancel();
  }

  reactor& reactor_;
  Target& target_;
  std::atomic<bool> posted_{false};
  withdrawn_at_end guard_{*this};
  std::stop_callback<post_it> on_request_;
};

/// Runs the task that `make` gives on `r`, to its end, or until it has unwound after `stop`.
template <class Make>
auto run_on(reactor& r, const std::stop_token& stop, Make&& make) {
  const reactor::session session(r);
  const signal_mask_kept mask;
  main_root main(std::forward<Make>(make)());
  {
    const stop_link link(main, stop);
    while (!main.has_ended()) r.turn();
  }
  return main.take_if_finished();
}

/// The coroutine behind `with_scope` with a stop_token: what is cancelled is a scope around the one
/// that the body sees.
template <class F>
task<> scoped_until(std::stop_token stop, F body) {
  const auto linked = [&](scope& around) -> task<> {
    const stop_link link(around, stop);
    co_await with_scope(std::ref(body));
  };
  co_await with_scope(linked);
}

}  // namespace detail

/// As `run`; a stop that is requested of `stop`, on any thread, cancels the task. When it was
/// requested before, the task does not begin.
///
/// Result    what the task gives, as an optional, which is empty when it was cancelled. Of a task<>,
///           whether it has ended by itself.
/// Errors    as `run`.
/// Lifetime  the std::stop_source may end at any time, before this call too.
template <class F, class... A>
auto run(const options& o, std::stop_token stop, F&& fn, A&&... args) {
  static_assert(is_task_v<detail::given_t<F, A...>>,
                "run takes a function and its arguments, and the function gives a coax::task");
  return detail::on_new_reactor(o, [&](reactor& r) {
    return detail::run_on(
        r, stop, [&] { return detail::invoke(std::forward<F>(fn), std::forward<A>(args)...); });
  });
}
template <class F, class... A>
auto run(std::stop_token stop, F&& fn, A&&... args) {
  return run(options{}, std::move(stop), std::forward<F>(fn), std::forward<A>(args)...);
}

/// As `with_scope`; a stop that is requested of `stop`, on any thread, cancels the scope, which then
/// returns as usual. When it was requested before, the body runs up to its first wait.
///
/// Lifetime  as `with_scope`. The std::stop_source may end at any time.
template <class F>
task<> with_scope(std::stop_token stop, F&& body) {
  detail::require_safe_closure<F>();
  static_assert(std::is_same_v<detail::given_t<std::decay_t<F>&, scope&>, task<>>,
                "the body of a scope takes a coax::scope& and gives a coax::task<>");
  return detail::scoped_until<std::decay_t<F>>(std::move(stop), std::forward<F>(body));
}

}  // namespace coax::inline COAX_ABI
