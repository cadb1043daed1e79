#pragma once

#include <coax/config.hpp>
#include <coax/io/owner.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/wait_queue.hpp>

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>

namespace coax::inline COAX_ABI::detail {

class blocking_wait;

/// Something to be done in a thread of the pool, and what came of it. Posted to the reactor of who
/// waits for it.
///
/// Belongs to who waits until it is done or the wait is given up; then, to who comes last.
class blocking_job : public ready_node, public wait_queue<blocking_job>::place {
 public:
  blocking_job() = default;
  blocking_job(const blocking_job&) = delete;
  blocking_job& operator=(const blocking_job&) = delete;
  virtual ~blocking_job() = default;

  /// Does it, and keeps what it gives or throws. What was given for it is gone afterwards.
  virtual void perform() noexcept = 0;

 private:
  friend class blocking_pool;
  friend class blocking_wait;

  enum class state : std::uint8_t { with_owner, in_line, accepted, done };

  void run() noexcept override { tell(); }
  /// Wakes who waits. Apart for the reason that operation::start_here is.
  void tell() noexcept;

  blocking_wait* waiting_ = nullptr;  // null: given up
  reactor* at_ = nullptr;             // where it is waited for
  state state_ = state::with_owner;
};

/// The threads of the process that do what blocks.
///
/// They are started when there is more to do than threads that are idle, up to a bound, and stay.
/// Nobody waits for them at the end of the process: they are detached, and the pool is never
/// destroyed, so that one that is at work then does no harm and holds nobody up.
///
/// Thread    any.
class blocking_pool {
 public:
  static constexpr std::size_t threads_max = 16;
  /// Jobs that wait for a thread. The next ones wait in line for a place among them.
  static constexpr std::size_t accepted_max = 256;

  /// The pool of this process. A child of a fork has none of its parent's threads, and cannot know
  /// in what state they left their pool: it gets one of its own. Null when there is no memory.
  static blocking_pool* instance() noexcept {
    static constinit std::atomic<blocking_pool*> current{nullptr};
    blocking_pool* known = current.load();
    if (known != nullptr && known->forks_ == forks_so_far()) return known;
    std::unique_ptr<blocking_pool> fresh(new (std::nothrow) blocking_pool);
    if (!current.compare_exchange_strong(known, fresh.get())) return known;
    return fresh.release();
  }

  /// Takes `job` in. Once it is accepted it is going to be done.
  ///
  /// Errors    as pthread_create(3), when there is no thread to do it.
  std::error_code submit(blocking_job& job) noexcept {
    const std::lock_guard lock(mutex_);
    if (accepted_.size() == accepted_max) {
      job.state_ = blocking_job::state::in_line;
      line_.push(job);
      return {};
    }
    accept(job);
    if (accepted_.size() > idle_ && threads_ < threads_max) {
      if (const int failed = start_thread(); failed == 0)
        ++threads_;
      else if (threads_ == 0)
        return accepted_.remove(job), error_of(-failed);
    }
    something_to_do_.notify_one();
    return {};
  }

  enum class given_up : std::uint8_t { too_late, withdrawn, abandoned };

  /// Gives up the wait for `job`: it is done already, it will not be done and belongs to the caller
  /// again, or it will be done for nobody and belongs to the pool.
  given_up give_up(blocking_job& job) noexcept {
    const std::lock_guard lock(mutex_);
    if (job.state_ == blocking_job::state::done) return given_up::too_late;
    job.waiting_ = nullptr;
    if (job.state_ != blocking_job::state::in_line) return given_up::abandoned;
    line_.remove(job);
    return given_up::withdrawn;
  }

 private:
  void accept(blocking_job& job) noexcept {
    job.state_ = blocking_job::state::accepted;
    accepted_.push(job);
  }

  /// The life of a thread.
  void work() noexcept {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      while (accepted_.empty()) something_to_do_.wait(lock);
      --idle_;
      blocking_job& job = *accepted_.pop();
      if (blocking_job* const next = line_.pop()) accept(*next);
      lock.unlock();
      job.perform();
      lock.lock();
      if (job.waiting_ != nullptr) {
        // Under the lock: as long as it is waited for, its reactor is there.
        job.state_ = blocking_job::state::done;
        job.at_->post(job);
      } else {
        lock.unlock();
        delete &job;
        lock.lock();
      }
    }
  }

  /// Signals are for the threads of the program; a fault must still end it where it happens.
  int start_thread() noexcept {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT})
      sigdelset(&all, fault);
    pthread_attr_t detached;
    if (const int failed = ::pthread_attr_init(&detached); failed != 0) return failed;
    ::pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread{};
    const auto life = [](void* pool) -> void* {
      static_cast<blocking_pool*>(pool)->work();
      return nullptr;
    };
    const int failed = ::pthread_create(&thread, &detached, life, this);
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    ::pthread_attr_destroy(&detached);
    return failed;
  }

  const unsigned forks_ = forks_so_far();
  std::mutex mutex_;
  std::condition_variable something_to_do_;
  wait_queue<blocking_job> accepted_;
  wait_queue<blocking_job> line_;
  std::size_t threads_ = 0;
  std::size_t idle_ = 0;
};

}  // namespace coax::inline COAX_ABI::detail
