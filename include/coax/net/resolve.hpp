#pragma once

#include <coax/config.hpp>
#include <coax/io/blocking_call.hpp>
#include <coax/io/reactor.hpp>
#include <coax/net/endpoint.hpp>
#include <coax/task/result.hpp>
#include <coax/task/task.hpp>

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

namespace detail {

class resolve_category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "getaddrinfo"; }
  std::string message(int code) const override { return ::gai_strerror(code); }

  static const std::error_category& instance() noexcept {
    // never destroyed, so that a code can still be printed while statics are being destroyed
    static const resolve_category& category = *new resolve_category;
    return category;
  }
};

}  // namespace detail

/// A code of getaddrinfo(3), such as EAI_NONAME, as an error: to compare with.
inline std::error_code resolve_error(int code) noexcept {
  return {code, detail::resolve_category::instance()};
}

namespace detail {

/// Addresses with the same port, each once, in the order in which they were found.
class endpoints_at {
 public:
  explicit endpoints_at(std::uint16_t port) noexcept : port_(port) {}

  /// Takes in an address of `size` bytes, if it is one of IPv4 or IPv6.
  void add(const sockaddr* address, socklen_t size) {
    endpoint made = endpoint::from_sockaddr(address, size);
    if (made.family() != AF_INET && made.family() != AF_INET6) return;
    made.set_port(port_);
    if (std::find(found_.begin(), found_.end(), made) == found_.end()) found_.push_back(made);
  }

  result<std::vector<endpoint>> take() {
    if (found_.empty()) return resolve_error(EAI_NONAME);
    return std::move(found_);
  }

 private:
  std::uint16_t port_;
  std::vector<endpoint> found_;
};

/// Asks the C library, which may wait for seconds.
inline result<std::vector<endpoint>> ask_c_library(const std::string& host, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;  // or each address would come once for each type
  addrinfo* list = nullptr;
  const int failed = ::getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (failed == EAI_SYSTEM) return error_of(-errno);
  if (failed != 0) return resolve_error(failed);
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> freed(list, ::freeaddrinfo);
  endpoints_at found(port);
  for (const addrinfo* at = list; at != nullptr; at = at->ai_next)
    found.add(at->ai_addr, at->ai_addrlen);
  return found.take();
}

}  // namespace detail

/// Looks up the addresses of `host`: a name, or an IPv4 or IPv6 address, which is not looked up.
///
/// A name server may take many seconds to say that it does not answer: put it under `within`. A
/// lookup that is given up goes on in its thread; see `blocking`.
///
/// Result    at least one endpoint, the one to be tried first in front.
/// Errors    coax::errc::bad_port for one that is not from 0 to 65535; resolve_error(EAI_NONAME) for a
///           name that nobody knows, EAI_AGAIN when the servers do not answer, and so on; as errno where
///           getaddrinfo(3) says EAI_SYSTEM, and when there is no thread to be had;
///           std::errc::no_such_device for a scope that is no interface.
/// See       getaddrinfo(3), /etc/hosts, resolv.conf(5).
inline task<result<std::vector<endpoint>>> resolve(std::string host, int port) {
  const result<endpoint> numeric = endpoint::ip(host, port);
  if (numeric) co_return std::vector<endpoint>(1, *numeric);
  if (numeric.error() != errc::bad_address) co_return numeric.error();
  const auto checked = static_cast<std::uint16_t>(port);  // by ip(), before the address
  if (host.empty() || host.find('\0') != host.npos) co_return resolve_error(EAI_NONAME);

  std::vector<sockaddr_storage> known;
  if (const std::optional<int> failed = reactor::current().system().look_up(host, known)) {
    if (*failed != 0) co_return resolve_error(*failed);
    detail::endpoints_at found(checked);
    for (const sockaddr_storage& each : known)
      found.add(reinterpret_cast<const sockaddr*>(&each), sizeof(each));
    co_return found.take();
  }
  auto found = co_await detail::call_in_pool(detail::ask_c_library, std::move(host), checked);
  co_return found;
}

}  // namespace coax::inline COAX_ABI
