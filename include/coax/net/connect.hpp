#pragma once

#include <coax/config.hpp>
#include <coax/io/operations/connect.hpp>
#include <coax/io/reactor.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/net/endpoint.hpp>
#include <coax/net/resolve.hpp>
#include <coax/net/stream.hpp>
#include <coax/task/result.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

/// Connects to `to`. The kernel gives up after minutes: put it under `within`.
///
/// Result    the connection, with TCP_NODELAY.
/// Errors    as socket(2) and connect(2): ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ...;
///           std::errc::invalid_argument for an unspecified endpoint; std::errc::not_enough_memory.
inline task<result<stream>> connect(endpoint to) {
  using namespace std::chrono_literals;
  if (to.family() == AF_UNSPEC) co_return std::errc::invalid_argument;
  syscalls& calls = reactor::current().system();
  const int opened = calls.socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (opened < 0) co_return detail::error_of(opened);
  unique_fd fd(opened);

  if (to.is_unix()) {
    // It is there or it is not; only a full backlog means waiting, and nothing tells when that has
    // room.
    clock::duration pause = 1ms;
    while (true) {
      const int answer = calls.connect(fd.get(), to.data(), to.size());
      if (answer == 0) co_return stream::made_of(std::move(fd), false);
      if (answer != -EAGAIN && answer != -EINTR) co_return detail::error_of(answer);
      co_await sleep_for(pause);
      pause = std::min<clock::duration>(pause * 2, 100ms);
    }
  }

  const int on = 1;
  // A wish, not a condition.
  calls.setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  auto connected = co_await operations::connect(fd.get(), to.data(), to.size());
  if (!connected) co_return connected.error();
  auto connection = stream::made_of(std::move(fd), true);
  if (!connection) co_return connection;
  // Nobody listens there, but the kernel gave this socket that very port to connect from: it talks
  // to itself.
  const result<endpoint> here = connection->local_endpoint();
  const result<endpoint> there = connection->remote_endpoint();
  if (here && there && *here == *there) co_return std::errc::connection_refused;
  co_return connection;
}

namespace detail {

/// Connects to the first of `places`, at least one, that takes a connection. Each but the last has
/// only `patience`, so that one that does not answer does not keep the others from being tried.
inline task<result<stream>> connect_to_first(std::vector<endpoint> places, timeout patience) {
  for (std::size_t i = 0; i + 1 < places.size(); ++i) {
    auto made = co_await within(patience, connect(places[i]));
    if (made) co_return made;
  }
  auto made = co_await connect(places.back());
  co_return made;
}

}  // namespace detail

/// Connects to `host`, a name or an address: looks it up and tries its addresses one after the
/// other, in the order in which they were found. Each but the last is given 2 s. Put the whole under
/// `within`.
///
/// Result    the connection, with TCP_NODELAY.
/// Errors    as `resolve`; else as `connect`, of the address that was tried last.
inline task<result<stream>> connect(std::string host, int port) {
  auto places = co_await resolve(std::move(host), port);
  if (!places) co_return places.error();
  auto made = co_await detail::connect_to_first(std::move(*places), std::chrono::seconds(2));
  co_return made;
}

}  // namespace coax::inline COAX_ABI
