#pragma once

#include <coax/config.hpp>
#include <coax/io/readiness_reactor.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/exceptions.hpp>

#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace coax::inline COAX_ABI {

/// The reactor over epoll(7).
class epoll_reactor final : public readiness_reactor {
 public:
  /// Errors    std::system_error when there is no descriptor left.
  explicit epoll_reactor(syscalls& calls = syscalls::kernel())
      : readiness_reactor(calls), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (!epoll_) detail::throw_system_error(detail::error_of(-errno), "coax: epoll_create1");
    alarm_fd_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    // By its edge, so that it need not be read.
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = of_alarm;
    if (!alarm_fd_) detail::throw_system_error(detail::error_of(-errno), "coax: timerfd_create");
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, alarm_fd_.get(), &event) < 0)
      detail::throw_system_error(detail::error_of(-errno), "coax: epoll_ctl");
  }

  std::string_view backend() const noexcept override { return "epoll"; }

 private:
  static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLPRI == POLLPRI &&
                EPOLLERR == POLLERR && EPOLLHUP == POLLHUP && EPOLLRDHUP == POLLRDHUP);

  static constexpr std::uint32_t stream_events =
      EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
  static constexpr std::uint64_t of_alarm = UINT64_MAX;

  int park(descriptor& d, const operation& op) noexcept override {
    // Once, for both directions. Adding reports what is true now, so no edge is lost before it.
    if (d.owned) return d.registered ? 0 : add(d, stream_events);
    if (op.watched_as() == watching::shared) {
      // EXCLUSIVE wakes one of the processes that wait, not all. It can be added and deleted, not
      // modified.
      if (d.registered) return 0;
      return add(d, EPOLLIN | EPOLLEXCLUSIVE);
    }
    // The number may stand for another file than last time, and the registration be gone with the
    // old one.
    ++d.generation;
    const std::uint32_t wanted = wanted_by(d.reader) | wanted_by(d.writer) | EPOLLONESHOT;
    const int modified = control(EPOLL_CTL_MOD, d, wanted);
    return modified == -ENOENT ? control(EPOLL_CTL_ADD, d, wanted) : modified;
  }

  void forget(descriptor& d) noexcept override {
    if (!d.registered) return;
    d.registered = false;
    control(EPOLL_CTL_DEL, d, 0);
  }

  void wait(std::optional<clock::time_point> deadline) noexcept override {
    const bool may_sleep = deadline != clock::time_point::min();
    if (may_sleep) set_alarm(deadline);
    if (!spin(deadline, [this] { return look(0); })) look(may_sleep ? -1 : 0);
    for (int i = 0; i < count_; ++i) {
      const epoll_event& event = events_[static_cast<std::size_t>(i)];
      if (event.data.u64 == of_alarm) {
        alarm_went_off();
        continue;
      }
      descriptor* d = descriptors().known(static_cast<int>(event.data.u64 & UINT32_MAX));
      // Of a descriptor that is gone?
      if (d == nullptr || d->generation != event.data.u64 >> 32) continue;
      became_ready(*d, event.events);
    }
  }

  /// Takes what there is; without anything, waits for so many milliseconds, -1 for ever.
  bool look(int milliseconds) noexcept {
    system().count_one();
    count_ =
        ::epoll_wait(epoll_.get(), events_.data(), static_cast<int>(reports_max), milliseconds);
    if (count_ < 0 && errno != EINTR) fatal_no_wait("epoll_wait", errno);
    // Interrupted, perhaps by a stop of the process: it says nothing of what has come meanwhile.
    if (count_ < 0 && milliseconds != 0) return look(0);
    return count_ > 0;
  }

  /// Sees to it that a wait ends at `deadline`.
  void set_alarm(std::optional<clock::time_point> deadline) noexcept {
    if (!needs_alarm(deadline)) return;
    itimerspec at{};
    at.it_value = alarm_time<timespec>(*deadline);
    system().count_one();
    ::timerfd_settime(alarm_fd_.get(), TFD_TIMER_ABSTIME, &at, nullptr);
    alarm_is_set(*deadline);
  }

  int add(descriptor& d, std::uint32_t events) noexcept {
    int answer = control(EPOLL_CTL_ADD, d, events);
    if (answer == -EEXIST) {
      // Left by a wait from when it was borrowed. That one is disarmed: it must not pass for this.
      control(EPOLL_CTL_DEL, d, 0);
      answer = control(EPOLL_CTL_ADD, d, events);
    }
    d.registered = answer == 0;
    return answer;
  }

  int control(int what, const descriptor& d, std::uint32_t events) noexcept {
    epoll_event event{};
    event.events = events;
    event.data.u64 = std::uint64_t{d.generation} << 32 | static_cast<std::uint32_t>(d.fd);
    system().count_one();
    return ::epoll_ctl(epoll_.get(), what, d.fd, &event) < 0 ? -errno : 0;
  }

  unique_fd epoll_;
  unique_fd alarm_fd_;
  int count_ = 0;  // of `events_`
  std::array<epoll_event, reports_max> events_;
};

}  // namespace coax::inline COAX_ABI
