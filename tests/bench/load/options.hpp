#pragma once

#include "fail.hpp"
#include "sockets.hpp"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

struct options {
  std::string mode;
  sockaddr_in server{};
  pid_t pid = 0;
  std::size_t connections = 64;
  std::size_t size = 64;  // bytes of a message
  std::size_t depth = 1;  // messages sent at once on a connection, before their replies are awaited
  double seconds = 1;
  double warm_up = 0.1;
  double rate = 10'000;   // messages a second, of all connections
  std::size_t count = 0;  // churn: connections to make instead of a time to last
  bool observe = false;   // count system calls and look where the time goes, which slows it down
  bool firehose = false;
  bool watch = false;
  int server_cpu = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)) - 1;
  int load_cpu = 0;

  std::size_t batch_bytes() const { return size * depth; }
};

inline double number(std::string_view name, const char* text, double least, double most) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value >= least && value <= most))
    fail(std::string(name) + " \"" + text + "\" is not a number from " + std::to_string(least) +
         " to " + std::to_string(most));
  return value;
}

inline void run_on_cpu(pid_t pid, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  if (::sched_setaffinity(pid, sizeof(set), &set) < 0) fail_errno("sched_setaffinity");
}

/// Keeps `pid` running until it waits: it is not preempted by what it wakes up. At real-time priority,
/// where that may be had, by no other process either.
inline void run_until_it_waits(pid_t pid) {
  const sched_param first{.sched_priority = 1};
  if (::sched_setscheduler(pid, SCHED_FIFO, &first) == 0) return;
  struct {
    std::uint32_t size;
    std::uint32_t policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime;
    std::uint64_t deadline;
    std::uint64_t period;
  } attributes{};
  attributes.size = sizeof(attributes);
  attributes.policy = SCHED_BATCH;
  attributes.runtime = 100'000'000;  // ns, its slice: granted by Linux from 6.12 on
  if (::syscall(SYS_sched_setattr, pid, &attributes, 0) < 0) fail_errno("sched_setattr");
}
