#pragma once

#include "connection.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "pattern.hpp"
#include "sockets.hpp"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

/// Server and load share one core and take turns: the load sends on all connections, then sleeps
/// until all replies are in.
///
/// Neither preempts the other. The first reply wakes the load, but it gets the core only when the
/// server waits, and that is when the last reply is in. It waits in a plain recv: an epoll of the
/// load's would cost the server something for each reply.
class lockstep {
 public:
  lockstep(const options& o, const pattern& bytes) : options_(o), bytes_(bytes) {
    for (std::size_t i = 0; i < o.connections; ++i)
      connections_.emplace_back(connect_to(o.server), i);
  }

  std::size_t round() {
    for (connection& c : connections_) c.send(bytes_, options_.batch_bytes());
    for (connection& c : connections_) c.receive_all(bytes_, scratch_);
    return connections_.size() * options_.depth;
  }

 private:
  const options& options_;
  const pattern& bytes_;
  std::vector<connection> connections_;
  std::vector<char> scratch_ = std::vector<char>(64 * 1024);
};

/// Both on the server's core, in turns.
inline void share_a_core(const options& o, const watched_process& server) {
  for (const pid_t pid : {server.pid(), ::getpid()}) {
    run_on_cpu(pid, o.server_cpu);
    run_until_it_waits(pid);
  }
}

inline report measure_lockstep(const options& o, const watched_process& server,
                               const pattern& bytes) {
  share_a_core(o, server);
  lockstep load(o, bytes);
  return measure(o, server, [&] { return load.round(); }, [] {});
}
