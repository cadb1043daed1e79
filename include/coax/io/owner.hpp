#pragma once

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>

#include <pthread.h>

#include <atomic>
#include <thread>

namespace coax::inline COAX_ABI::detail {

/// How many forks lie between the first process and this one, as far as they were counted: tells a
/// child from its parent without a system call.
inline constinit std::atomic<unsigned> forks_counted{0};

/// Whether this process has forked: then another may hold what it holds.
inline constinit std::atomic<bool> has_forked{false};

/// Reactors that live in this process.
inline constinit std::atomic<int> reactors_alive{0};

/// `forks_counted`. From the first call on, a fork is noted in all three.
///
/// Thread    any.
inline unsigned forks_so_far() noexcept {
  static const int registered = ::pthread_atfork(
      nullptr, [] { has_forked = true; },
      [] {
        ++forks_counted;
        has_forked = false;
        reactors_alive = 0;  // those are the parent's
      });
  if (registered != 0) fatal("no memory to be told of a fork");
  return forks_counted.load(std::memory_order_relaxed);
}

[[noreturn]] inline void fatal_other_thread() noexcept {
  fatal(
      "a reactor was used from a thread that is not its own: use it from tasks that run on it; coax::post "
      "is the way in from other threads");
}

/// The thread and the process in which something was made, and the only ones that may use it.
///
/// In debug builds, a check ends the program with a message when somebody else is about to use it.
class owner {
 public:
  owner() noexcept { ++reactors_alive; }
  owner(const owner&) = delete;
  owner& operator=(const owner&) = delete;
  ~owner() {
    if (in_this_process()) --reactors_alive;
  }

  /// False in the child of a fork, which has copies of what is its parent's.
  bool in_this_process() const noexcept {
    return forks_ == forks_counted.load(std::memory_order_relaxed);
  }

  void check() const noexcept {
#ifndef NDEBUG
    if (thread_ != std::this_thread::get_id()) fatal_other_thread();
    check_process();
#endif
  }

  void check_process() const noexcept {
#ifndef NDEBUG
    if (!in_this_process())
      fatal(
          "a reactor was used on both sides of a fork: call coax::run in the child, or coax::prefork");
#endif
  }

 private:
  std::thread::id thread_ = std::this_thread::get_id();
  unsigned forks_ = forks_so_far();
};

}  // namespace coax::inline COAX_ABI::detail
