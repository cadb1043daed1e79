#pragma once

/// The server the simulation runs: an acceptor, workers that echo, and counts of what became of
/// each connection.

#include "bad_days.hpp"

#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/stream.hpp>
#include <coax/process/signals.hpp>
#include <coax/sim.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace simulated {

using namespace std::chrono_literals;

/// A connection that is counted for as long as it lives, wherever it is.
struct counts {
  int accepted = 0;
  int serving = 0;
  int closed = 0;
  int parked = 0;
  int workers = 0;
};

class counted_stream {
 public:
  counted_stream(coax::stream s, counts& c) : stream_(std::move(s)), counts_(&c) { ++c.accepted; }
  counted_stream(counted_stream&& other) noexcept
      : stream_(std::move(other.stream_)), counts_(std::exchange(other.counts_, nullptr)) {}
  counted_stream& operator=(counted_stream&&) = delete;
  ~counted_stream() {
    if (counts_ != nullptr) ++counts_->closed;
  }
  coax::stream* operator->() noexcept { return &stream_; }

 private:
  coax::stream stream_;
  counts* counts_;
};

using idle_workers = coax::worker_stack<counted_stream>;

struct serving_here {
  explicit serving_here(int& n) noexcept : count(n) { ++count; }
  serving_here(const serving_here&) = delete;
  serving_here& operator=(const serving_here&) = delete;
  ~serving_here() { --count; }
  int& count;
};

inline coax::task<> readwrite_routine(idle_workers& g_readwrite, counts& seen) {
  const serving_here alive(seen.workers);
  std::array<std::byte, 4096> buf;
  while (auto conn = co_await g_readwrite.park()) {
    const serving_here serving(seen.serving);
    while (auto n = co_await coax::within(60s, (*conn)->read(buf))) {
      auto sent = co_await coax::within(60s, (*conn)->write(std::span(buf).first(*n)));
      if (!sent) break;
    }
  }
}

inline coax::task<> accept_routine(coax::listener& from, idle_workers& g_readwrite, counts& seen) {
  while (auto worker = co_await g_readwrite.reserve()) {
    auto conn = co_await from.accept();
    worker->hand_off(counted_stream(std::move(conn).value(), seen));
  }
}

inline coax::task<> serve(counts& seen, int workers) {
  seen = {};
  auto from = co_await listen_at_last();
  idle_workers g_readwrite;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i)
      s.spawn(readwrite_routine, std::ref(g_readwrite), std::ref(seen));
    co_await coax::race(accept_routine(from, g_readwrite, seen), coax::signals({SIGTERM}));
    from.close();
    g_readwrite.close();
    co_await s.join_within(10s);
  });
}

inline coax::endpoint server_at(int host = 1) {
  return coax::endpoint::parse("10.0.0." + std::to_string(host) + ":9000").value();
}

}  // namespace simulated
