#pragma once

/// Addresses of sockets, and the text people write them in.

#include <coax/config.hpp>
#include <coax/task/result.hpp>

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>

namespace coax::inline COAX_ABI {

namespace detail {
class endpoints_at;
}

/// An address a socket is bound or connected to: IPv4, IPv6 or Unix. By default unspecified.
///
/// A plain value: it copies as bytes and holds nothing open.
///
/// Thread    any.
/// See       ip(7), ipv6(7), unix(7).
class endpoint {
 public:
  endpoint() noexcept {}

  /// Reads an endpoint from text: "127.0.0.1:9000", "[::1]:0", "[fe80::1%eth0]:80", "unix:/run/x",
  /// or "unix:@name" for a name in the abstract namespace. Strict, and asks no name server.
  ///
  /// Errors    errc::bad_address, errc::bad_port (missing too), errc::path_too_long;
  ///           std::errc::no_such_device for a scope that is neither an interface nor a number.
  /// See       inet_pton(3), if_nametoindex(3).
  static result<endpoint> parse(std::string_view text);

  /// Reads an IP address that stands without a port: "127.0.0.1", "::1", "fe80::1%eth0".
  ///
  /// Errors    errc::bad_port when `port` is not from 0 to 65535; else as parse().
  static result<endpoint> ip(std::string_view address, int port);

  /// Takes an address as the kernel gives it. One that is shorter than its family says is
  /// unspecified; one longer than any that sockets here use is cut.
  ///
  /// See       accept(2), getsockname(2), recvmsg(2).
  static endpoint from_sockaddr(const sockaddr* address, socklen_t size) noexcept;

  /// The form the kernel takes, of size() bytes.
  ///
  /// Lifetime  points into the endpoint.
  const sockaddr* data() const noexcept { return &address_.any; }
  socklen_t size() const noexcept { return size_; }

  int family() const noexcept { return address_.any.sa_family; }
  bool is_unix() const noexcept { return family() == AF_UNIX; }

  /// The port, in the order of this machine; 0 for what has none.
  std::uint16_t port() const noexcept;

  /// The text parse() takes, and takes back to an equal endpoint. What cannot be written reads
  /// "unspecified", "unix:" (an unnamed socket), "unix:@" (a name of no bytes) or "family 16"; a
  /// relative path that begins with '@' reads "./@...", and the bytes of an abstract name, NUL
  /// included, stand as they are. A path of 108 bytes, which the kernel knows too, parse() refuses.
  std::string to_string() const;

  /// Whether both name the same socket: the flow label of IPv6 does not count, its scope does.
  friend bool operator==(const endpoint& a, const endpoint& b) noexcept { return a.equals(b); }

 private:
  friend class detail::endpoints_at;

  static constexpr socklen_t path_offset = offsetof(sockaddr_un, sun_path);
  static constexpr std::size_t path_max_bytes = sizeof(sockaddr_un::sun_path) - 1;

  static result<endpoint> ipv4(std::string_view address);
  static result<endpoint> ipv6(std::string_view address);
  static result<endpoint> with_port(result<endpoint> address, std::string_view port);
  static result<endpoint> unix_socket(std::string_view path);
  static result<std::uint32_t> scope_index(std::string_view interface);

  void set_port(std::uint16_t port) noexcept;
  std::string_view path_bytes() const noexcept;
  std::string unix_text() const;
  std::string ipv6_text() const;
  bool equals(const endpoint& other) const noexcept;

  // sun_path is the largest; sockaddr_storage would double what every connection holds
  union addresses {
    sockaddr_un un;  // first, so that {} clears every byte
    sockaddr any;
    sockaddr_in in;
    sockaddr_in6 in6;
  };

  addresses address_{};
  socklen_t size_ = 0;
};

namespace detail {

/// Text with the NUL that inet_pton(3) and if_nametoindex(3) want; empty where it does not fit.
template <std::size_t N>
struct c_text {
  explicit c_text(std::string_view text) noexcept {
    if (text.size() < N && text.find('\0') == text.npos) text.copy(bytes.data(), text.size());
  }

  std::array<char, N> bytes{};
};

}  // namespace detail

inline result<endpoint> endpoint::parse(std::string_view text) {
  constexpr std::string_view unix_prefix = "unix:";
  if (text.starts_with(unix_prefix)) return unix_socket(text.substr(unix_prefix.size()));

  if (text.starts_with('[')) {
    const auto close = text.rfind(']');  // the last: a scope may be an interface named "a]b"
    if (close == text.npos) return errc::bad_address;
    const auto rest = text.substr(close + 1);
    if (!rest.empty() && rest.front() != ':') return errc::bad_address;
    return with_port(ipv6(text.substr(1, close - 1)), rest);
  }
  // the first colon: "::1" and "::1:80" are then bad addresses, not IPv6 without its brackets
  const auto colon = std::min(text.find(':'), text.size());
  return with_port(ipv4(text.substr(0, colon)), text.substr(colon));
}

inline result<endpoint> endpoint::ip(std::string_view address, int port) {
  if (port < 0 || port > UINT16_MAX) return errc::bad_port;
  auto made = address.find(':') == address.npos ? ipv4(address) : ipv6(address);
  if (made) made->set_port(static_cast<std::uint16_t>(port));
  return made;
}

inline endpoint endpoint::from_sockaddr(const sockaddr* address, socklen_t size) noexcept {
  endpoint made;
  if (address == nullptr || size < sizeof(sa_family_t)) return made;

  const auto held = std::min<std::size_t>(size, sizeof(sockaddr_un));
  std::memcpy(&made.address_, address, held);
  made.size_ = static_cast<socklen_t>(held);
  switch (made.family()) {
    case AF_INET:
      if (size < sizeof(sockaddr_in)) return {};
      made.size_ = sizeof(sockaddr_in);
      return made;
    case AF_INET6:
      if (size < sizeof(sockaddr_in6)) return {};
      made.size_ = sizeof(sockaddr_in6);
      return made;
    case AF_UNIX:
      if (const auto path = made.path_bytes(); !path.empty() && path.front() != '\0') {
        // one NUL after the path, however many the caller's size took in. A path of 108 bytes has
        // none: bind(2) takes it, and getsockname(2) then gives a size beyond that of sockaddr_un
        made.size_ = path_offset + static_cast<socklen_t>(std::min(path.find('\0'), path.size()));
        if (made.size_ < sizeof(sockaddr_un)) ++made.size_;
      }
      return made;
    case AF_UNSPEC:
      return {};
    default:
      return made;
  }
}

inline std::uint16_t endpoint::port() const noexcept {
  if (family() == AF_INET) return ntohs(address_.in.sin_port);
  if (family() == AF_INET6) return ntohs(address_.in6.sin6_port);
  return 0;
}

inline void endpoint::set_port(std::uint16_t port) noexcept {
  if (family() == AF_INET) address_.in.sin_port = htons(port);
  if (family() == AF_INET6) address_.in6.sin6_port = htons(port);
}

inline std::string endpoint::to_string() const {
  switch (family()) {
    case AF_UNSPEC:
      return "unspecified";
    case AF_INET: {
      std::array<char, INET_ADDRSTRLEN> text{};
      ::inet_ntop(AF_INET, &address_.in.sin_addr, text.data(), text.size());
      return std::string(text.data()) + ':' + std::to_string(port());
    }
    case AF_INET6:
      return ipv6_text();
    case AF_UNIX:
      return unix_text();
    default:
      return "family " + std::to_string(family());
  }
}

inline std::string endpoint::ipv6_text() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET6, &address_.in6.sin6_addr, text.data(), text.size());
  std::string made = std::string("[") + text.data();
  if (const auto index = address_.in6.sin6_scope_id; index != 0) {
    std::array<char, IF_NAMESIZE> name{};
    const bool named = ::if_indextoname(index, name.data()) != nullptr;
    made += '%' + (named ? std::string(name.data()) : std::to_string(index));
  }
  return made + "]:" + std::to_string(port());
}

inline std::string endpoint::unix_text() const {
  const auto path = path_bytes();
  std::string made = "unix:";
  if (path.empty()) return made;
  if (path.front() == '\0') return made.append("@").append(path.substr(1));
  if (path.front() == '@') made += "./";  // a file, not a name in the abstract namespace
  return made.append(path.substr(0, path.find('\0')));
}

/// What stands in sun_path: nothing (unnamed), a path with its NUL, or NUL and an abstract name.
inline std::string_view endpoint::path_bytes() const noexcept {
  return {address_.un.sun_path, size_ - path_offset};
}

inline bool endpoint::equals(const endpoint& other) const noexcept {
  if (family() != other.family() || size_ != other.size_) return false;
  if (family() == AF_INET) {
    return address_.in.sin_port == other.address_.in.sin_port &&
           address_.in.sin_addr.s_addr == other.address_.in.sin_addr.s_addr;
  }
  if (family() == AF_INET6) {
    const auto& a = address_.in6;
    const auto& b = other.address_.in6;
    return a.sin6_port == b.sin6_port && a.sin6_scope_id == b.sin6_scope_id &&
           std::memcmp(&a.sin6_addr, &b.sin6_addr, sizeof(in6_addr)) == 0;
  }
  return std::memcmp(&address_, &other.address_, size_) == 0;
}

inline result<endpoint> endpoint::ipv4(std::string_view address) {
  endpoint made;
  const detail::c_text<INET_ADDRSTRLEN> text(address);
  made.address_.in = {};
  if (::inet_pton(AF_INET, text.bytes.data(), &made.address_.in.sin_addr) != 1) {
    return errc::bad_address;
  }
  made.address_.in.sin_family = AF_INET;
  made.size_ = sizeof(sockaddr_in);
  return made;
}

inline result<endpoint> endpoint::ipv6(std::string_view address) {
  endpoint made;
  const auto percent = std::min(address.find('%'), address.size());
  const detail::c_text<INET6_ADDRSTRLEN> text(address.substr(0, percent));
  made.address_.in6 = {};
  if (::inet_pton(AF_INET6, text.bytes.data(), &made.address_.in6.sin6_addr) != 1) {
    return errc::bad_address;
  }
  if (percent != address.size()) {
    const auto index = scope_index(address.substr(percent + 1));
    if (!index) return index.error();
    made.address_.in6.sin6_scope_id = *index;
  }
  made.address_.in6.sin6_family = AF_INET6;
  made.size_ = sizeof(sockaddr_in6);
  return made;
}

inline result<std::uint32_t> endpoint::scope_index(std::string_view interface) {
  // the colon because the kernel would look up what stands before it: "lo:1" is an alias of "lo"
  constexpr std::string_view never_in_a_name(":\0", 2);
  if (interface.empty() || interface.find_first_of(never_in_a_name) != interface.npos) {
    return errc::bad_address;
  }

  // the name first: Linux lets an interface be named "2"
  const detail::c_text<IF_NAMESIZE> name(interface);
  errno = ENODEV;
  if (const auto index = ::if_nametoindex(name.bytes.data()); index != 0) return index;
  const std::error_code unknown(errno, std::system_category());

  std::uint32_t index = 0;
  const auto* end = interface.data() + interface.size();
  const auto [rest, failure] = std::from_chars(interface.data(), end, index);
  if (failure != std::errc() || rest != end) return unknown;
  if (index == 0) return std::errc::no_such_device;  // 0 is how the kernel writes "no scope"
  return index;
}

inline result<endpoint> endpoint::with_port(result<endpoint> address, std::string_view port) {
  if (!address) return address;
  if (!port.starts_with(':')) return errc::bad_port;

  std::uint16_t number = 0;  // unsigned, for which from_chars takes no sign
  const auto* end = port.data() + port.size();
  const auto [rest, failure] = std::from_chars(port.data() + 1, end, number);
  if (failure != std::errc() || rest != end) return errc::bad_port;
  address->set_port(number);
  return address;
}

inline result<endpoint> endpoint::unix_socket(std::string_view path) {
  const bool abstract = path.starts_with('@');
  // a NUL ends a path early, and in an abstract name it is most likely the rest of a fixed buffer
  if (path.size() == (abstract ? 1 : 0) || path.find('\0') != path.npos) return errc::bad_address;
  if (path.size() > path_max_bytes + (abstract ? 1 : 0)) return errc::path_too_long;

  endpoint made;
  made.address_.un.sun_family = AF_UNIX;
  path.copy(made.address_.un.sun_path, path.size());
  if (abstract) made.address_.un.sun_path[0] = '\0';
  // a path counts its NUL, as getsockname(2) does; an abstract name is as long as its size says
  made.size_ = path_offset + static_cast<socklen_t>(path.size() + (abstract ? 0 : 1));
  return made;
}

}  // namespace coax::inline COAX_ABI
