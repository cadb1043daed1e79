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
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <concepts>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

namespace detail {

class signal_awaiter;

/// Signals as bits: signal n is bit n - 1.
using signal_bits = std::uint64_t;
inline constexpr int signal_max = 64;
constexpr signal_bits signal_bit(int number) noexcept { return signal_bits{1} << (number - 1); }

/// Who waits for signals, in all threads of the process, and the handler that catches them.
///
/// The handler notes the signal and wakes the reactors that wait for any; the first to look tells
/// everybody who waits for that signal, each in its own thread. What nobody waits for stays noted
/// for the next who does. A signalfd(2) would need every thread of the process to block the signals
/// before the first one comes, and one that does not loses them to the default action; a handler
/// works whichever thread the kernel picks.
///
/// Thread    any.
class signal_hub {
 public:
  /// Errors    std::system_error as eventfd(2), the first time.
  static signal_hub& instance() {
    static signal_hub hub;
    return hub;
  }

  /// Catches `wanted` from now on, and sees to it that `r`, the reactor of this thread, learns of
  /// them.
  ///
  /// Errors    std::system_error as eventfd(2), after a fork; std::bad_alloc.
  void watch_from(reactor& r, signal_bits wanted) {
    if (begin_to_watch(r)) r.serve(watch(*this, watch_ends(*this, r)));
    const std::lock_guard lock(mutex_);
    catch_signals(wanted);
  }

  /// True when one of the signals `waiting` wants is there already.
  bool add(signal_awaiter& waiting) noexcept;
  /// False when a signal is on its way to `waiting`.
  bool remove(signal_awaiter& waiting) noexcept;

  /// In a child of `prefork` the parent counts: of all SIGINT and SIGTERM together only the first
  /// is told. The terminal or the service manager sends one to the child too, and the parent passes
  /// its own on.
  void tell_stop_once() noexcept { stops_left_ = 1; }

 private:
  /// The watch of one reactor ends with its run; with the last one the signals have their former
  /// effect again. A parameter of the watching task, which may be destroyed before it has begun.
  class watch_ends {
   public:
    watch_ends(signal_hub& hub, reactor& r) noexcept : hub_(hub), reactor_(&r) {}
    watch_ends(watch_ends&& other) noexcept
        : hub_(other.hub_), reactor_(std::exchange(other.reactor_, nullptr)) {}
    watch_ends& operator=(watch_ends&&) = delete;
    ~watch_ends() {
      if (reactor_ == nullptr) return;
      const std::lock_guard lock(hub_.mutex_);
      std::erase(hub_.watching_, reactor_);
      if (hub_.watching_.empty()) hub_.release_signals();
    }

   private:
    signal_hub& hub_;
    reactor* reactor_;
  };

  /// False when `r` watches already.
  bool begin_to_watch(reactor& r) {
    const std::lock_guard lock(mutex_);
    if (owner_ != ::getpid()) begin_in_this_process();
    if (std::find(watching_.begin(), watching_.end(), &r) != watching_.end()) return false;
    watching_.push_back(&r);
    return true;
  }

  static task<> watch(signal_hub& hub, watch_ends) {
    while (true) {
      auto readable = co_await operations::poll(wake_fd_, POLLIN);
      if (!readable) fatal("a reactor cannot wait for signals");
      hub.deliver();
    }
  }

  static void caught(int number) noexcept {
    const int error = errno;
    pending_.fetch_or(signal_bit(number));
    const std::uint64_t one = 1;
    static_cast<void>(!::write(wake_fd_, &one, sizeof(one)));
    errno = error;
  }

  signal_hub() { begin_in_this_process(); }

  /// The descriptor stays open as long as the process: a handler may be about to write to it at any
  /// moment. After a fork it, and what is noted, are the parent's.
  void begin_in_this_process() {
    const int fresh = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fresh < 0) throw_system_error({errno, std::system_category()}, "coax: eventfd");
    const int inherited = wake_fd_.exchange(fresh);
    if (inherited >= 0) ::close(inherited);
    pending_ = 0;
    watching_.clear();
    first_ = nullptr;
    owner_ = ::getpid();
  }

  void catch_signals(signal_bits wanted) noexcept {
    for (int number = 1; number <= signal_max; ++number) {
      if ((wanted & ~caught_ & signal_bit(number)) == 0) continue;
      struct sigaction action{};
      action.sa_handler = caught;
      action.sa_flags = SA_RESTART;
      ::sigaction(number, &action, &before_[static_cast<std::size_t>(number)]);
    }
    caught_ |= wanted;
  }

  void release_signals() noexcept {
    for (int number = 1; number <= signal_max; ++number)
      if ((caught_ & signal_bit(number)) != 0)
        ::sigaction(number, &before_[static_cast<std::size_t>(number)], nullptr);
    caught_ = 0;
    const signal_bits left = pending_.exchange(0);
    for (int number = 1; number <= signal_max; ++number)
      if ((left & signal_bit(number)) != 0)
        ::kill(::getpid(), number);  // nobody took it: as if it came now
  }

  void deliver() noexcept;
  /// The first of `wanted` that is noted, no longer noted then; 0 for none.
  int take(signal_bits wanted) noexcept;

  static inline std::atomic<signal_bits> pending_{0};
  static inline std::atomic<int> wake_fd_{-1};

  std::mutex mutex_;
  pid_t owner_ = 0;
  signal_bits caught_ = 0;
  int stops_left_ = -1;  // negative: no limit
  std::array<struct sigaction, signal_max + 1> before_{};
  signal_awaiter* first_ = nullptr;
  std::vector<const reactor*> watching_;
};

/// One wait for signals. Told from whichever thread notices the signal, by a post to its own.
class signal_awaiter final : public waiter {
 public:
  explicit signal_awaiter(signal_bits wanted) noexcept : wanted_(wanted) {}
  signal_awaiter(const signal_awaiter&) = delete;
  signal_awaiter& operator=(const signal_awaiter&) = delete;
  ~signal_awaiter() = default;

  int await_resume() const noexcept { return signal_; }
  waiting_for describe() const noexcept override { return {"a signal"}; }

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
    return signal_hub::instance().add(*this);
  }
  void stop() noexcept override {
    if (signal_hub::instance().remove(*this)) stopped();
  }

  signal_bits wanted_;
  int signal_ = 0;
  bool listed_ = false;
  reactor* at_ = nullptr;
  signal_awaiter* next_ = nullptr;
  arrival arrival_{*this};
};

inline int signal_hub::take(signal_bits wanted) noexcept {
  constexpr signal_bits stops = signal_bit(SIGINT) | signal_bit(SIGTERM);
  if (stops_left_ == 0) pending_.fetch_and(~stops);
  const signal_bits found = pending_ & wanted;
  if (found == 0) return 0;
  const int number = std::countr_zero(found) + 1;
  pending_.fetch_and(~signal_bit(number));
  if (stops_left_ > 0 && (signal_bit(number) & stops) != 0) --stops_left_;
  return number;
}

inline bool signal_hub::add(signal_awaiter& waiting) noexcept {
  const std::lock_guard lock(mutex_);
  waiting.signal_ = take(waiting.wanted_);
  if (waiting.signal_ != 0) return true;
  waiting.next_ = first_;
  waiting.listed_ = true;
  first_ = &waiting;
  return false;
}

inline bool signal_hub::remove(signal_awaiter& waiting) noexcept {
  const std::lock_guard lock(mutex_);
  if (!waiting.listed_) return false;
  signal_awaiter** at = &first_;
  while (*at != &waiting) at = &(*at)->next_;
  *at = waiting.next_;
  waiting.listed_ = false;
  return true;
}

inline void signal_hub::deliver() noexcept {
  const std::lock_guard lock(mutex_);
  std::uint64_t count = 0;
  // Before looking: what comes later wakes us again.
  static_cast<void>(!::read(wake_fd_, &count, sizeof(count)));
  while (true) {
    signal_bits wanted = 0;
    for (const signal_awaiter* at = first_; at != nullptr; at = at->next_) wanted |= at->wanted_;
    const int number = take(wanted);
    if (number == 0) return;
    for (signal_awaiter** at = &first_; *at != nullptr;) {
      signal_awaiter& told = **at;
      if ((told.wanted_ & signal_bit(number)) == 0) {
        at = &told.next_;
        continue;
      }
      *at = told.next_;
      told.listed_ = false;
      told.signal_ = number;
      told.at_->post(told.arrival_);
    }
  }
}

inline task<int> wait_for_signal(signal_bits wanted) {
  const int number = co_await signal_awaiter(wanted);
  co_return number;
}

}  // namespace detail

/// Which signals to wait for: `{SIGINT, SIGTERM}`.
///
/// Errors    std::invalid_argument for a number that is no signal, or that cannot be caught
///           (SIGKILL, SIGSTOP) or must not be (SIGSEGV and the other faults).
class signal_set {
 public:
  // No std::initializer_list: g++ 12 does not compile one that stands inside a co_await expression.
  template <std::same_as<int>... Number>
    requires(sizeof...(Number) > 0)
  signal_set(Number... numbers) {
    (add(numbers), ...);
  }

  detail::signal_bits bits() const noexcept { return bits_; }

 private:
  void add(int number) {
    const bool fault =
        number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL;
    sigset_t probe;
    sigemptyset(&probe);
    // The C library keeps some numbers for itself; sigaddset knows.
    if (number == SIGKILL || number == SIGSTOP || fault || sigaddset(&probe, number) != 0)
      detail::throw_invalid_argument("coax: signals cannot wait for signal " +
                                     std::to_string(number));
    bits_ |= detail::signal_bit(number);
  }

  detail::signal_bits bits_ = 0;
};

/// Waits for one of `wanted`.
///
/// Everybody who waits for a signal when it comes is told, in every thread. From this call on until
/// the run ends the signals no longer have their usual effect: one that comes while nobody waits is
/// kept for the next who does, and one that nobody took has its usual effect at the end of the run.
/// They are unblocked in this thread.
///
/// Result    the signal's number.
/// Errors    std::system_error as eventfd(2), from this call.
/// Thread    a reactor's.
inline task<int> signals(signal_set wanted) {
  if (auto own = reactor::current().own_signals(wanted.bits())) return std::move(*own);
  detail::signal_hub::instance().watch_from(reactor::current(), wanted.bits());
  sigset_t set;
  sigemptyset(&set);
  for (int number = 1; number <= detail::signal_max; ++number)
    if ((wanted.bits() & detail::signal_bit(number)) != 0) sigaddset(&set, number);
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  return detail::wait_for_signal(wanted.bits());
}

}  // namespace coax::inline COAX_ABI
