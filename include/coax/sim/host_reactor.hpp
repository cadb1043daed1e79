#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>
#include <coax/io/completion_reactor.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/readiness_reactor.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/file.hpp>
#include <coax/sim/kernel.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/task.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <iterator>
#include <list>
#include <optional>
#include <string_view>
#include <utility>

namespace coax::inline COAX_ABI::sim {

/// What the reactor of a host needs to know of it.
class host_services {
 public:
  virtual clock::time_point now() const noexcept = 0;
  virtual task<int> wait_for_signal(coax::detail::signal_bits wanted) = 0;

 protected:
  host_services() = default;
  host_services(const host_services&) = default;
  host_services& operator=(const host_services&) = default;
  ~host_services() = default;
};

/// A reactor as a world drives it, whichever way its operations end.
class driven_loop {
 public:
  virtual ~driven_loop() = default;
  virtual reactor& as_reactor() noexcept = 0;
  /// Something can run without time passing.
  virtual bool has_work() noexcept = 0;
  virtual std::optional<clock::time_point> next_timer() noexcept = 0;
  /// Calls `action` as if from a task of this host.
  virtual void inside(const std::function<void()>& action) = 0;

 protected:
  driven_loop() = default;
  driven_loop(const driven_loop&) = default;
  driven_loop& operator=(const driven_loop&) = default;
};

/// What both kinds have in common. `Base` is the reactor to build on.
template <class Base>
class host_reactor : public Base, public driven_loop {
 public:
  reactor& as_reactor() noexcept final { return *this; }
  bool has_work() noexcept final {
    const std::optional<clock::time_point> timer = next_timer();
    return !this->would_wait() || kernel_.has_events() || asks_kernel() ||
           (timer && *timer <= now());
  }
  std::optional<clock::time_point> next_timer() noexcept final { return this->next_deadline(); }
  void inside(const std::function<void()>& action) final {
    const typename Base::running_here guard(*this);
    action();
  }

  clock::time_point now() const noexcept final { return services_.now(); }
  void wake() noexcept final { kernel_.wake(); }
  std::string_view backend() const noexcept final { return "simulation"; }
  bool runs_blocking_inline() const noexcept final { return true; }
  std::optional<task<int>> own_signals(coax::detail::signal_bits wanted) final {
    return services_.wait_for_signal(wanted);
  }

 protected:
  host_reactor(host_services& services, kernel& calls)
      : Base(calls, services.now()), services_(services), kernel_(calls) {}

  virtual bool asks_kernel() const noexcept { return false; }

  host_services& services_;
  kernel& kernel_;
};

/// As over epoll: the task's call is made once it may succeed.
class readiness_host final : public host_reactor<readiness_reactor> {
 public:
  readiness_host(host_services& services, kernel& calls, const options& how)
      : host_reactor(services, calls) {
    if (how.short_io > 0) short_reads_leave_more();
  }

 private:
  int park(descriptor& d, const operation& op) noexcept override {
    constexpr unsigned stream_events = POLLIN | POLLOUT | POLLRDHUP | POLLPRI;
    if (d.owned || op.watched_as() == watching::shared) {
      if (d.registered) return 0;
      const int answer = d.owned ? kernel_.watch(d.fd, stream_events, file::report::at_change)
                                 : kernel_.watch(d.fd, POLLIN, file::report::while_true);
      d.registered = answer == 0;
      return answer;
    }
    return kernel_.watch(d.fd, wanted_by(d.reader) | wanted_by(d.writer), file::report::once);
  }

  void forget(descriptor& d) noexcept override {
    if (!d.registered) return;
    d.registered = false;
    kernel_.unwatch(d.fd);
  }

  void wait(std::optional<clock::time_point>) noexcept override {
    for (const kernel::event& e : kernel_.take_events()) {
      descriptor* d = descriptors().known(e.fd);
      if (d != nullptr) became_ready(*d, e.events);
    }
  }
};

/// As over io_uring: the kernel makes the call, when nobody looks, and its result waits to be
/// reaped. So an operation can have succeeded although it was asked to stop, and does not know yet.
///
/// Results are reaped in the order in which they came about: what one call has taken from a socket,
/// an error as well as bytes, another cannot be seen to miss before that.
///
/// There is a multishot receive for `stream::receive`. It may end after any message, and does when
/// it finds none of the few buffers the kernel has been given.
class ring_host final : public host_reactor<completion_reactor> {
 public:
  ring_host(host_services& services, kernel& calls, engine& e)
      : host_reactor(services, calls), engine_(e) {}

 private:
  // Few, so that they run out: in a turn, and when the program keeps what it has received. Enough
  // of the latter for more than a descriptor may hold that nobody asks for.
  static constexpr std::size_t provided_max = 6;
  static constexpr std::size_t buffers_max = 18;
  static constexpr double ends_unasked = 0.125;

  /// An operation the kernel has; or, without one, a multishot receive.
  struct entry {
    operation* op;
    int fd;
    std::uint64_t key = 0;
    bool begun = false;
    bool cancelled = false;  // asked to give up, after it was submitted
  };
  struct completed {
    operation* op;
    std::uint64_t key;
    int answer;
    coax::detail::buffer* filled = nullptr;
    bool last = true;
    bool postponed = false;  // it, and what came after it, was left for another turn
  };

  bool submit(operation& op) noexcept override {
    if (served_by_multishot(op)) return false;
    if (op.tries_first() != operation::first_try::never && call(op) == progress::ended) return true;
    put_into_kernel(op);
    return false;
  }

  void put_into_kernel(operation& op) noexcept override { submitted_.push(op); }

  void cancel(operation& op) noexcept override {
    if (left_multishot(op)) return given_up(op);
    // Queued behind the submission: the kernel sees both at the next turn, in this order.
    if (submitted_.remove(op)) in_kernel_.push_back({&op, op.fd()});
    for (entry& e : in_kernel_)
      if (e.op == &op) ask_to_give_up(e);
  }

  bool arm_multishot(const descriptor& d) noexcept override {
    if (buffers() == nullptr) return false;
    provide();
    if (provided_ == 0) return false;
    in_kernel_.push_back({nullptr, d.fd, key_of(d)});
    return true;
  }
  void cancel_multishot(std::uint64_t key) noexcept override {
    for (entry& e : in_kernel_)
      if (e.op == nullptr && e.key == key) ask_to_give_up(e);
  }
  void ask_to_give_up(entry& e) noexcept {
    if (!std::exchange(e.cancelled, true)) ++cancels_;
  }

  /// The kernel takes buffers as it needs them, as if they had been lying there.
  void provide() noexcept {
    const std::size_t used = buffers_in_use();
    provided_ = used < buffers_max ? std::min(provided_max, buffers_max - used) : 0;
  }

  void poll(std::optional<clock::time_point>) noexcept override {
    provide();
    while (!submitted_.empty()) {
      auto* op = static_cast<operation*>(submitted_.pop());
      in_kernel_.push_back({op, op->fd()});
    }
    auto first_new = in_kernel_.end();
    while (first_new != in_kernel_.begin() && !std::prev(first_new)->begun) --first_new;
    attempt_each(first_new, [](entry& e) { return e.begun = true; });
    // A cancellation races with what the operation waits for.
    if (cancels_ != 0 && engine_.decide.choose(2) != 0) cancel_pending();
    for (const kernel::event& event : kernel_.take_events())
      attempt_each(in_kernel_.begin(), [&](const entry& e) { return e.fd == event.fd; });
    cancel_pending();
    reap();
  }

  bool asks_kernel() const noexcept override {
    if (!submitted_.empty() || !completed_.empty() || cancels_ != 0) return true;
    return !in_kernel_.empty() && !in_kernel_.back().begun;  // those not begun are the last
  }

  void cancel_pending() noexcept {
    if (std::exchange(cancels_, 0) == 0) return;
    in_kernel_.remove_if([this](const entry& e) {
      if (e.cancelled) completed_.push_back({e.op, e.key, -ECANCELED});
      return e.cancelled;
    });
  }

  /// Makes the call of each from `at` on that `is_due`; one that has to wait is watched.
  template <class IsDue>
  void attempt_each(std::list<entry>::iterator at, IsDue&& is_due) noexcept {
    while (at != in_kernel_.end()) {
      const bool has_ended = is_due(*at) && (at->op != nullptr ? performs(*at) : receives(*at));
      if (has_ended && at->cancelled) --cancels_;
      at = has_ended ? in_kernel_.erase(at) : std::next(at);
    }
  }
  /// True when the kernel is done with it.
  bool performs(const entry& e) noexcept {
    const int answer = e.op->perform(system());
    if (answer == -EAGAIN) return cannot_wait(e);
    completed_.push_back({e.op, e.key, answer});
    return true;
  }
  bool receives(const entry& e) noexcept {
    while (true) {
      // It looks for a buffer before it looks whether there is something to receive.
      coax::detail::buffer* into = provided_ == 0 ? nullptr : buffers()->take();
      const int answer =
          into == nullptr
              ? -ENOBUFS
              : kernel_.recv(e.fd, into->data(), coax::detail::buffer::bytes_max, MSG_DONTWAIT);
      if (answer > 0) {
        --provided_;
      } else if (into != nullptr) {
        into->release();
        into = nullptr;
      }
      if (answer == -EAGAIN) return cannot_wait(e);
      const bool last = answer <= 0 || engine_.decide.chance(ends_unasked);
      completed_.push_back({nullptr, e.key, answer, into, last});
      if (last) return true;
    }
  }
  bool cannot_wait(const entry& e) noexcept {
    unsigned wanted = 0;
    for (const entry& each : in_kernel_) {
      if (each.fd != e.fd) continue;
      const short events = each.op != nullptr ? each.op->waits_for() : interest::readable;
      wanted |= static_cast<std::uint16_t>(events);
    }
    const int failed = kernel_.watch(e.fd, wanted, file::report::once);
    if (failed < 0) completed_.push_back({e.op, e.key, failed});
    return failed < 0;
  }

  void reap() noexcept {
    while (!completed_.empty()) {
      completed& first = completed_.front();
      if (!first.postponed && engine_.decide.choose(2) != 0) {
        first.postponed = true;
        return;
      }
      const completed done = first;
      completed_.pop_front();
      if (done.op != nullptr)
        reaped(*done.op, done.answer);
      else
        delivered(done.key, done.answer, done.filled, done.last);
    }
  }

  void reaped(operation& op, int answer) noexcept {
    const descriptor* d = descriptors().known(op.fd());
    const bool gives_up = op.stop_requested() || (d != nullptr && d->closing);
    if (answer == -ECANCELED && gives_up) return given_up(op);
    if (answer != -EINTR && take(op, answer)) return ended(op);
    if (gives_up) return given_up(op);
    queue(op);
  }

  engine& engine_;
  ready_queue submitted_;
  std::list<entry> in_kernel_;
  std::size_t cancels_ = 0;  // of these, asked to give up
  std::deque<completed> completed_;
  std::size_t provided_ = 0;
};

}  // namespace coax::inline COAX_ABI::sim
