#pragma once

#include <coax/config.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>

#if !defined(COAX_WITHOUT_URING)
#include <liburing.h>
#endif

namespace coax::inline COAX_ABI {

/// The system calls coax makes on descriptors while a reactor runs. This is the kernel; a test or a
/// simulation overrides what it wants to answer itself.
///
/// Result    what the call gives, or -errno.
class syscalls {
 public:
  syscalls() = default;
  syscalls(const syscalls&) = delete;
  syscalls& operator=(const syscalls&) = delete;
  virtual ~syscalls() = default;

  virtual int recv(int fd, void* into, std::size_t size, int flags) noexcept {
    return answer(::recv(fd, into, size, flags));
  }
  virtual int send(int fd, const void* from, std::size_t size, int flags) noexcept {
    return answer(::send(fd, from, size, flags));
  }
  virtual int read(int fd, void* into, std::size_t size) noexcept {
    return answer(::read(fd, into, size));
  }
  /// Of a descriptor in blocking mode, to which poll(2) says one can write, takes at most what then
  /// fits for sure.
  virtual int write(int fd, const void* from, std::size_t size) noexcept {
    if (size > PIPE_BUF && could_block(fd)) size = PIPE_BUF;
    return answer(::write(fd, from, size));
  }
  virtual int accept(int fd, int flags) noexcept {
    return answer(::accept4(fd, nullptr, nullptr, flags));
  }
  virtual int connect(int fd, const sockaddr* to, socklen_t size) noexcept {
    return answer(::connect(fd, to, size));
  }
  /// The outcome of a connect in progress: 0 or -errno. See SO_ERROR in socket(7).
  virtual int connect_outcome(int fd) noexcept {
    int error = 0;
    socklen_t size = sizeof(error);
    const int got = answer(::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size));
    return got < 0 ? got : -error;
  }
  /// Whether `fd` was opened for reading (O_RDONLY) or for writing (O_WRONLY), as `how` says: 0 or
  /// -EBADF.
  virtual int opened_for(int fd, int how) noexcept {
    const int flags = answer(::fcntl(fd, F_GETFL));
    if (flags < 0) return flags;
    return (flags & O_ACCMODE) == how || (flags & O_ACCMODE) == O_RDWR ? 0 : -EBADF;
  }
  /// Whether `fd` is a socket that listens: 0 or -errno, as accept(2).
  virtual int listens(int fd) noexcept {
    int does = 0;
    socklen_t size = sizeof(does);
    const int got = answer(::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &does, &size));
    return got < 0 ? got : does != 0 ? 0 : -EINVAL;
  }
  /// Never waits.
  virtual int poll(pollfd* fds, std::size_t count) noexcept {
    return answer(::poll(fds, count, 0));
  }

#if !defined(COAX_WITHOUT_URING)
  /// Submits what is queued and runs pending completion work, without waiting.
  virtual int ring_submit(io_uring& ring) noexcept { return io_uring_submit_and_get_events(&ring); }
  /// Submits what is queued and waits for a completion; without `limit`, for ever.
  virtual int ring_submit_and_wait(io_uring& ring, __kernel_timespec* limit) noexcept {
    io_uring_cqe* first = nullptr;
    return io_uring_submit_and_wait_timeout(&ring, &first, 1, limit, nullptr);
  }
#endif

  /// The kernel itself.
  static syscalls& kernel() noexcept {
    static syscalls calls;
    return calls;
  }

 protected:
  static int answer(ssize_t result) noexcept {
    return result < 0 ? -errno : static_cast<int>(result);
  }

 private:
  static bool could_block(int fd) noexcept {
    struct stat status{};
    return (::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0 && ::fstat(fd, &status) == 0 &&
           !S_ISREG(status.st_mode);
  }
};

}  // namespace coax::inline COAX_ABI
