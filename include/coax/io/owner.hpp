#pragma once

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>

#include <pthread.h>

#include <atomic>
#include <thread>

namespace coax::inline COAX_ABI::detail {

/// How many forks lie between the first process and this one: tells a child from its parent without
/// a system call.
///
/// Thread    any.
inline unsigned forks_so_far() noexcept {
  static constinit std::atomic<unsigned> count{0};
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] { ++count; });
  if (registered != 0) fatal("no memory to be told of a fork");
  return count.load(std::memory_order_relaxed);
}

/// The thread and the process in which something was made, and the only ones that may use it.
class owner {
 public:
  /// In debug builds, ends the program with a message when somebody else is about to use it.
  void check() const noexcept {
#ifndef NDEBUG
    if (thread_ != std::this_thread::get_id())
      fatal(
          "a reactor was used from a thread that is not its own: use it from tasks that run on it; coax::post "
          "is the way in from other threads");
    if (forks_ != forks_so_far())
      fatal(
          "a reactor was used on both sides of a fork: call coax::run in the child, or coax::prefork");
#endif
  }

 private:
  std::thread::id thread_ = std::this_thread::get_id();
  unsigned forks_ = forks_so_far();
};

}  // namespace coax::inline COAX_ABI::detail
