#pragma once

#include <coax/config.hpp>
#include <coax/io/connection_end.hpp>
#include <coax/io/operations/receive.hpp>
#include <coax/io/operations/recv.hpp>
#include <coax/io/operations/send.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/undelivered.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/net/endpoint.hpp>
#include <coax/net/endpoint_of.hpp>
#include <coax/task/boxed.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

namespace coax::inline COAX_ABI {

/// A connection: a stream of bytes each way, over TCP or a Unix socket.
///
/// One task may read and one may write at a time; another gets std::errc::device_or_resource_busy
/// at once, on io_uring also while one that was cancelled has not unwound yet. Reading and writing stay
/// valid when the stream object is moved meanwhile.
///
/// Destroying it closes the connection at once, over TCP by a reset when bytes that came are unread; what
/// a task still waits for on it fails with std::errc::operation_canceled. To be sure that the peer gets
/// the last bytes, `co_await close()`.
///
/// Thread    the reactor's it was made on.
class stream {
  using boxed_recv = detail::boxed<operations::recv>;
  using boxed_receive = detail::boxed<operations::receive>;
  using boxed_send = detail::boxed<operations::send>;

 public:
  /// Takes over `fd`, a connected stream socket. That it is another stream's already is not noticed.
  ///
  /// Errors    EBADF, ENOTSOCK as getsockopt(2); std::errc::invalid_argument for another type
  ///           of socket, or one that listens; std::errc::not_enough_memory. `fd` stays the caller's
  ///           then. Where no reactor runs the program ends with a message.
  static result<stream> adopt(int fd) {
    int type = 0;
    int domain = 0;
    socklen_t size = sizeof(type);
    syscalls& calls = syscalls::current();
    int got = calls.getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (got == 0) got = calls.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    if (got < 0) return detail::error_of(got);
    if (type != SOCK_STREAM || calls.listens(fd) == 0) return std::errc::invalid_argument;
    const auto own = [&] { reactor::current().own(fd, domain != AF_UNIX); };
    if (detail::caught(own)) return std::errc::not_enough_memory;
    return stream(fd);
  }

  stream(stream&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  stream& operator=(stream&& other) noexcept {
    if (this != &other) {
      close_now();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~stream() { close_now(); }

  /// Reads what has arrived, at least a byte, at most `into.size()`.
  ///
  /// Result    bytes stored; 0 only for an empty span.
  /// Errors    coax::errc::end_of_stream when the peer has ended its side; else as recv(2). By which
  ///           error a connection was lost, every later read says, also when a write was told first.
  /// Lifetime  borrows `into` until completion.
  [[nodiscard]] boxed_recv read(std::span<std::byte> into) noexcept {
    return boxed_recv::make(fd_, into, operations::recv::until::some);
  }

  /// Reads until `into` is full.
  ///
  /// Cut off in the middle by a timeout, a cancellation or a passing error, it makes every later read
  /// fail with coax::errc::transfer_cut: what was read is lost, and the next byte would be taken for
  /// the beginning of a message.
  ///
  /// Result    `into.size()`.
  /// Errors    coax::errc::end_of_stream when the stream ends before that; else as recv(2).
  /// Lifetime  borrows `into` until completion.
  [[nodiscard]] boxed_recv read_exactly(std::span<std::byte> into) noexcept {
    return boxed_recv::make(fd_, into, operations::recv::until::full);
  }

  /// Receives what has arrived, at least a byte, without a buffer of the caller's: nothing is held
  /// while the peer is silent.
  ///
  /// It reads ahead: on io_uring, what comes after it may be with the reactor already, where later
  /// reads of this stream find it, in order; the descriptor itself no longer has it.
  ///
  /// Result    a lease of the bytes.
  /// Errors    coax::errc::end_of_stream when the peer has ended its side; else as recv(2).
  [[nodiscard]] boxed_receive receive() noexcept { return boxed_receive::make(fd_); }

  /// Writes all of `from`: it returns when the kernel has taken over the last byte. A peer that
  /// does not read makes it wait; put it under `within`.
  ///
  /// Cut off in the middle, it makes every later write fail with coax::errc::transfer_cut.
  ///
  /// Result    `from.size()`.
  /// Errors    EPIPE or ECONNRESET when the peer is gone; else as send(2).
  /// Lifetime  borrows `from` until completion.
  [[nodiscard]] boxed_send write(std::span<const std::byte> from) noexcept {
    return boxed_send::make(fd_, from, operations::send::until::all);
  }
  [[nodiscard]] boxed_send write(std::string_view from) noexcept {
    return write(std::as_bytes(std::span(from)));
  }

  /// Writes what the socket takes, at least a byte.
  ///
  /// Result    bytes taken over; 0 only for an empty span.
  /// Errors    as `write`.
  /// Lifetime  borrows `from` until completion.
  [[nodiscard]] boxed_send write_some(std::span<const std::byte> from) noexcept {
    return boxed_send::make(fd_, from, operations::send::until::some);
  }
  [[nodiscard]] boxed_send write_some(std::string_view from) noexcept {
    return write_some(std::as_bytes(std::span(from)));
  }

  /// Ends this side: the peer reads what was written, then the end of the stream. Reading goes on.
  ///
  /// Errors    as shutdown(2).
  result<void> shutdown_write() noexcept {
    const int answer = syscalls::current().shutdown(fd_, SHUT_WR);
    if (answer < 0) return detail::error_of(answer);
    if (loop::running() != nullptr) reactor::current().tell_writer(fd_);
    return {};
  }

  /// Ends this side, reads and drops what the peer still sends until it ends its own, then closes.
  ///
  /// Closing with unread bytes makes the kernel reset the connection, and the peer may lose the
  /// last reply with it. This waits for the peer up to `linger_limit` and `linger_bytes_max`. The
  /// object has no connection from the call on; a task that is not awaited, or is cancelled, closes
  /// at once. What other tasks still wait for on it fails with std::errc::operation_canceled.
  ///
  /// Errors    std::errc::timed_out or std::errc::connection_aborted when a limit was reached; as
  ///           shutdown(2), recv(2). The connection is closed all the same.
  task<result<void>> close() { return linger(stream(std::move(*this))); }

  static constexpr std::chrono::seconds linger_limit{2};
  static constexpr std::size_t linger_bytes_max = std::size_t{1} << 20;

  /// Errors    as getsockname(2), getpeername(2).
  result<endpoint> local_endpoint() const noexcept {
    return detail::endpoint_of(fd_, &syscalls::getsockname);
  }
  result<endpoint> remote_endpoint() const noexcept {
    return detail::endpoint_of(fd_, &syscalls::getpeername);
  }

  bool is_open() const noexcept { return fd_ >= 0; }

  /// The descriptor, which stays the stream's; -1 when it has none.
  int native_handle() const noexcept { return fd_; }

 private:
  friend class listener;
  friend task<result<stream>> connect(endpoint to);

  explicit stream(int owned) noexcept : fd_(owned) {}

  /// Of a connection that this library has made. Errors: std::errc::not_enough_memory; it is closed then.
  static result<stream> made_of(unique_fd connected, bool tcp) noexcept {
    if (detail::caught([&] { reactor::current().own(connected.get(), tcp); }))
      return std::errc::not_enough_memory;
    return stream(connected.release());
  }

  void close_now() noexcept {
    const int fd = std::exchange(fd_, -1);
    if (fd < 0) return;
    if (loop::running() != nullptr) return reactor::current().close(fd);
    if (detail::undelivered::take(fd).received.has_bytes())
      detail::reset_on_close(syscalls::current(), fd);
    detail::close_elsewhere(syscalls::current(), fd);
  }

  static task<result<void>> linger(stream closing) {
    while (!reactor::current().vacate(closing.fd_)) co_await yield();
    result<void> ended = closing.shutdown_write();
    const clock::time_point deadline = now() + linger_limit;
    std::array<std::byte, 1024> dropped;  // small enough for the frame to be recycled
    for (std::size_t left = linger_bytes_max; ended && left > 0;) {
      auto got = co_await within(deadline - now(), closing.read(dropped));
      if (got) {
        left -= std::min(left, *got);
        if (left == 0) ended = std::errc::connection_aborted;
      } else if (got.error() == errc::end_of_stream) {
        break;
      } else {
        ended = got.error();
      }
    }
    co_return ended;
  }

  int fd_;
};

}  // namespace coax::inline COAX_ABI
