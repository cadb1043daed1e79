#pragma once

#include <coax/config.hpp>
#include <coax/io/operations/accept.hpp>
#include <coax/io/operations/poll.hpp>
#include <coax/io/operations/read.hpp>
#include <coax/io/operations/write.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/task.hpp>

#include <poll.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

/// Waiting on a descriptor that is not coax's: a pipe, a terminal, a device, a library's socket.
///
/// The descriptor is borrowed: coax neither closes it nor changes its mode. One reader and one
/// writer may wait on it at a time; another gets std::errc::device_or_resource_busy. It must stay
/// open until the wait has ended.

namespace coax::inline COAX_ABI {

/// Accepts one connection from a listening socket. Other processes may accept from it too if it is
/// in non-blocking mode.
///
/// Result    the connection's descriptor, close-on-exec.
/// Errors    as accept(2).
[[nodiscard]] inline operations::accept accept(int fd) noexcept { return operations::accept(fd); }

/// Reads what there is, at most `into.size()` bytes, at the file offset.
///
/// Result    bytes stored; 0 only for an empty span.
/// Errors    coax::errc::end_of_stream at the end, and for an empty datagram; else as read(2).
/// Lifetime  borrows `into` until completion.
[[nodiscard]] inline operations::read read(int fd, std::span<std::byte> into) noexcept {
  return operations::read(fd, into);
}

/// Writes all of `from`, at the file offset.
///
/// Result    `from.size()`.
/// Errors    as write(2). What was written before an error, a timeout or a cancellation stays written, and
///           unlike a stream the descriptor does not remember that more was to follow.
/// Lifetime  borrows `from` until completion.
[[nodiscard]] inline operations::write write(int fd, std::span<const std::byte> from) noexcept {
  return operations::write(fd, from);
}
[[nodiscard]] inline operations::write write(int fd, std::string_view from) noexcept {
  return operations::write(fd, std::as_bytes(std::span(from)));
}

/// Waits until one of `events` (POLLIN, POLLOUT, ...) is true of `fd`, or it has failed or hung up.
///
/// Result    the events that are true.
/// Errors    EBADF when `fd` is not open; EMFILE, on io_uring, where a descriptor is needed to wait for
///           other events than POLLIN and none is left; else as poll(2).
/// See       poll(2).
[[nodiscard]] inline operations::poll poll(int fd, short events) noexcept {
  return operations::poll(fd, events);
}

/// Waits until one of the descriptors is ready, as poll(2) does and libco's `co_poll`. Entries with
/// a negative descriptor are passed over; with nothing to wait for it waits until it is cancelled,
/// so put it under `within`.
///
/// Result    how many entries have a non-zero `revents`; one of a closed descriptor is POLLNVAL.
/// Errors    as poll(2), epoll_create1(2) and epoll_ctl(2).
/// Lifetime  borrows `fds` until completion.
inline task<result<std::size_t>> poll(std::span<pollfd> fds) {
  // A private epoll(7) descriptor stands for all of them: it is readable when one of them is ready.
  unique_fd set;
  syscalls& calls = reactor::current().system();
  while (true) {
    const int ready = calls.poll(fds.data(), fds.size());
    if (ready < 0 && ready != -EINTR) co_return detail::error_of(ready);
    if (ready > 0) co_return static_cast<std::size_t>(ready);
    if (!set) {
      const int made = calls.epoll_create();
      if (made < 0) co_return detail::error_of(made);
      set.reset(made);
      for (const pollfd& wanted : fds) {
        if (wanted.fd < 0) continue;
        std::uint32_t events = 0;
        // The same descriptor may stand in several entries: it is added once, for all of their
        // events.
        for (const pollfd& same : fds)
          if (same.fd == wanted.fd) events |= static_cast<unsigned short>(same.events);
        const int added = calls.epoll_add(set.get(), wanted.fd, events);
        if (added < 0 && added != -EEXIST && added != -EPERM) co_return detail::error_of(added);
      }
    }
    auto woken = co_await operations::poll(set.get(), POLLIN);
    if (!woken) co_return woken.error();
  }
}

}  // namespace coax::inline COAX_ABI
