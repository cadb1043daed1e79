// A load for an echo server, which checks every byte that comes back and says what the server's side
// of it cost.
//
//   load MODE IP PORT PID [option value]... [--observe] [--firehose] [--watch]
//
// lockstep   server and load on one core, in turns: all connections send, then all replies are awaited
// churn      the same with new connections: connect, one echo, close
// closed     each connection sends again when its replies are in; server and load on cores of their own
// open       --rate messages a second, timed from when they were meant to be sent
// ping       the same, but the load sleeps in between, so that a --firehose can share its core
// idle       connections that do nothing
//
// --connections n  --size bytes  --depth messages  --seconds n  --warm-up n  --rate n  --count n
// --server-cpu n   --load-cpu n
// --watch  in a closed loop, never sleeps: the sleep and wake-up that are left are the server's
//
// PID is the server's. The figures are one line of JSON; cpu_us, syscalls and user_ns are a
// message's. The exit status is 1 when anything at all went wrong.

#include "churn.hpp"
#include "idle.hpp"
#include "lockstep.hpp"
#include "loops.hpp"
#include "options.hpp"
#include "pattern.hpp"
#include "watched_process.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace {

options parse(int argc, char** argv) {
  if (argc < 5)
    fail("usage: load MODE IP PORT PID [option value]... [--observe] [--firehose] [--watch]");
  options o;
  o.mode = argv[1];
  o.server = address_of(argv[2], static_cast<std::uint16_t>(number("PORT", argv[3], 1, 65535)));
  o.pid = static_cast<pid_t>(number("PID", argv[4], 1, 1 << 30));
  for (int i = 5; i < argc; ++i) {
    const std::string_view name = argv[i];
    const auto value = [&](double least, double most) {
      if (i + 1 == argc) fail(std::string(name) + " needs a value");
      return number(name, argv[++i], least, most);
    };
    const auto whole = [&](double least, double most) {
      return static_cast<std::size_t>(value(least, most));
    };
    if (name == "--connections")
      o.connections = whole(1, 1e6);
    else if (name == "--size")
      o.size = whole(1, pattern::run_max);
    else if (name == "--depth")
      o.depth = whole(1, 1e6);
    else if (name == "--seconds")
      o.seconds = value(0, 3600);
    else if (name == "--warm-up")
      o.warm_up = value(0, 60);
    else if (name == "--rate")
      o.rate = value(1, 1e8);
    else if (name == "--count")
      o.count = whole(1, 1e9);
    else if (name == "--server-cpu")
      o.server_cpu = static_cast<int>(whole(0, CPU_SETSIZE - 1));
    else if (name == "--load-cpu")
      o.load_cpu = static_cast<int>(whole(0, CPU_SETSIZE - 1));
    else if (name == "--observe")
      o.observe = true;
    else if (name == "--firehose")
      o.firehose = true;
    else if (name == "--watch")
      o.watch = true;
    else
      fail("there is no option " + std::string(name));
  }
  if (o.batch_bytes() > pattern::run_max) fail("--size times --depth is too much");
  return o;
}

report run(const options& o) {
  const watched_process server(o.pid);
  const pattern bytes;
  if (o.mode == "lockstep") return measure_lockstep(o, server, bytes);
  if (o.mode == "churn") return measure_churn(o, server, bytes);
  if (o.mode == "closed") return measure_closed(o, server, bytes);
  if (o.mode == "open") return measure_open(o, server, bytes, false);
  if (o.mode == "ping") return measure_open(o, server, bytes, true);
  if (o.mode == "idle") return measure_idle(o, server, bytes);
  fail("there is no mode " + o.mode);
}

}  // namespace

int main(int argc, char** argv) { run(parse(argc, argv)).print(); }
