#pragma once

/// How a connection ends with its descriptor. Bytes that nobody has read are told to the peer by a reset, also where
/// they are with coax, and where the kernel would not see that nobody reads on.

#include <coax/config.hpp>
#include <coax/io/owner.hpp>
#include <coax/io/syscalls.hpp>

#include <sys/socket.h>

#include <atomic>
#include <cerrno>

namespace coax::inline COAX_ABI::detail {

/// Whether the kernel holds bytes that nobody has received: then closing the socket resets the connection.
inline bool has_unread(syscalls& calls, int fd) noexcept {
  char next = 0;
  int more = 0;
  do more = calls.recv(fd, &next, sizeof(next), MSG_PEEK | MSG_DONTWAIT);
  while (more == -EINTR);
  return more > 0;
}

/// Whether somebody has asked for that, by SO_LINGER.
inline bool is_to_be_reset(syscalls& calls, int fd) noexcept {
  linger asked{};
  socklen_t size = sizeof(asked);
  return calls.getsockopt(fd, SOL_SOCKET, SO_LINGER, &asked, &size) == 0 && asked.l_onoff != 0 &&
         asked.l_linger == 0;
}

/// Has the connection reset when it is closed, as the kernel does where it has the bytes that nobody
/// read. (Of TCP. A Unix socket cannot be asked to.)
inline void reset_on_close(syscalls& calls, int fd) noexcept {
  const linger at_once{1, 0};
  calls.setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

/// The same though something in the kernel, of another thread's, keeps the socket from being closed.
inline void reset_at_once(syscalls& calls, int fd) noexcept {
  sockaddr nobody{};
  nobody.sa_family = AF_UNSPEC;
  // As connect(2) has it, that dissolves the association of TCP. Others cannot be reset.
  if (calls.connect(fd, &nobody, sizeof(nobody)) < 0) calls.shutdown(fd, SHUT_RDWR);
}

/// Closes a stream on another thread than that of the reactor it was made on, which may still have a
/// multishot receive of it: that ends with the connection.
inline void close_elsewhere(syscalls& calls, int fd) noexcept {
  if (reactors_alive.load(std::memory_order_relaxed) != 0 && !has_unread(calls, fd)) {
    if (is_to_be_reset(calls, fd))
      reset_at_once(calls, fd);
    else
      calls.shutdown(fd, SHUT_RDWR);
  }
  calls.close(fd);
}

}  // namespace coax::inline COAX_ABI::detail
