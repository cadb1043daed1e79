#pragma once

#include <coax/config.hpp>
#include <coax/io/choose.hpp>
#include <coax/io/main_root.hpp>
#include <coax/io/signal_bits.hpp>
#include <coax/net/listener.hpp>
#include <coax/process/log_line.hpp>
#include <coax/process/run.hpp>
#include <coax/process/signal_hub.hpp>
#include <coax/process/supervisor.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>
#include <coax/task/task.hpp>

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <exception>
#include <memory>
#include <string>
#include <type_traits>

namespace coax::inline COAX_ABI {

/// How `prefork` runs its processes.
struct prefork_options {
  /// 0: one for each processor this process may use.
  int processes = 0;
  /// From the first SIGTERM or SIGINT until those that have not ended are killed.
  timeout drain = std::chrono::seconds(15);
  /// What each process runs on.
  options reactor{};
};

namespace detail {

/// Processors this process may use; at least 1.
inline int usable_processors() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

/// `T&` where `A` is a std::reference_wrapper<T>.
template <class A>
using referred_by = std::unwrap_reference_t<std::remove_cv_t<A>>;

/// Closes `argument` if it is, or refers to, a listener.
template <class A>
void close_listener(A& argument) noexcept {
  static_assert(
      !std::is_same_v<A, const listener> && !std::is_same_v<referred_by<A>, const listener&>,
      "prefork closes the listeners among its arguments: pass one that is not const");
  if constexpr (std::is_same_v<A, listener>)
    argument.close();
  else if constexpr (std::is_same_v<referred_by<A>, listener&>)
    argument.get().close();
}

/// Runs the task that `make` gives. Stop signals wait until it has had the time to call `signals`,
/// which is when all that can run has run; from then on they have their effect, and where nobody
/// asked for them that is to end the process. One that takes turn after turn gets a second. After
/// the end of the task they must not change how the process ends.
template <class Make>
int run_held(reactor& r, const sigset_t& held, const Make& make) {
  const reactor::session session(r);
  main_root main(make());
  const clock::time_point until = now() + std::chrono::seconds(1);
  while (!main.has_ended() && !r.would_wait() && now() < until) r.turn();
  if (!main.has_ended()) ::pthread_sigmask(SIG_UNBLOCK, &held, nullptr);
  while (!main.has_ended()) r.turn();
  const sigset_t stops = set_of(stop_signals);
  ::pthread_sigmask(SIG_BLOCK, &stops, nullptr);
  if constexpr (std::is_same_v<decltype(make()), task<int>>) {
    return main.take();
  } else {
    main.take();
    return 0;
  }
}

/// The life of one process: its exit status.
template <class Make>
int run_child(const options& o, int number, const sigset_t& held, const Make& make) {
  const std::string called =
      "process " + std::to_string(number) + " (pid " + std::to_string(::getpid()) + ')';
  int status = 1;
  const std::exception_ptr failure = caught([&] {
    signal_hub::instance().tell_stop_once();
    const std::unique_ptr<reactor> r = make_reactor(o);
    ignore_sigpipe();
    const std::string why = r->fallback_reason().empty() ? "" : " (" + r->fallback_reason() + ")";
    log_line(called + " started: " + std::string(r->backend()) + why);
    status = run_held(*r, held, make);
  });
  if (failure) log_line(called + ": " + words_of(failure));
  return status;
}

}  // namespace detail

/// Runs `fn(args...)`, which gives a task<> or a task<int> (its exit status), in several processes,
/// each on a reactor of its own, and keeps them running.
///
/// A process that ends is started again: at once, or, if it keeps dying within a second of its
/// start, after 100 ms, doubling up to 30 s. On SIGTERM or SIGINT the listeners among the arguments
/// (`listener&`, std::ref(listener)) are closed here, and the signal is passed on: `fn` sees it
/// through `signals`, stops accepting, finishes and returns. One that comes before `fn` has first
/// waited for anything but its turn is kept for `signals`. In a process the first of these signals
/// counts, whoever sent it. Those that have not ended after `o.drain` are killed; a second
/// signal kills all at once. When this process is killed, the others get SIGTERM.
///
/// Each start, with its backend, and each end is a line on stderr, or none where that would have to wait.
///
/// Result    after a stop: 0 when all processes that ran then ended with status 0, else 1. For `main` to
///           return.
/// Errors    std::invalid_argument for a negative number of processes; as `run` when no reactor can
///           be made as `o.reactor` and COAX_BACKEND ask; std::logic_error inside a run.
/// Lifetime  each process has the copies of `fn` and `args` that fork(2) makes. It ends by
///           std::_Exit once `fn` has: what is in stdio's buffers is written, neither destructors of
///           static objects nor exit handlers run.
/// Thread    the main thread, while there is no other: the rest of the process is not in the
///           children.
template <class F, class... A>
int prefork(const prefork_options& o, F&& fn, A&&... args) {
  using given = detail::given_t<F&, A&...>;
  static_assert(std::is_same_v<given, task<>> || std::is_same_v<given, task<int>>,
                "prefork takes a function that gives a coax::task<> or a coax::task<int>");
  if (o.processes < 0)
    detail::throw_invalid_argument("coax: prefork_options::processes is " +
                                   std::to_string(o.processes) + ": it cannot be negative");
  if (loop::running() != nullptr) detail::throw_logic_error("coax: prefork was called inside run");
  // What no process could run on is an error here, not in each of them again and again.
  static_cast<void>(make_reactor(o.reactor));

  const int processes = o.processes == 0 ? detail::usable_processors() : o.processes;
  detail::supervisor supervisor(processes, o.drain);
  return supervisor.run(
      [&](int number, const sigset_t& held) {
        return detail::run_child(o.reactor, number, held,
                                 [&] { return detail::invoke(fn, args...); });
      },
      [&] { (detail::close_listener(args), ...); });
}

}  // namespace coax::inline COAX_ABI
