#pragma once

#include "fail.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

/// A descriptor that is closed at the end.
class owned_fd {
 public:
  explicit owned_fd(int fd = -1) : fd_(fd) {}
  owned_fd(owned_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  owned_fd& operator=(owned_fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~owned_fd() {
    if (fd_ >= 0) ::close(fd_);
  }

  int get() const { return fd_; }

 private:
  int fd_;
};

inline sockaddr_in address_of(const std::string& ip, std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (::inet_pton(AF_INET, ip.c_str(), &address.sin_addr) != 1)
    fail("\"" + ip + "\" is no IPv4 address");
  return address;
}

/// A connection to `server`, from 127.0.0.0 + `source` when that is not 0: a source address has
/// only some 28,000 ports to offer.
inline owned_fd connect_to(const sockaddr_in& server, std::uint32_t source = 0) {
  owned_fd made(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (made.get() < 0) fail_errno("socket");
  const int on = 1;
  if (source != 0) {
    sockaddr_in from{};
    from.sin_family = AF_INET;
    from.sin_addr.s_addr = htonl((127U << 24) + source);
    // The port is chosen when both ends are known: it need only be free towards this server.
    if (::setsockopt(made.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) < 0 ||
        ::bind(made.get(), reinterpret_cast<const sockaddr*>(&from), sizeof(from)) < 0)
      fail_errno("bind");
  }
  const timeval patience{.tv_sec = 10, .tv_usec = 0};
  if (::setsockopt(made.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
      ::setsockopt(made.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
      ::setsockopt(made.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0)
    fail_errno("setsockopt");
  if (::connect(made.get(), reinterpret_cast<const sockaddr*>(&server), sizeof(server)) < 0)
    fail_errno("connect");
  return made;
}

/// Receives what there is, up to `size`; waits where the descriptor does.
inline std::size_t receive_some(int fd, char* into, std::size_t size) {
  while (true) {
    const ssize_t got = ::recv(fd, into, size, 0);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got == 0) fail("the server closed a connection");
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) fail_errno("recv");
  }
}
