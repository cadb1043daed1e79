#pragma once

/// What the tests of io/ wait on: pipes and connected sockets, and how to fill, drain and end them.
///
/// Where a simulation runs, all of that is part of it: a TCP connection stands for pipes and for Unix
/// sockets.

#include "../catch.hpp"
#include "../task/own_root.hpp"
#include "../text_of.hpp"
#include "../turns.hpp"

#include <coax/io/fd.hpp>
#include <coax/io/operations/connect.hpp>
#include <coax/io/operations/recv.hpp>
#include <coax/io/operations/send.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

inline bool is_simulated() { return coax::syscalls::current().first_descriptor() > 0; }
/// The kernel below the test, with none of the faults the reactor may see.
inline coax::syscalls& here() {
  return is_simulated() ? coax::syscalls::current() : coax::syscalls::kernel();
}
inline bool is_open(int fd) { return here().is_open(fd) == 0; }

/// Two descriptors that are connected: `ours` is waited on, `theirs` is the peer's.
struct fd_pair {
  coax::unique_fd ours;
  coax::unique_fd theirs;
};

inline coax::unique_fd tcp_socket(int flags = 0) {
  return coax::unique_fd(here().socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
}

/// A socket that listens on a port of the kernel's choice on 127.0.0.1.
struct loopback_listener {
  explicit loopback_listener(int backlog = 16) : fd(tcp_socket()) {
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(here().bind(fd.get(), to(), sizeof(address)) == 0);
    REQUIRE(here().listen(fd.get(), backlog) == 0);
    socklen_t size = sizeof(address);
    REQUIRE(here().getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  }
  const sockaddr* to() const { return reinterpret_cast<const sockaddr*>(&address); }

  /// Connects a client; the kernel takes it into the backlog at once.
  coax::unique_fd client() const {
    coax::unique_fd made = tcp_socket();
    const int answer = here().connect(made.get(), to(), sizeof(address));
    REQUIRE(answer == (is_simulated() ? -EINPROGRESS : 0));
    return made;
  }
  coax::unique_fd take() const { return coax::unique_fd(here().accept(fd.get(), SOCK_CLOEXEC)); }

  coax::unique_fd fd;
  sockaddr_in address{};
};

inline fd_pair tcp_pair() {
  const loopback_listener listener;
  coax::unique_fd theirs = listener.client();
  return {listener.take(), std::move(theirs)};
}
/// `ours` is the end to read from. Both are in blocking mode, as most pipes a program is given.
inline fd_pair pipe_to_us() {
  if (is_simulated()) return tcp_pair();
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  return {coax::unique_fd(ends[0]), coax::unique_fd(ends[1])};
}
/// `ours` is the end to write to.
inline fd_pair pipe_from_us() {
  fd_pair p = pipe_to_us();
  std::swap(p.ours, p.theirs);
  return p;
}
inline fd_pair unix_pair() {
  if (is_simulated()) return tcp_pair();
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  return {coax::unique_fd(ends[0]), coax::unique_fd(ends[1])};
}

inline void set_nonblocking(int fd) {
  if (is_simulated()) return;  // as all are there
  REQUIRE(::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

/// A socket the running reactor has taken over, as a stream does it.
class taken_over {
 public:
  explicit taken_over(coax::unique_fd fd, bool tcp = false) : fd_(fd.release()) {
    coax::reactor::current().own(fd_, tcp);
  }
  taken_over(const taken_over&) = delete;
  taken_over& operator=(const taken_over&) = delete;
  ~taken_over() { close(); }

  int get() const { return fd_; }
  void close() {
    if (fd_ >= 0) coax::reactor::current().close(std::exchange(fd_, -1));
  }

 private:
  int fd_;
};

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// Writes to the peer's end, at once.
inline void put(const coax::unique_fd& fd, std::string_view text) {
  while (!text.empty()) {
    const int n = here().write(fd.get(), text.data(), text.size());
    REQUIRE(n > 0);
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

/// Writes until nothing fits any more. Result: how many bytes fitted.
inline std::size_t fill(int fd) {
  static const std::array<char, 4096> block{};
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  std::size_t total = 0;
  for (const std::size_t size : {block.size(), std::size_t{1}})
    for (int n = 0; (n = here().write(fd, block.data(), size)) > 0;)
      total += static_cast<std::size_t>(n);
  ::fcntl(fd, F_SETFL, flags);
  return total;
}

/// Reads all there is, without waiting. Result: what was there.
inline std::string drain(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  std::string all;
  std::array<char, 65536> some;
  for (int n = 0; (n = here().read(fd, some.data(), some.size())) > 0;)
    all.append(some.data(), static_cast<std::size_t>(n));
  ::fcntl(fd, F_SETFL, flags);
  return all;
}

/// A wait that another task, or a posted node, ends.
class gate final : public coax::waiter {
 public:
  coax::waiting_for describe() const noexcept override { return {"a test"}; }
  void open() noexcept {
    if (is_waiting()) complete();
    opened_ = true;
  }
  bool await_ready() const noexcept { return opened_; }
  void await_resume() const noexcept {}

 private:
  bool start() noexcept override { return false; }
  void stop() noexcept override { stopped(); }
  bool opened_ = false;
};

using cancellable = own_root<>;

/// Waits until `c` has ended, at most so many turns.
inline coax::task<> end_of(const cancellable& c, int turns_max = 1000) {
  for (int i = 0; i < turns_max && !c.has_ended(); ++i) co_await coax::yield();
  if (!c.has_ended()) coax::detail::fatal("a task that should have ended has not");
}

inline coax::operations::recv receive(int fd, std::span<std::byte> into) {
  return {fd, into, coax::operations::recv::until::some};
}
inline coax::operations::recv receive_full(int fd, std::span<std::byte> into) {
  return {fd, into, coax::operations::recv::until::full};
}
inline coax::operations::send send_all(int fd, std::string_view text) {
  return {fd, bytes_of(text), coax::operations::send::until::all};
}
inline coax::operations::send send_some(int fd, std::string_view text) {
  return {fd, bytes_of(text), coax::operations::send::until::some};
}
