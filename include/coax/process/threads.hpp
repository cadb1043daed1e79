#pragma once

#include <coax/config.hpp>
#include <coax/io/choose.hpp>
#include <coax/io/reactor.hpp>
#include <coax/process/run.hpp>
#include <coax/process/signal_hub.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

namespace detail {

/// Threads that run for the same purpose: when one fails, the others are cancelled, and each hears
/// of the signals that come to any.
class thread_group {
 public:
  /// A thread's reactor, known to the others. Outlives the reactor's session, whose last turns may
  /// still bring the post.
  class member final : private ready_node {
   public:
    member(thread_group& group, reactor& r) noexcept : group_(group), reactor_(r) {
      const std::lock_guard lock(group_.mutex_);
      next_member_ = std::exchange(group_.first_, this);
      if (group_.failure_) reactor_.post(*this);
    }
    member(const member&) = delete;
    member& operator=(const member&) = delete;
    ~member() {
      reactor_.withdraw(*this);  // if there was no session, for which it waits
      const std::lock_guard lock(group_.mutex_);
      member** at = &group_.first_;
      while (*at != this) at = &(*at)->next_member_;
      *at = next_member_;
    }

    /// What is to be cancelled when another thread fails; null for nothing any more.
    void cancels(root* main) noexcept { main_ = main; }

   private:
    friend class thread_group;
    void run() noexcept override {
      if (main_ != nullptr) main_->cancel();
    }

    thread_group& group_;
    reactor& reactor_;
    root* main_ = nullptr;
    member* next_member_ = nullptr;
  };

  /// Keeps the first failure, and tells the threads that run, each through its reactor, to cancel.
  void failed(std::exception_ptr why) noexcept {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = std::move(why);
    for (member* each = first_; each != nullptr; each = each->next_member_)
      each->reactor_.post(*each);
  }

  void rethrow_failure() const {
    if (failure_) rethrow(failure_);
  }

  /// What a thread that has not begun yet is to hear.
  const signal_mailbox& signals() const noexcept { return signals_; }

 private:
  signal_mailbox signals_;
  std::mutex mutex_;
  std::exception_ptr failure_;
  member* first_ = nullptr;
};

/// The life of one thread.
template <class Make>
void run_member(thread_group& group, const Make& make) noexcept {
  std::exception_ptr failure = caught([&] {
    const std::unique_ptr<reactor> r = make_reactor();
    thread_group::member known(group, *r);
    const signal_mailbox signals(*r, group.signals());
    const reactor::session session(*r);
    main_root<void> main(make());
    known.cancels(&main);
    while (!main.has_ended()) r->turn();
    known.cancels(nullptr);
    main.take();
  });
  if (failure) group.failed(std::move(failure));
}

}  // namespace detail

/// Runs `fn(args...)`, which gives a task<>, in each of `n` threads, each on a reactor of its own,
/// and returns when all have ended.
///
/// A listener passed by std::ref may be accepted from in all of them; close it after this has
/// returned. Each thread hears of a signal through `signals`, also one that asks for it only after
/// another has had it. What belongs to one reactor (streams, tasks, timers) stays in its thread.
///
/// Errors    the first exception of a thread, after the others were cancelled and have ended.
///           std::invalid_argument when `n` is less than 1; std::logic_error inside a run;
///           std::system_error when a thread cannot be started, or as eventfd(2).
/// Lifetime  `fn` and `args` are shared by the threads and live as long as the call.
/// Thread    any that runs no reactor.
template <class F, class... A>
void run_threads(int n, F&& fn, A&&... args) {
  static_assert(std::is_same_v<detail::given_t<F&, A&...>, task<>>,
                "run_threads takes a function that gives a coax::task<>");
  if (n < 1)
    detail::throw_invalid_argument("coax: run_threads needs at least one thread, not " +
                                   std::to_string(n));
  if (loop::running() != nullptr)
    detail::throw_logic_error("coax: run_threads was called inside run");
  detail::ignore_sigpipe();
  detail::thread_group group;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(n));
  std::exception_ptr failure = detail::caught([&] {
    for (int i = 0; i < n; ++i)
      threads.emplace_back(
          [&] { detail::run_member(group, [&] { return detail::invoke(fn, args...); }); });
  });
  if (failure) group.failed(std::move(failure));
  for (std::thread& each : threads) each.join();
  group.rethrow_failure();
}

}  // namespace coax::inline COAX_ABI
