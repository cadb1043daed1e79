#pragma once

#include <coax/config.hpp>
#include <coax/io/choose.hpp>
#include <coax/io/main_root.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/task.hpp>

#include <csignal>
#include <memory>
#include <stop_token>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// Keeps the thread's signal mask: `signals` unblocks what it waits for.
class signal_mask_kept {
 public:
  signal_mask_kept() noexcept { ::pthread_sigmask(SIG_SETMASK, nullptr, &before_); }
  signal_mask_kept(const signal_mask_kept&) = delete;
  signal_mask_kept& operator=(const signal_mask_kept&) = delete;
  ~signal_mask_kept() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

/// Runs the task that `make` gives on `r`, to its end.
template <class Make>
auto run_on(reactor& r, Make&& make) {
  const reactor::session session(r);
  // Given back before the session ends: a signal that nobody took then has the effect that it would
  // have had without the run, and that may be to wait.
  const signal_mask_kept mask;
  main_root main(std::forward<Make>(make)());
  while (!main.has_ended()) r.turn();
  return main.take();
}

/// Writing to a pipe nobody reads is an error of the write, not the end of the process. Sockets are
/// told so for each call; pipes can't be.
inline void ignore_sigpipe() noexcept {
  struct sigaction now{};
  if (::sigaction(SIGPIPE, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 &&
      now.sa_handler == SIG_DFL)
    ::signal(SIGPIPE, SIG_IGN);
}

/// Calls `use` with a new reactor of this thread.
template <class Use>
auto on_new_reactor(const options& o, const Use& use) {
  if (loop::running() != nullptr)
    throw_logic_error("coax: run was called inside run: co_await the task, or spawn it in a scope");
  const std::unique_ptr<reactor> r = make_reactor(o);
  ignore_sigpipe();
  return use(*r);
}

/// What does not stand for the function in the arguments of `run`.
template <class F>
concept run_setting = std::is_same_v<std::remove_cvref_t<F>, options> ||
                      std::is_same_v<std::remove_cvref_t<F>, std::stop_token>;

}  // namespace detail

/// Runs `fn(args...)`, which gives a task, on a new reactor of this thread, and returns when it has
/// ended.
///
/// Result    what the task gives.
/// Errors    what the task throws. std::invalid_argument, std::system_error when the reactor cannot
///           be made as `o` and COAX_BACKEND ask for; std::logic_error inside another `run`.
/// Lifetime  `fn` and `args` are passed on as they are, and live as long as the call.
/// Thread    any that runs no reactor. Ignores SIGPIPE from then on where it had the default
///           action.
template <class F, class... A>
  requires(!detail::run_setting<F>)
auto run(const options& o, F&& fn, A&&... args) {
  static_assert(is_task_v<detail::given_t<F, A...>>,
                "run takes a function and its arguments, and the function gives a coax::task");
  return detail::on_new_reactor(o, [&](reactor& r) {
    return detail::run_on(
        r, [&] { return detail::invoke(std::forward<F>(fn), std::forward<A>(args)...); });
  });
}
template <class F, class... A>
  requires(!detail::run_setting<F>)
auto run(F&& fn, A&&... args) {
  return run(options{}, std::forward<F>(fn), std::forward<A>(args)...);
}

}  // namespace coax::inline COAX_ABI
