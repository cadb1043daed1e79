#pragma once

#include "connection.hpp"
#include "pattern.hpp"
#include "sockets.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <vector>

/// Connections that are waited for all at once.
class crowd {
 public:
  explicit crowd(const pattern& bytes) : bytes_(bytes), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

  /// Waits for `c` too, from now on in non-blocking mode. It stays the caller's.
  void watch(connection& c) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.ptr = &c;
    if (::fcntl(c.fd(), F_SETFL, O_NONBLOCK) < 0 ||
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, c.fd(), &event) < 0)
      fail_errno("epoll_ctl");
  }

  /// Waits up to `limit` for replies, and calls `received(connection)` after some bytes of one were
  /// checked.
  template <class Received>
  void wait(const timespec& limit, Received&& received) {
    const long count = ::syscall(SYS_epoll_pwait2, epoll_.get(), events_.data(),
                                 static_cast<int>(events_.size()), &limit, nullptr, 0);
    if (count < 0 && errno != EINTR) fail_errno("epoll_pwait2");
    for (long i = 0; i < count; ++i) {
      const epoll_event& event = events_[static_cast<std::size_t>(i)];
      auto& c = *static_cast<connection*>(event.data.ptr);
      c.send_wanted(bytes_);
      if ((event.events & ~static_cast<std::uint32_t>(EPOLLOUT)) == 0) continue;
      std::size_t got = 0;
      do {
        got = c.receive(bytes_, scratch_);
        if (got > 0) received(c);
      } while (got == scratch_.size());  // less has emptied the socket
    }
  }

 private:
  const pattern& bytes_;
  owned_fd epoll_;
  std::array<epoll_event, 256> events_{};
  std::vector<char> scratch_ = std::vector<char>(64 * 1024);
};
