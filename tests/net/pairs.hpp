#pragma once

/// Connected streams, and what the tests of streams do with them.

#include "../catch.hpp"
#include "../io/each_backend.hpp"
#include "../sim/conformance.hpp"
#include "../text_of.hpp"
#include "../turns.hpp"

#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/stream.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

enum class transport { tcp, unix_socket };

inline const char* name_of(transport t) { return t == transport::tcp ? "TCP" : "Unix"; }

/// Two connected sockets of nobody's.
class raw_pair {
 public:
  raw_pair(coax::unique_fd one, coax::unique_fd other)
      : near(std::move(one)), far(std::move(other)) {}
  coax::unique_fd near;
  coax::unique_fd far;
};

inline sockaddr_in loopback(std::uint16_t port = 0) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/// A listening TCP socket in blocking mode, as a program without coax would open it.
inline coax::unique_fd raw_listener(int backlog = 8) {
  coax::unique_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in any = loopback();
  REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0);
  REQUIRE(::listen(fd.get(), backlog) == 0);
  return fd;
}

/// Connects to what `fd` listens on. The kernel answers before anybody accepts.
inline coax::unique_fd raw_client_of(int fd) {
  sockaddr_storage where{};
  socklen_t size = sizeof where;
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&where), &size) == 0);
  coax::unique_fd client(::socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(client.get(), reinterpret_cast<const sockaddr*>(&where), size) == 0);
  return client;
}

/// `near` is in non-blocking mode, as what coax connects; `far` is not, as what it accepts.
inline raw_pair raw_connected(transport t) {
  if (t == transport::unix_socket) {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    REQUIRE(::fcntl(ends[0], F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    return {coax::unique_fd(ends[0]), coax::unique_fd(ends[1])};
  }
  const coax::unique_fd listening = raw_listener();
  coax::unique_fd near = raw_client_of(listening.get());
  REQUIRE(::fcntl(near.get(), F_SETFL, O_RDWR | O_NONBLOCK) == 0);
  coax::unique_fd far(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
  REQUIRE(far);
  return {std::move(near), std::move(far)};
}

inline coax::stream adopted(coax::unique_fd fd) {
  auto made = coax::stream::adopt(fd.get());
  fd.release();
  return std::move(made).value();
}

class stream_pair {
 public:
  explicit stream_pair(raw_pair both)
      : near(adopted(std::move(both.near))), far(adopted(std::move(both.far))) {}
  explicit stream_pair(transport t) : stream_pair(raw_connected(t)) {}
  coax::stream near;
  coax::stream far;
};

/// Runs `body(near, far)`, a coroutine, over TCP and over a Unix socket, on every backend that has
/// the real kernel below it.
template <class Body>
void on_each_kernel_pair(Body&& body) {
  for (const transport t : {transport::tcp, transport::unix_socket}) {
    INFO("over " << name_of(t));
    on_each_backend([&]() -> coax::task<> {
      stream_pair both(t);
      co_await body(both.near, both.far);
    });
  }
}

/// Awaits `body(near, far)` over TCP with a pair that is made by coax alone, as a simulation can.
template <class Body>
coax::task<> with_connected_pair(Body& body) {
  auto listening = coax::listener::bind("127.0.0.1:0").value();
  auto near = co_await coax::connect(listening.local_endpoint().value());
  auto far = co_await listening.accept();
  listening.close();
  co_await body(*near, *far);
}

/// As on_each_kernel_pair, and in simulation over TCP.
template <class Body>
void on_each_pair(Body&& body) {
  on_each_kernel_pair(body);
  on_simulation([&]() -> coax::task<> { co_await with_connected_pair(body); });
}

/// As on_each_pair, over TCP alone.
template <class Body>
void on_each_tcp_pair(Body&& body) {
  on_each_backend([&]() -> coax::task<> { co_await with_connected_pair(body); });
  on_simulation([&]() -> coax::task<> { co_await with_connected_pair(body); });
}

// --- bytes ---

/// Bytes of which no two stretches look alike.
inline std::vector<std::byte> pattern(std::size_t size, std::uint32_t seed) {
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) {
    seed = seed * 1664525u + 1013904223u;
    b = static_cast<std::byte>(seed >> 24);
  }
  return bytes;
}

// --- tasks ---

/// After that a test has failed, rather than that it waits for ever. Never waited for otherwise.
inline constexpr std::chrono::seconds patience{10};

/// Reads until a read fails, and gives why it did.
inline coax::task<std::error_code> read_to_end(coax::stream& from, std::string& into) {
  std::array<std::byte, 16 * 1024> some;
  while (true) {
    auto n = co_await coax::within(patience, from.read(some));
    if (!n) co_return n.error();
    into.append(text_of(std::span(some).first(*n)));
  }
}

/// Reads once; what came as text, or the error's message in angle brackets.
inline coax::task<std::string> read_text(coax::stream& from) {
  std::array<std::byte, 256> some;
  auto n = co_await coax::within(patience, from.read(some));
  co_return n ? std::string(text_of(std::span(some).first(*n))) : "<" + n.error().message() + ">";
}

/// A reset instead of the orderly end: closes `fd`, dropping what was not sent.
inline void reset_connection(coax::unique_fd fd) {
  const linger at_once{1, 0};
  REQUIRE(coax::syscalls::current().setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &at_once,
                                               sizeof at_once) == 0);
}
