#pragma once

#include <coax/config.hpp>
#include <coax/io/operations/poll.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/result.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <csignal>
#include <mutex>
#include <string>
#include <system_error>
#include <vector>

namespace coax::inline COAX_ABI {

namespace detail {

class signal_awaiter;

/// Who waits for signals, in all threads of the process, and the one signalfd(2) they come through.
///
/// Two such descriptors would share the signals out between them. With one, whoever reads a signal tells everybody who
/// waits for it. Its mask is what is waited for just now: other signals stay pending in the kernel.
///
/// Thread    any.
class signal_hub {
 public:
  static signal_hub& instance() {
    static signal_hub hub;
    return hub;
  }

  /// Sees to it that `r`, the reactor of this thread, reads the signals.
  ///
  /// Errors    std::system_error as signalfd(2); std::bad_alloc.
  void watch_from(reactor& r) {
    const std::lock_guard lock(mutex_);
    if (owner_ != ::getpid()) {  // after a fork the old descriptor is still the parent's
      fd_.reset();
      watching_.clear();
      owner_ = ::getpid();
    }
    if (!fd_) {
      sigset_t none;
      sigemptyset(&none);
      fd_.reset(::signalfd(-1, &none, SFD_CLOEXEC | SFD_NONBLOCK));
      if (!fd_) throw_system_error({errno, std::system_category()}, "coax: signalfd");
    }
    if (std::find(watching_.begin(), watching_.end(), &r) != watching_.end()) return;
    watching_.push_back(&r);
    r.serve(watch(*this, r));
  }

  void add(signal_awaiter& waiting) noexcept;
  /// False when a signal is on its way to `waiting` already.
  bool remove(signal_awaiter& waiting) noexcept;

 private:
  /// The watch of one reactor ends with its run.
  class watch_ends {
   public:
    watch_ends(signal_hub& hub, reactor& r) noexcept : hub_(hub), reactor_(r) {}
    watch_ends(const watch_ends&) = delete;
    watch_ends& operator=(const watch_ends&) = delete;
    ~watch_ends() {
      const std::lock_guard lock(hub_.mutex_);
      std::erase(hub_.watching_, &reactor_);
    }

   private:
    signal_hub& hub_;
    reactor& reactor_;
  };

  static task<> watch(signal_hub& hub, reactor& r) {
    const watch_ends guard(hub, r);
    while (true) {
      auto readable = co_await operations::poll(hub.fd_.get(), POLLIN);
      if (!readable) fatal("a reactor cannot wait for signals");
      hub.deliver();
    }
  }

  void deliver() noexcept;
  void set_mask() noexcept;

  std::mutex mutex_;
  pid_t owner_ = -1;
  unique_fd fd_;
  signal_awaiter* first_ = nullptr;
  std::vector<const reactor*> watching_;
};

/// One wait for signals. Told from whichever thread reads the signal, by a post to its own.
class signal_awaiter final : public waiter {
 public:
  explicit signal_awaiter(const sigset_t& wanted) noexcept : wanted_(wanted) {}
  signal_awaiter(const signal_awaiter&) = delete;
  signal_awaiter& operator=(const signal_awaiter&) = delete;
  ~signal_awaiter() = default;

  int await_resume() const noexcept { return signal_; }

 private:
  friend class signal_hub;

  class arrival final : public ready_node {
   public:
    explicit arrival(signal_awaiter& waiting) noexcept : waiting_(waiting) {}

   private:
    void run() noexcept override { waiting_.complete(); }
    signal_awaiter& waiting_;
  };

  bool start() noexcept override {
    at_ = &reactor::current();
    signal_hub::instance().add(*this);
    return false;
  }
  void stop() noexcept override {
    if (signal_hub::instance().remove(*this)) stopped();
  }

  sigset_t wanted_;
  int signal_ = 0;
  bool listed_ = false;
  reactor* at_ = nullptr;
  signal_awaiter* next_ = nullptr;
  arrival arrival_{*this};
};

inline void signal_hub::add(signal_awaiter& waiting) noexcept {
  const std::lock_guard lock(mutex_);
  waiting.next_ = first_;
  waiting.listed_ = true;
  first_ = &waiting;
  set_mask();
}

inline bool signal_hub::remove(signal_awaiter& waiting) noexcept {
  const std::lock_guard lock(mutex_);
  if (!waiting.listed_) return false;
  signal_awaiter** at = &first_;
  while (*at != &waiting) at = &(*at)->next_;
  *at = waiting.next_;
  waiting.listed_ = false;
  set_mask();
  return true;
}

inline void signal_hub::deliver() noexcept {
  const std::lock_guard lock(mutex_);
  signalfd_siginfo info{};
  while (::read(fd_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    const int number = static_cast<int>(info.ssi_signo);
    for (signal_awaiter** at = &first_; *at != nullptr;) {
      signal_awaiter& told = **at;
      if (sigismember(&told.wanted_, number) != 1) {
        at = &told.next_;
        continue;
      }
      *at = told.next_;
      told.listed_ = false;
      told.signal_ = number;
      told.at_->post(told.arrival_);
    }
    set_mask();  // after each: a second signal that nobody waits for any more stays pending
  }
}

inline void signal_hub::set_mask() noexcept {
  sigset_t all;
  sigemptyset(&all);
  for (const signal_awaiter* at = first_; at != nullptr; at = at->next_)
    for (int number = 1; number < _NSIG; ++number)
      if (sigismember(&at->wanted_, number) == 1) sigaddset(&all, number);
  ::signalfd(fd_.get(), &all, 0);
}

inline task<int> wait_for_signal(sigset_t wanted) {
  signal_hub::instance().watch_from(reactor::current());
  const int number = co_await signal_awaiter(wanted);
  co_return number;
}

}  // namespace detail

/// Which signals to wait for: `{SIGINT, SIGTERM}`.
///
/// Errors    std::invalid_argument for a number that is no signal, or that cannot be waited for (SIGKILL, SIGSTOP) or
///           must not be (SIGSEGV and the other faults).
class signal_set {
 public:
  // No std::initializer_list: g++ 12 does not compile one that stands inside a co_await expression.
  template <std::same_as<int>... Number>
    requires(sizeof...(Number) > 0)
  signal_set(Number... numbers) {
    sigemptyset(&set_);
    (add(numbers), ...);
  }

  const sigset_t& get() const noexcept { return set_; }

 private:
  void add(int number) {
    const bool fault = number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL;
    if (number == SIGKILL || number == SIGSTOP || fault || sigaddset(&set_, number) != 0)
      detail::throw_invalid_argument("coax: signals cannot wait for signal " + std::to_string(number));
  }

  sigset_t set_;
};

/// Waits for one of `wanted`.
///
/// Everybody who waits for a signal when it comes is told, in every thread. From this call on the signals are blocked in
/// this thread, so that one that comes while nobody waits is kept for the next who does; `run` restores the mask. Other
/// threads must block them too: block them before threads are started. A child process that is to be replaced by exec
/// inherits the mask.
///
/// Result    the signal's number.
/// Errors    std::system_error as signalfd(2).
inline task<int> signals(signal_set wanted) {
  ::pthread_sigmask(SIG_BLOCK, &wanted.get(), nullptr);
  return detail::wait_for_signal(wanted.get());
}

}  // namespace coax::inline COAX_ABI
