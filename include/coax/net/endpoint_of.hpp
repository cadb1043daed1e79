#pragma once

#include <coax/config.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/net/endpoint.hpp>
#include <coax/task/result.hpp>

#include <sys/socket.h>

namespace coax::inline COAX_ABI::detail {

/// What getsockname(2) or getpeername(2) says of the socket `fd`.
inline result<endpoint> endpoint_of(int fd, int (syscalls::*ask)(int, sockaddr*,
                                                                 socklen_t*) noexcept) noexcept {
  sockaddr_storage storage{};
  socklen_t size = sizeof(storage);
  auto* const address = reinterpret_cast<sockaddr*>(&storage);
  const int answer = (syscalls::current().*ask)(fd, address, &size);
  if (answer < 0) return error_of(answer);
  return endpoint::from_sockaddr(address, size);
}

}  // namespace coax::inline COAX_ABI::detail
