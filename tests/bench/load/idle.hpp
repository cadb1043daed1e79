#pragma once

#include "connection.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "pattern.hpp"
#include "watched_process.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

/// Waits until the server has used no CPU for a while.
inline void wait_until_quiet(const watched_process& server) {
  std::int64_t before = -1;
  for (int tries = 0; tries < 100 && server.cpu() != before; ++tries) {
    before = server.cpu();
    ::usleep(50'000);
  }
}

/// Connections that do nothing: what the server keeps for each before and after a first message,
/// and the CPU it uses while all are silent.
inline report measure_idle(const options& o, const watched_process& server, const pattern& bytes) {
  wait_until_quiet(server);
  report r;
  r.add("resident_without", static_cast<double>(server.resident()));
  std::vector<connection> connections = connect_many(o.server, bytes, o.connections, 2);
  wait_until_quiet(server);
  r.add("resident_silent", static_cast<double>(server.resident()));
  echo_once(connections, bytes, o.size);
  wait_until_quiet(server);
  r.add("resident_after_echo", static_cast<double>(server.resident()));
  const std::int64_t cpu = server.cpu();
  const std::int64_t begun = clock_now();
  ::usleep(static_cast<useconds_t>(o.seconds * 1e6));
  const auto passed = static_cast<double>(clock_now() - begun);
  r.add("idle_cpu_percent", static_cast<double>(server.cpu() - cpu) / passed * 100);
  r.add("connections", static_cast<double>(o.connections));
  return r;
}
