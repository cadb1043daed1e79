#pragma once

#include <coax/config.hpp>

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace coax::inline COAX_ABI::sim {

/// An IP address and port in the simulated network. IPv4 stands in its IPv6-mapped form, as it does
/// in a socket of both families.
struct address {
  std::array<std::uint8_t, 16> ip{};
  std::uint16_t port = 0;

  friend auto operator<=>(const address&, const address&) = default;

  bool is_v4() const noexcept {
    constexpr std::array<std::uint8_t, 12> mapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return std::equal(mapped.begin(), mapped.end(), ip.begin());
  }
  /// "0.0.0.0" or "::".
  bool is_any() const noexcept { return ip == any(true).ip || ip == any(false).ip; }
  bool is_loopback() const noexcept {
    return ip == loopback(false).ip || (is_v4() && ip[12] == 127);
  }

  static address any(bool v4) noexcept {
    address made;
    if (v4) made.ip[10] = made.ip[11] = 0xff;
    return made;
  }
  static address loopback(bool v4) noexcept {
    address made = any(v4);
    if (v4) made.ip[12] = 127;
    made.ip[15] = 1;
    return made;
  }
  /// Host `index` is 10.0.x.y and fd00::x:y, from 10.0.0.1 on.
  static address of_host(int index, bool v4) noexcept {
    address made = any(v4);
    made.ip[v4 ? 12 : 0] = v4 ? 10 : 0xfd;
    made.ip[14] = static_cast<std::uint8_t>((index + 1) >> 8);
    made.ip[15] = static_cast<std::uint8_t>(index + 1);
    return made;
  }
  /// The host this would be the address of, if there were so many; -1 for another network.
  int host() const noexcept {
    address of_none = of_host(-1, is_v4());
    if (!std::equal(ip.begin(), ip.begin() + 14, of_none.ip.begin())) return -1;
    return (ip[14] << 8 | ip[15]) - 1;
  }

  std::string text() const {
    if (is_v4())
      return std::to_string(ip[12]) + '.' + std::to_string(ip[13]) + '.' + std::to_string(ip[14]) +
             '.' + std::to_string(ip[15]);
    return "fd00::" + std::to_string(ip[14] << 8 | ip[15]);
  }
};

/// Takes an address as bind(2) and connect(2) are given it, for a socket of `family`.
///
/// Result    0, -EINVAL or -EAFNOSUPPORT.
inline int read_address(int family, const sockaddr* from, socklen_t size, address& into) noexcept {
  if (size < sizeof(sa_family_t)) return -EINVAL;
  const std::size_t needed = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  if (from->sa_family == AF_INET && family == AF_INET) {
    if (size < needed) return -EINVAL;
    sockaddr_in in{};
    std::memcpy(&in, from, sizeof(in));
    into = address::any(true);
    std::memcpy(&into.ip[12], &in.sin_addr.s_addr, 4);
    into.port = ntohs(in.sin_port);
    return 0;
  }
  if (from->sa_family == AF_INET6 && family == AF_INET6) {
    if (size < needed) return -EINVAL;
    sockaddr_in6 in{};
    std::memcpy(&in, from, sizeof(in));
    std::memcpy(into.ip.data(), &in.sin6_addr, 16);
    into.port = ntohs(in.sin6_port);
    return 0;
  }
  return size < needed ? -EINVAL : -EAFNOSUPPORT;
}

/// Gives an address as getsockname(2) does: cut where the caller has no room.
inline void write_address(int family, const address& from, sockaddr* into,
                          socklen_t* size) noexcept {
  sockaddr_in in{};
  sockaddr_in6 in6{};
  const void* made = &in6;
  socklen_t length = sizeof(in6);
  if (family == AF_INET) {
    in.sin_family = AF_INET;
    in.sin_port = htons(from.port);
    std::memcpy(&in.sin_addr.s_addr, &from.ip[12], 4);
    made = &in;
    length = sizeof(in);
  } else {
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(from.port);
    std::memcpy(&in6.sin6_addr, from.ip.data(), 16);
  }
  std::memcpy(into, made, std::min(*size, length));
  *size = length;
}

}  // namespace coax::inline COAX_ABI::sim
