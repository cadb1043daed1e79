#pragma once

#include "counters.hpp"
#include "options.hpp"
#include "time.hpp"
#include "watched_process.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// Figures by name, printed as one line of JSON.
class report {
 public:
  void add(std::string name, double value) { figures_.emplace_back(std::move(name), value); }

  void print() const {
    std::string line;
    for (const auto& [name, value] : figures_) {
      char text[64];
      std::snprintf(text, sizeof(text), "%.9g", value);
      line +=
          (line.empty() ? "{\"" : ", \"") + name + "\": " + (std::isfinite(value) ? text : "null");
    }
    std::puts((line + "}").c_str());
  }

 private:
  std::vector<std::pair<std::string, double>> figures_;
};

/// The server's system calls for each message of some more steps.
template <class Step>
std::optional<double> system_calls_each(const options& o, const watched_process& server,
                                        Step&& step) {
  const system_call_counter calls(server.pid());
  std::uint64_t made = 0;
  calls.start();
  for (const std::int64_t end = clock_now() + nanoseconds(o.seconds / 4); clock_now() < end;)
    made += step();
  const std::optional<std::uint64_t> counted = calls.count();
  if (!counted || made == 0) return std::nullopt;
  return static_cast<double>(*counted) / static_cast<double>(made);
}

/// Repeats `step`, which gives the messages (or connections) it has made: first to warm up, then
/// for `o.seconds`, or until there are `o.count`. Reports the server's cost of one.
///
/// `begin` is called when the warm-up is over.
template <class Step, class Begin>
report measure(const options& o, const watched_process& server, Step&& step, Begin&& begin) {
  for (const std::int64_t end = clock_now() + nanoseconds(o.warm_up); clock_now() < end;) step();

  std::optional<user_share_sampler> user;
  if (o.observe) {
    user.emplace(server.pid());
    user->start();
  }
  begin();
  std::uint64_t made = 0;
  const std::int64_t cpu_before = server.cpu();
  const std::int64_t begun = clock_now();
  std::int64_t now = begun;
  while (o.count > 0 ? made < o.count : now < begun + nanoseconds(o.seconds)) {
    made += step();
    now = clock_now();
    if (user) user->collect();
  }
  const auto used = static_cast<double>(server.cpu() - cpu_before);
  if (made == 0) fail("nothing was answered in time");

  const auto each = static_cast<double>(made);
  const double seconds = static_cast<double>(now - begun) / 1e9;
  report r;
  r.add("messages", each);
  r.add("seconds", seconds);
  r.add("rate", each / seconds);
  r.add("cpu_us", used / 1e3 / each);
  if (user) {
    user->stop();
    user->collect();
    if (const auto share = user->share()) r.add("user_ns", *share * used / each);
    if (const auto calls = system_calls_each(o, server, step)) r.add("syscalls", *calls);
  }
  return r;
}
