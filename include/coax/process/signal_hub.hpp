#pragma once

#include <coax/config.hpp>
#include <coax/io/operations/poll.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/signal_bits.hpp>
#include <coax/io/standard_fds.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/result.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>
#include <coax/task/wait_queue.hpp>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace coax::inline COAX_ABI::detail {

class signal_awaiter;
class signal_mailbox;

/// Who hears of signals, in all threads of the process, and the handler that catches them.
///
/// The handler notes the signal and wakes the reactors that wait for any; the first to look puts it
/// into the mailbox of every reactor. A signalfd(2) would need every thread of the process to block
/// the signals before the first one comes, and one that does not loses them to the default action;
/// a handler works whichever thread the kernel picks.
///
/// Thread    any.
class signal_hub {
 public:
  /// Errors    std::system_error as eventfd(2), the first time.
  static signal_hub& instance() {
    static signal_hub hub;
    return hub;
  }

  /// Catches `wanted` from now on, and sees to it that `r`, the reactor of this thread, hears of
  /// them.
  ///
  /// Errors    std::system_error as eventfd(2), after a fork; std::bad_alloc.
  void watch_from(reactor& r, signal_bits wanted);

  /// True when one of the signals `waiting` wants is there already.
  bool add(signal_awaiter& waiting) noexcept;
  /// False when a signal is on its way to `waiting`.
  bool remove(signal_awaiter& waiting) noexcept;

  /// In a child of `prefork` the parent counts: of all SIGINT and SIGTERM together only the first
  /// is told. The terminal or the service manager sends one to the child too, and the parent passes
  /// its own on.
  void tell_stop_once() noexcept { stops_left_ = 1; }

 private:
  friend class signal_mailbox;

  static task<> watch(signal_hub& hub, std::unique_ptr<signal_mailbox> own);

  static void caught(int number) noexcept {
    const int error = errno;
    noted_.fetch_or(signal_bit(number));
    const std::uint64_t one = 1;
    static_cast<void>(!::write(wake_fd_, &one, sizeof(one)));
    errno = error;
  }

  signal_hub() { begin_in_this_process(); }

  /// The descriptor stays open as long as the process: a handler may be about to write to it at any
  /// moment. After a fork it, and what is noted, are the parent's.
  void begin_in_this_process() {
    hold_standard_fds();
    const int fresh = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fresh < 0) throw_system_error(error_of(-errno), "coax: eventfd");
    const int inherited = wake_fd_.exchange(fresh);
    if (inherited >= 0) ::close(inherited);
    noted_ = 0;
    untaken_ = 0;
    first_ = nullptr;
    owner_ = ::getpid();
  }

  void catch_signals(signal_bits wanted) noexcept {
    struct sigaction action{};
    action.sa_handler = caught;
    action.sa_flags = SA_RESTART;
    for_each_signal(wanted & ~caught_, [&](int number) {
      ::sigaction(number, &action, &before_[static_cast<std::size_t>(number)]);
    });
    caught_ |= wanted;
  }

  void release_signals() noexcept {
    for_each_signal(std::exchange(caught_, 0), [&](int number) {
      ::sigaction(number, &before_[static_cast<std::size_t>(number)], nullptr);
    });
    hand_round();
    // Nobody took these: as if they came now.
    for_each_signal(std::exchange(untaken_, 0), [](int number) { ::kill(::getpid(), number); });
  }

  void deliver() noexcept {
    const std::lock_guard lock(mutex_);
    std::uint64_t count = 0;
    // Before looking: what comes later wakes us again.
    static_cast<void>(!::read(wake_fd_, &count, sizeof(count)));
    hand_round();
  }

  signal_mailbox* mailbox_of(const reactor& r) const noexcept;
  /// Puts what the handler has noted into the mailboxes.
  void hand_round() noexcept;

  static inline std::atomic<signal_bits> noted_{0};
  static inline std::atomic<int> wake_fd_{-1};

  std::mutex mutex_;
  pid_t owner_ = 0;
  signal_bits caught_ = 0;
  signal_bits untaken_ = 0;  // handed round, and nobody anywhere has taken it yet
  int stops_left_ = -1;      // negative: no limit
  std::array<struct sigaction, signal_max + 1> before_{};
  signal_mailbox* first_ = nullptr;
};

/// What one reactor hears of signals: who waits there, and what came while nobody did.
///
/// Signals are caught as long as there is a mailbox; with the last one they have their former
/// effect again.
class signal_mailbox {
 public:
  /// Of the reactor of this thread, for the signals it asks for.
  explicit signal_mailbox(reactor& r) : signal_mailbox(&r, 0, nullptr) {}
  /// Of nobody yet: keeps all that comes.
  signal_mailbox() : signal_mailbox(nullptr, all, nullptr) {}
  /// Of the reactor of this thread, which has heard no more than what `before` has kept.
  signal_mailbox(reactor& r, const signal_mailbox& before) : signal_mailbox(&r, all, &before) {}
  signal_mailbox(const signal_mailbox&) = delete;
  signal_mailbox& operator=(const signal_mailbox&) = delete;

  ~signal_mailbox() {
    const std::lock_guard lock(hub_.mutex_);
    signal_mailbox** at = &hub_.first_;
    while (*at != nullptr && *at != this) at = &(*at)->next_;
    if (*at == nullptr) return;  // forked meanwhile: it was the parent's
    *at = next_;
    if (hub_.first_ == nullptr) hub_.release_signals();
  }

 private:
  friend class signal_hub;
  static constexpr signal_bits all = ~signal_bits{0};

  signal_mailbox(reactor* r, signal_bits wanted, const signal_mailbox* before)
      : hub_(signal_hub::instance()), at_(r), wanted_(wanted) {
    const std::lock_guard lock(hub_.mutex_);
    if (hub_.owner_ != ::getpid()) hub_.begin_in_this_process();
    if (before != nullptr) kept_ = before->kept_;
    next_ = std::exchange(hub_.first_, this);
  }

  /// True when somebody has waited for it.
  bool put(int number) noexcept;

  signal_hub& hub_;
  reactor* const at_;
  signal_bits wanted_;
  signal_bits kept_ = 0;
  bool watched_ = false;
  wait_queue<signal_awaiter> waiting_;
  signal_mailbox* next_ = nullptr;
};

/// One wait for signals. Told from whichever thread notices the signal, by a post to its own.
class signal_awaiter final : public waiter, public wait_queue<signal_awaiter>::place {
 public:
  explicit signal_awaiter(signal_bits wanted) noexcept : wanted_(wanted) {}
  signal_awaiter(const signal_awaiter&) = delete;
  signal_awaiter& operator=(const signal_awaiter&) = delete;
  ~signal_awaiter() = default;

  int await_resume() const noexcept { return signal_; }
  waiting_for describe() const noexcept override { return {"a signal"}; }

 private:
  friend class signal_hub;
  friend class signal_mailbox;

  class arrival final : public ready_node {
   public:
    explicit arrival(signal_awaiter& waiting) noexcept : waiting_(waiting) {}

   private:
    void run() noexcept override { waiting_.complete(); }
    signal_awaiter& waiting_;
  };

  bool start() noexcept override { return signal_hub::instance().add(*this); }
  void stop() noexcept override {
    if (signal_hub::instance().remove(*this)) stopped();
  }

  signal_bits wanted_;
  int signal_ = 0;
  signal_mailbox* mailbox_ = nullptr;  // that it waits in the queue of
  arrival arrival_{*this};
};

inline bool signal_mailbox::put(int number) noexcept {
  bool told_any = false;
  for (signal_awaiter* at = waiting_.first(); at != nullptr;) {
    signal_awaiter& told = *std::exchange(at, waiting_.behind(*at));
    if ((told.wanted_ & signal_bit(number)) == 0) continue;
    waiting_.remove(told);
    told.mailbox_ = nullptr;
    told.signal_ = number;
    at_->post(told.arrival_);
    told_any = true;
  }
  if (!told_any) kept_ |= wanted_ & signal_bit(number);
  return told_any;
}

inline task<> signal_hub::watch(signal_hub& hub,
                                [[maybe_unused]] std::unique_ptr<signal_mailbox> own) {
  while (true) {
    auto readable = co_await operations::poll(wake_fd_, POLLIN);
    if (!readable) fatal("a reactor cannot wait for signals");
    hub.deliver();
  }
}

inline signal_mailbox* signal_hub::mailbox_of(const reactor& r) const noexcept {
  signal_mailbox* at = first_;
  while (at != nullptr && at->at_ != &r) at = at->next_;
  return at;
}

inline void signal_hub::watch_from(reactor& r, signal_bits wanted) {
  signal_mailbox* box = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (owner_ == ::getpid()) box = mailbox_of(r);
  }
  if (box == nullptr || !box->watched_) {
    std::unique_ptr<signal_mailbox> own;
    if (box == nullptr) own = std::make_unique<signal_mailbox>(r);
    if (own) box = own.get();
    r.serve(watch(*this, std::move(own)));
    box->watched_ = true;
  }
  const std::lock_guard lock(mutex_);
  box->wanted_ |= wanted;
  catch_signals(wanted);
}

inline void signal_hub::hand_round() noexcept {
  for_each_signal(noted_.exchange(0), [this](int number) {
    if (is_stop(number) && stops_left_ >= 0) {
      if (stops_left_ == 0) return;
      --stops_left_;
    }
    untaken_ |= signal_bit(number);
    for (signal_mailbox* box = first_; box != nullptr; box = box->next_)
      if (box->put(number)) untaken_ &= ~signal_bit(number);
  });
}

inline bool signal_hub::add(signal_awaiter& waiting) noexcept {
  const std::lock_guard lock(mutex_);
  signal_mailbox* const box = mailbox_of(reactor::current());
  if (box == nullptr) fatal("a wait for signals was begun on another reactor than it was made on");
  hand_round();
  if (const signal_bits found = (box->kept_ | untaken_) & waiting.wanted_; found != 0) {
    waiting.signal_ = first_signal(found);
    box->kept_ &= ~signal_bit(waiting.signal_);
    untaken_ &= ~signal_bit(waiting.signal_);
    return true;
  }
  waiting.mailbox_ = box;
  box->waiting_.push(waiting);
  return false;
}

inline bool signal_hub::remove(signal_awaiter& waiting) noexcept {
  const std::lock_guard lock(mutex_);
  signal_mailbox* const box = std::exchange(waiting.mailbox_, nullptr);
  if (box != nullptr) box->waiting_.remove(waiting);
  return box != nullptr;
}

}  // namespace coax::inline COAX_ABI::detail
