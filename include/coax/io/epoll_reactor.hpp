#pragma once

#include <coax/config.hpp>
#include <coax/io/readiness_reactor.hpp>
#include <coax/io/thread_sanitizer.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/result.hpp>

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
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
    if (!epoll_) detail::throw_system_error({errno, std::system_category()}, "coax: epoll_create1");
  }

  std::string_view backend() const noexcept override { return "epoll"; }

 private:
  static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLPRI == POLLPRI &&
                EPOLLERR == POLLERR && EPOLLHUP == POLLHUP && EPOLLRDHUP == POLLRDHUP);

  static constexpr std::uint32_t stream_events =
      EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
  static constexpr int events_max = 256;  // a turn

  int park(descriptor& d, const operation& op) noexcept override {
    // Once, for both directions. Adding reports what is true now, so no edge is lost before it.
    if (d.owned) return add(d, stream_events);
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
    int count = 0;
    if (!spin(deadline, [&] { return (count = events(clock::time_point::min())) != 0; }))
      count = events(deadline);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events_[static_cast<std::size_t>(i)];
      descriptor* d = descriptors().known(static_cast<int>(event.data.u64 & UINT32_MAX));
      // Of a descriptor that is gone?
      if (d == nullptr || d->generation != event.data.u64 >> 32) continue;
      became_ready(*d, event.events);
    }
  }

  /// Into `events_`. Result: how many.
  int events(std::optional<clock::time_point> deadline) noexcept {
    timespec limit{};
    if (deadline) {
      const clock::duration left =
          *deadline == clock::time_point::min() ? clock::duration::zero() : *deadline - now();
      if (left > clock::duration::zero()) {
        const auto whole = std::chrono::duration_cast<std::chrono::seconds>(left);
        limit.tv_sec = static_cast<time_t>(whole.count());
        limit.tv_nsec = static_cast<long>((left - whole).count());
      }
    }
    system().count_one();
    if (has_pwait2_) {
      // The raw call: the C library has had epoll_pwait2 only since 2.35.
      const long count = ::syscall(SYS_epoll_pwait2, epoll_.get(), events_.data(), events_max,
                                   deadline ? &limit : nullptr, nullptr, 0);
      if (count >= 0) return static_cast<int>(count);
      if (errno != ENOSYS && errno != EPERM) return 0;  // EINTR: the next turn asks again
      has_pwait2_ = false;  // before Linux 5.11, or a container's filter
    }
    int milliseconds = -1;
    if (deadline) {
      // Rounded up: waking early would mean spinning until the deadline.
      constexpr time_t longest = 24 * 60 * 60;
      milliseconds =
          limit.tv_sec >= longest
              ? static_cast<int>(longest * 1000)
              : static_cast<int>(limit.tv_sec * 1000 + (limit.tv_nsec + 999'999) / 1'000'000);
    }
    const int count = ::epoll_wait(epoll_.get(), events_.data(), events_max, milliseconds);
    return count < 0 ? 0 : count;
  }

  static std::uint32_t wanted_by(const operation* op) noexcept {
    return op == nullptr ? 0 : static_cast<std::uint16_t>(op->waits_for());
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
  bool has_pwait2_ = !detail::under_thread_sanitizer;
  std::array<epoll_event, events_max> events_;
};

}  // namespace coax::inline COAX_ABI
