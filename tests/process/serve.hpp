#pragma once

/// What the processes of the tests of prefork do: greet each connection with the pid, echo messages of eight bytes, and
/// drain when they are told to stop.

#include "from_outside.hpp"

#include <coax/net/listener.hpp>
#include <coax/process/prefork.hpp>
#include <coax/process/signals.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>

#include <array>
#include <functional>
#include <span>
#include <string>
#include <utility>

namespace outside {

/// With a drain that no test waits for: it is longer than `patience`.
inline coax::prefork_options processes(int n) {
  coax::prefork_options o;
  o.processes = n;
  o.drain = 60s;
  return o;
}

using idle_workers = coax::worker_stack<coax::stream>;

inline coax::task<> greet_and_echo(idle_workers& idle, const std::string& greeting) {
  std::array<std::byte, 8> message;
  while (auto conn = co_await idle.park()) {
    auto told = co_await conn->write(greeting);
    while (told) {
      auto got = co_await conn->read_exactly(message);
      if (!got) break;
      told = co_await conn->write(message);
    }
  }
}

inline int port_of_peer(const coax::stream& conn) {
  sockaddr_in peer{};
  socklen_t size = sizeof(peer);
  ::getpeername(conn.native_handle(), reinterpret_cast<sockaddr*>(&peer), &size);
  return ntohs(peer.sin_port);
}

/// Tells of each connection before it hands it over: 'a', with the client's port.
inline coax::task<> accept_and_tell(coax::listener& from, idle_workers& idle, int tell) {
  while (auto worker = co_await idle.reserve()) {
    auto conn = co_await from.accept();
    if (conn) reports::tell(tell, 'a', port_of_peer(*conn));
    worker->hand_off(std::move(conn).value());
  }
}

/// Tells when it serves ('r'), when it is asked to stop ('s', with the signal) and when it is asked again ('x').
inline coax::task<> serve(coax::listener& from, int workers, int tell) {
  idle_workers idle;
  const std::string greeting = std::to_string(::getpid()) + "\n";
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i) s.spawn(greet_and_echo, std::ref(idle), std::ref(greeting));
    auto stopped = coax::signals({SIGINT, SIGTERM});
    reports::tell(tell, 'r');
    auto first = co_await coax::race(accept_and_tell(from, idle, tell), std::move(stopped));
    const std::optional<int> number = std::get<1>(first);
    reports::tell(tell, 's', number.value_or(0));
    from.close();
    idle.close();
    auto second = co_await coax::race(s.join_within(60s), coax::signals({SIGINT, SIGTERM}));
    const std::optional<int> again = std::get<1>(second);
    if (again) reports::tell(tell, 'x', *again);
    s.cancel();
  });
}

/// Is told to stop, tells so, and does not.
inline coax::task<> never_stops(int tell) {
  auto stopped = coax::signals({SIGINT, SIGTERM});
  reports::tell(tell, 'r');
  const int number = co_await std::move(stopped);
  reports::tell(tell, 's', number);
  co_await coax::sleep_for(1h);
}

}  // namespace outside
