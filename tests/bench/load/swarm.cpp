// The clients' side of many connections: one process of several, told by lines on its stdin what to
// do. To each line it answers with one of JSON. Every byte that comes back is checked.
//
//   swarm IP PORT SOURCE COUNT    the first 10,000 come from 127.0.0.0 + SOURCE, as many from the next
//
// connect                   connects COUNT connections
// echo                      each of them sends a message and waits for it
// active PERCENT SECONDS    so many of them send a message a second; how long do replies take?
// quit

#include "connection.hpp"
#include "crowd.hpp"
#include "histogram.hpp"
#include "options.hpp"
#include "pattern.hpp"
#include "schedule.hpp"
#include "time.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr std::size_t message_bytes = 64;

/// Result: the time each message took, as a histogram.
histogram keep_active(std::vector<connection>& all, const pattern& bytes, double percent,
                      double seconds) {
  const auto count = std::clamp<std::size_t>(
      static_cast<std::size_t>(static_cast<double>(all.size()) * percent / 100), 1, all.size());
  // Spread over all, as those that are next to each other may be served by one process.
  std::vector<connection*> active;
  std::vector<std::uint64_t> before;
  crowd waiting(bytes);
  for (std::size_t i = 0; i < count; ++i) {
    active.push_back(&all[i * all.size() / count]);
    before.push_back(active.back()->received());
    waiting.watch(*active.back());
  }
  histogram latency;
  schedule messages(static_cast<double>(count), count, message_bytes);
  for (const std::int64_t end = clock_now() + nanoseconds(seconds); clock_now() < end;) {
    const std::int64_t now = clock_now();
    while (messages.next() <= now) active[messages.take()]->send(bytes, message_bytes);
    const std::int64_t left = std::min<std::int64_t>(messages.next() - now, 999'999'999);
    waiting.wait({.tv_sec = 0, .tv_nsec = static_cast<long>(left)}, [&](connection& c) {
      const auto number =
          static_cast<std::size_t>(std::find(active.begin(), active.end(), &c) - active.begin());
      messages.answered(number, c.received() - before[number], 0, latency);
    });
  }
  return latency;
}

std::string json(const histogram& h) {
  std::string text;
  h.for_each([&](std::uint64_t value, std::uint64_t count) {
    text +=
        (text.empty() ? "[" : ", [") + std::to_string(value) + ", " + std::to_string(count) + "]";
  });
  return "{\"ns\": [" + text + "]}";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) fail("usage: swarm IP PORT SOURCE COUNT");
  const sockaddr_in server =
      address_of(argv[1], static_cast<std::uint16_t>(number("PORT", argv[2], 1, 65535)));
  const auto source = static_cast<std::uint32_t>(number("SOURCE", argv[3], 1, 1 << 24));
  const auto count = static_cast<std::size_t>(number("COUNT", argv[4], 1, 1e6));
  const pattern bytes;
  std::vector<connection> all;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string what;
    double percent = 0;
    double seconds = 0;
    words >> what >> percent >> seconds;
    if (what == "connect") {
      all = connect_many(server, bytes, count, source);
      std::printf("{\"connected\": %zu}\n", all.size());
    } else if (what == "echo") {
      echo_once(all, bytes, message_bytes);
      std::printf("{\"echoed\": %zu}\n", all.size());
    } else if (what == "active") {
      std::puts(json(keep_active(all, bytes, percent, seconds)).c_str());
    } else if (what == "quit") {
      break;
    } else {
      fail("\"" + line + "\" is nothing it can do");
    }
    std::fflush(stdout);
  }
}
