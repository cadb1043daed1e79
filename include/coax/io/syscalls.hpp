#pragma once

#include <coax/config.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#if !defined(COAX_WITHOUT_URING)
#include <coax/io/thread_sanitizer.hpp>

#include <liburing.h>
#if !defined(IORING_RECV_MULTISHOT)
#error \
    "coax needs liburing 2.3 or later: install that, or define COAX_WITHOUT_URING for epoll alone"
#endif
#endif

namespace coax::inline COAX_ABI {

namespace detail {

/// A -errno as an error code.
inline std::error_code error_of(int answer) noexcept { return {-answer, std::system_category()}; }

}  // namespace detail

/// The system calls coax makes on behalf of tasks. This is the kernel; a test or a simulation
/// overrides what it wants to answer itself.
///
/// Result    what the call gives, or -errno.
/// Thread    that of the reactor it belongs to.
class syscalls {
 public:
  syscalls() = default;
  syscalls(const syscalls&) = delete;
  syscalls& operator=(const syscalls&) = delete;
  virtual ~syscalls() = default;

  // --- descriptors ---

  virtual int close(int fd) noexcept { return answer(::close(fd)); }
  /// Whether `fd` is open: 0 or -EBADF.
  virtual int is_open(int fd) noexcept {
    const int flags = answer(::fcntl(fd, F_GETFD));
    return flags < 0 ? flags : 0;
  }
  /// The least number a descriptor can have.
  virtual int first_descriptor() const noexcept { return 0; }
  /// A counter in non-blocking mode, by which a reactor is woken. See eventfd(2).
  virtual int eventfd() noexcept { return answer(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }
  /// A descriptor that stands for several: readable when one of them is ready. See epoll(7).
  virtual int epoll_create() noexcept { return answer(::epoll_create1(EPOLL_CLOEXEC)); }
  virtual int epoll_add(int set, int fd, std::uint32_t events) noexcept {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    return answer(::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
  }

  // --- sockets ---

  virtual int socket(int domain, int type, int protocol) noexcept {
    return answer(::socket(domain, type, protocol));
  }
  virtual int bind(int fd, const sockaddr* to, socklen_t size) noexcept {
    return answer(::bind(fd, to, size));
  }
  virtual int listen(int fd, int backlog) noexcept { return answer(::listen(fd, backlog)); }
  virtual int setsockopt(int fd, int level, int option, const void* value,
                         socklen_t size) noexcept {
    return answer(::setsockopt(fd, level, option, value, size));
  }
  virtual int getsockopt(int fd, int level, int option, void* value, socklen_t* size) noexcept {
    return answer(::getsockopt(fd, level, option, value, size));
  }
  virtual int getsockname(int fd, sockaddr* into, socklen_t* size) noexcept {
    return answer(::getsockname(fd, into, size));
  }
  virtual int getpeername(int fd, sockaddr* into, socklen_t* size) noexcept {
    return answer(::getpeername(fd, into, size));
  }
  virtual int shutdown(int fd, int how) noexcept { return answer(::shutdown(fd, how)); }

  // --- transfers; none of them waits where the descriptor is in non-blocking mode ---

  virtual int recv(int fd, void* into, std::size_t size, int flags) noexcept {
    return answer(::recv(fd, into, size, flags));
  }
  virtual int send(int fd, const void* from, std::size_t size, int flags) noexcept {
    return answer(::send(fd, from, size, flags));
  }
  virtual int read(int fd, void* into, std::size_t size) noexcept {
    return answer(::read(fd, into, size));
  }
  /// Does not wait either where the descriptor is in blocking mode and poll(2) says that one can write: to
  /// a pipe or a terminal it then writes at most what fits for sure.
  virtual int write(int fd, const void* from, std::size_t size) noexcept {
    const auto sent = ::send(fd, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0 || errno != ENOTSOCK) return answer(sent);
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
  int connect_outcome(int fd) noexcept {
    int error = 0;
    socklen_t size = sizeof(error);
    const int got = getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return got < 0 ? got : -error;
  }
  /// Whether `fd` was opened for reading (O_RDONLY) or for writing (O_WRONLY), as `how` says: 0 or
  /// -EBADF.
  virtual int opened_for(int fd, int how) noexcept {
    const int flags = answer(::fcntl(fd, F_GETFL));
    if (flags < 0) return flags;
    return (flags & O_ACCMODE) == how || (flags & O_ACCMODE) == O_RDWR ? 0 : -EBADF;
  }
  /// Whether one can read from `fd` (POLLIN) or write to it (POLLOUT) without waiting, whatever mode it is in:
  /// 0, -EAGAIN, or the error of trying.
  int ready_for(int fd, short event) noexcept {
    if (const int now = true_of(fd, event); now != 0) return std::min(now, 0);
    // Never ready for what it was not made for: that is an error, and nothing to wait for.
    const bool reads = event == POLLIN;
    if (const int opened = opened_for(fd, reads ? O_RDONLY : O_WRONLY); opened < 0) return opened;
    if (listens(fd) < 0) return -EAGAIN;
    return reads ? -ENOTCONN : -EPIPE;
  }
  /// Whether `fd` is a socket that listens: 0 or -errno, as accept(2).
  int listens(int fd) noexcept {
    int does = 0;
    socklen_t size = sizeof(does);
    const int got = getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &does, &size);
    return got < 0 ? got : does != 0 ? 0 : -EINVAL;
  }
  /// Never waits.
  virtual int poll(pollfd* fds, std::size_t count) noexcept {
    return answer(::poll(fds, count, 0));
  }
  /// Which of `events` are true of `fd` now, or that it has failed or hung up; 0 for none. See poll(2).
  [[gnu::noinline]] int true_of(int fd, short events) noexcept {
    pollfd asked{fd, events, 0};
    const int count = poll(&asked, 1);
    return count > 0 ? asked.revents : count;
  }

  /// Eight bytes of randomness. See getrandom(2).
  virtual std::uint64_t random() noexcept {
    std::uint64_t bits = 0;
    while (answer(::getrandom(&bits, sizeof(bits), 0)) != sizeof(bits)) continue;
    return bits;
  }

  /// Looks `host` up where this system has names of its own, as a simulation does, and appends its
  /// addresses to `found`; their ports do not count. Result: 0 or a code of getaddrinfo(3), such as
  /// EAI_NONAME; nothing when the C library is to be asked, which waits.
  virtual std::optional<int> look_up([[maybe_unused]] const std::string& host,
                                     [[maybe_unused]] std::vector<sockaddr_storage>& found) {
    return std::nullopt;
  }

#if !defined(COAX_WITHOUT_URING)
  /// Submits what is queued and runs pending completion work, without waiting.
  virtual int ring_submit(io_uring& ring) noexcept {
    return counted(io_uring_submit_and_get_events(&ring));
  }
  /// Submits what is queued and waits for a completion.
  virtual int ring_submit_and_wait(io_uring& ring) noexcept {
    if (__kernel_timespec* const limit = detail::let_signals_in()) {  // under ThreadSanitizer only
      io_uring_cqe* first = nullptr;
      return counted(io_uring_submit_and_wait_timeout(&ring, &first, 1, limit, nullptr));
    }
    return counted(io_uring_submit_and_wait(&ring, 1));
  }
#endif

  /// Counts a call that a backend makes by itself.
  void count_one() noexcept { counted(0); }
  /// Calls the kernel was asked for.
  std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }

  /// The kernel itself, for whoever runs no reactor.
  static syscalls& kernel() noexcept {
    static syscalls calls;
    return calls;
  }

  /// Those of the reactor that runs on this thread; where none runs, the kernel's.
  static syscalls& current() noexcept { return current_ != nullptr ? *current_ : kernel(); }

  /// Makes some this thread's for as long as the guard lives.
  class current_here {
   public:
    explicit current_here(syscalls& calls) noexcept : before_(std::exchange(current_, &calls)) {}
    current_here(const current_here&) = delete;
    current_here& operator=(const current_here&) = delete;
    ~current_here() { current_ = before_; }

   private:
    syscalls* before_;
  };

 protected:
  int answer(ssize_t result) noexcept {
    return counted(result < 0 ? -errno : static_cast<int>(result));
  }
  int counted(int result) noexcept {
    // No read-modify-write, which would cost: each reactor counts on its own. What several threads
    // count on `kernel()` is not exact, and nobody asks for it.
    count_.store(count_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    return result;
  }

 private:
  static bool could_block(int fd) noexcept {
    struct stat status{};
    return (::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0 && ::fstat(fd, &status) == 0 &&
           !S_ISREG(status.st_mode);
  }

  static inline constinit thread_local syscalls* current_ = nullptr;

  std::atomic<std::uint64_t> count_{0};
};

}  // namespace coax::inline COAX_ABI
