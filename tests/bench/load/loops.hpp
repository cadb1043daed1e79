#pragma once

#include "crowd.hpp"
#include "firehose.hpp"
#include "histogram.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "pattern.hpp"
#include "schedule.hpp"

#include <sched.h>
#include <sys/prctl.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

/// The connections of a measurement, on a core of the load's own.
struct watched_connections {
  watched_connections(const options& o, const watched_process& server, const pattern& bytes)
      : all(connect_many(o.server, bytes, o.connections, 1)), waiting(bytes) {
    run_on_cpu(server.pid(), o.server_cpu);
    run_on_cpu(::getpid(), o.load_cpu);
    for (connection& c : all) waiting.watch(c);
  }
  std::size_t number_of(const connection& c) const {
    return static_cast<std::size_t>(&c - all.data());
  }

  std::vector<connection> all;
  crowd waiting;
};

inline void add_latency(report& r, const histogram& latency) {
  if (latency.count() == 0) return;  // it was all too late to be counted
  r.add("p50_us", latency.quantile(0.5));
  r.add("p99_us", latency.quantile(0.99));
  r.add("p999_us", latency.quantile(0.999));
  r.add("max_us", latency.quantile(1));
}

/// Each connection sends again as soon as its replies are in.
inline report measure_closed(const options& o, const watched_process& server,
                             const pattern& bytes) {
  watched_connections load(o, server, bytes);
  std::vector<std::int64_t> sent_at(load.all.size());
  const auto send = [&](connection& c, std::int64_t now) {
    sent_at[load.number_of(c)] = now;
    c.send(bytes, o.batch_bytes());
  };
  for (connection& c : load.all) send(c, clock_now());
  histogram latency;
  const timespec limit{.tv_sec = o.watch ? 0 : 10, .tv_nsec = 0};
  const auto step = [&] {
    std::size_t replies = 0;
    load.waiting.wait(limit, [&](connection& c) {
      if (!c.all_in()) return;
      const std::int64_t now = clock_now();
      latency.add(now - sent_at[load.number_of(c)]);
      replies += o.depth;
      send(c, now);
    });
    return replies;
  };
  report r = measure(o, server, step, [&] { latency = {}; });
  add_latency(r, latency);
  return r;
}

/// `o.rate` messages a second are sent, whether replies come or not, and each is timed from the
/// moment it was meant to be sent: a server that stalls is charged for all who would have come
/// meanwhile.
///
/// One that `sleeps` between messages, at real-time priority where it may, can share its core with a
/// firehose; else it watches the clock.
inline report measure_open(const options& o, const watched_process& server, const pattern& bytes,
                           bool sleeps) {
  watched_connections load(o, server, bytes);
  firehose flood(o, bytes);
  if (sleeps) {
    const sched_param first{.sched_priority = 1};
    if (::sched_setscheduler(0, SCHED_FIFO, &first) < 0)
      std::fprintf(stderr, "load: no real-time priority: latencies include the load's own\n");
    ::prctl(PR_SET_TIMERSLACK, 1);
  }

  // What connecting has sent does not count.
  std::vector<std::uint64_t> before;
  for (const connection& c : load.all) before.push_back(c.received());
  schedule messages(o.rate, load.all.size(), o.size);
  histogram latency;
  std::int64_t from = 0;
  const auto step = [&] {
    const std::int64_t now = clock_now();
    while (messages.next() <= now) load.all[messages.take()].send(bytes, o.size);
    const std::int64_t left = sleeps ? messages.next() - now : 0;
    std::size_t replies = 0;
    load.waiting.wait({.tv_sec = 0, .tv_nsec = static_cast<long>(left)}, [&](connection& c) {
      const std::size_t number = load.number_of(c);
      replies += messages.answered(number, c.received() - before[number], from, latency);
    });
    return replies;
  };
  report r = measure(o, server, step, [&] {
    from = clock_now();
    flood.begin();
  });
  add_latency(r, latency);
  if (o.firehose) r.add("firehose_mb_s", flood.megabytes_per_second());
  return r;
}
