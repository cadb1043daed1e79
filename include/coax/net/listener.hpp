#pragma once

#include <coax/config.hpp>
#include <coax/io/operations/accept.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/standard_fds.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/net/endpoint.hpp>
#include <coax/net/endpoint_of.hpp>
#include <coax/net/stream.hpp>
#include <coax/task/result.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <system_error>
#include <utility>

namespace coax::inline COAX_ABI {

/// How a listener is set up.
struct listen_options {
  bool reuse_port = false;  ///< several sockets may share the address, and the load (SO_REUSEPORT)
  int backlog = SOMAXCONN;  ///< connections that may wait in the kernel; it has a limit of its own
  bool v6only = false;      ///< an IPv6 listener takes no IPv4 connections (IPV6_V6ONLY)
  bool nodelay = true;      ///< connections send small writes at once (TCP_NODELAY)
  bool keepalive = false;   ///< connections probe an idle peer (SO_KEEPALIVE)
};

/// A socket that accepts connections, on TCP or a Unix path.
///
/// Needs no reactor to be opened, so it can be bound before a fork and be shared by the processes.
/// Where a reactor runs, it is opened through that one.
/// The path of a Unix listener is not removed when it closes.
///
/// Thread    any that has it to itself; with a reactor, the reactor's.
class listener {
 public:
  /// Opens a listener on `where`: "127.0.0.1:9000", "[::1]:0", "unix:/run/x".
  ///
  /// Errors    as endpoint::parse, socket(2), bind(2), listen(2): a port in use is
  ///           std::errc::address_in_use.
  static result<listener> bind(std::string_view where, const listen_options& how = {}) {
    const result<endpoint> parsed = endpoint::parse(where);
    if (!parsed) return parsed.error();
    return bind(*parsed, how);
  }
  static result<listener> bind(const endpoint& where, const listen_options& how = {}) {
    detail::hold_standard_fds();
    // Non-blocking, because another process may take the connection that woke this one.
    syscalls& calls = syscalls::current();
    const int made = calls.socket(where.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (made < 0) return detail::error_of(made);
    unique_fd fd(made);
    int set = 0;
    const auto turn = [&](bool wanted, int level, int option, int value) {
      if (wanted && set == 0) set = calls.setsockopt(made, level, option, &value, sizeof(value));
    };
    if (!where.is_unix()) {
      // What is set here the connections inherit.
      turn(true, SOL_SOCKET, SO_REUSEADDR, 1);
      turn(how.reuse_port, SOL_SOCKET, SO_REUSEPORT, 1);
      turn(where.family() == AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, how.v6only);
      turn(how.nodelay, IPPROTO_TCP, TCP_NODELAY, 1);
      turn(how.keepalive, SOL_SOCKET, SO_KEEPALIVE, 1);
      if (set < 0) return detail::error_of(set);
    }
    if (const int bound = calls.bind(made, where.data(), where.size()); bound < 0)
      return detail::error_of(bound);
    if (const int listens = calls.listen(made, how.backlog); listens < 0)
      return detail::error_of(listens);
    return listener(std::move(fd), !where.is_unix());
  }

  listener(listener&& other) noexcept = default;
  listener& operator=(listener&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::move(other.fd_);
      tcp_ = other.tcp_;
    }
    return *this;
  }
  ~listener() { close(); }

  /// Waits for a connection.
  ///
  /// What ends a single connection is not an error of the listener, and is passed over. Nor is a shortage.
  /// Out of descriptors, it takes the connection at hand with a spare one that the reactor holds, from its
  /// first `accept` to the end of the run. Until that holds one again it waits, 5 to 100 ms a time, and shows
  /// no interest: connections stay in the kernel's backlog, or another process that shares the listener takes
  /// them. A shortage of memory is waited out in the same way. The listener may be moved meanwhile.
  ///
  /// Result    a stream with the options that `listen_options` gave.
  /// Errors    EBADF when it is closed, std::errc::operation_canceled when it is closed meanwhile,
  ///           std::errc::device_or_resource_busy when another task accepts from it, be it one that was
  ///           cancelled and has not unwound yet; else as accept(2).
  task<result<stream>> accept() { return accept_on(fd_.get(), tcp_); }

  /// Stops listening; a task that waits in `accept` gets std::errc::operation_canceled, and the
  /// address can be bound anew once it has. Connections that nobody accepted are refused once the
  /// last process has closed it.
  void close() noexcept {
    const int fd = fd_.release();
    if (fd < 0) return;
    if (loop::running() != nullptr)
      reactor::current().close(fd, reactor::reach::here);
    else
      syscalls::current().close(fd);
  }

  /// The address it listens on, with the real port where 0 was asked for.
  ///
  /// Errors    as getsockname(2).
  result<endpoint> local_endpoint() const noexcept {
    return detail::endpoint_of(fd_.get(), &syscalls::getsockname);
  }

  bool is_open() const noexcept { return static_cast<bool>(fd_); }

  /// The descriptor, which stays the listener's; -1 when it is closed.
  int native_handle() const noexcept { return fd_.get(); }

 private:
  listener(unique_fd fd, bool tcp) noexcept : fd_(std::move(fd)), tcp_(tcp) {}

  /// The one task that accepts from a listener, also while it waits out a shortage.
  class sole_acceptor {
   public:
    explicit sole_acceptor(int fd) noexcept : fd_(fd), life_(life()) {}
    sole_acceptor(const sole_acceptor&) = delete;
    sole_acceptor& operator=(const sole_acceptor&) = delete;
    ~sole_acceptor() {
      if (begun_) reactor::current().end_accepting(fd_, listener_is_open());
    }

    /// Sees to it that it is the one. Result: 0 or -errno.
    int begin() noexcept {
      if (begun_) return 0;
      const int answer = reactor::current().begin_accepting(fd_);
      begun_ = answer == 0;
      if (begun_) life_ = life();  // which may have begun with that
      return answer;
    }
    /// It has not been closed meanwhile.
    bool listener_is_open() const noexcept { return life() == life_; }

   private:
    std::uint32_t life() const noexcept { return reactor::current().life_of(fd_); }

    int fd_;
    std::uint32_t life_;
    bool begun_ = false;
  };

  static task<result<stream>> accept_on(int fd, bool tcp) {
    using namespace std::chrono_literals;
    constexpr clock::duration pause_first = 5ms;
    constexpr clock::duration pause_max = 100ms;
    constexpr int passed_over_max = 16;
    clock::duration pause = pause_first;
    int passed_over = 0;
    sole_acceptor self(fd);
    while (true) {
      int answer = self.begin();
      // A connection wakes one of the processes that wait for it. So none waits that could not take it.
      if (answer == 0 && !reactor::current().hold_spare_fds()) answer = -EMFILE;
      if (answer == 0) {
        auto accepted = co_await operations::accept(fd, watching::shared);
        auto made = accepted ? stream::made_of(std::move(*accepted), tcp)
                             : result<stream>(accepted.error());
        if (made) co_return made;
        answer = -made.error().value();
      }
      const bool of_one_connection = ends_one_connection(-answer);
      if (!of_one_connection && !is_shortage(-answer)) co_return detail::error_of(answer);
      // A connection that failed is replaced by the next one at once; when that does not end,
      // something else is wrong, and trying on would burn a core.
      if (!of_one_connection || ++passed_over >= passed_over_max) {
        co_await sleep_for(pause);
        pause = std::min(pause * 2, pause_max);
      }
      if (!self.listener_is_open()) co_return std::errc::operation_canceled;  // closed meanwhile
    }
  }

  static bool ends_one_connection(int error) noexcept {
    switch (error) {
      case EINTR:
      case ECONNABORTED:
      case EPROTO:
      case EPERM:  // a firewall's no
      // Linux passes on what is already wrong with the new connection: see accept(2).
      case ENETDOWN:
      case ENOPROTOOPT:
      case EHOSTDOWN:
      case ENONET:
      case EHOSTUNREACH:
      case ENETUNREACH:
        return true;
      default:
        return false;
    }
  }
  static bool is_shortage(int error) noexcept {
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM ||
           error == ENOSPC;  // of what epoll(7) may watch
  }

  unique_fd fd_;
  bool tcp_;
};

}  // namespace coax::inline COAX_ABI
