// The echo server of libco's example_echosvr: in each process an acceptor hands connections to a
// stack of idle workers.
//
//   echo [-d] [ip] [port] [task_count] [process_count]
//
// A worker receives into a buffer of the reactor's, and holds none while its client is silent;
// echo_buffered is the same with a buffer in each worker.
//
// By default 127.0.0.1, 9000, 1024 workers in each process, one process per core. -d detaches from
// the terminal once it listens.

#include <coax/coax.hpp>

#include <pthread.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

using namespace std::chrono_literals;

using idle_workers = coax::worker_stack<coax::stream>;

constexpr auto patience = 60s;  // with a silent client, or one that does not read

coax::task<> readwrite_routine(idle_workers& g_readwrite) {
  while (auto conn = co_await g_readwrite.park()) {
    while (const auto lease = co_await coax::within(patience, conn->receive())) {
      auto sent = co_await coax::within(patience, conn->write(lease->bytes()));
      if (!sent) break;
    }
  }
}

coax::task<> accept_routine(coax::listener& listener, idle_workers& g_readwrite) {
  while (auto worker = co_await g_readwrite.reserve()) {
    auto conn = co_await listener.accept();
    worker->hand_off(std::move(conn).value());
  }
}

/// kill -USR1 PID prints what each task of that process waits for, and where.
coax::task<> dump_routine() {
  while (true) {
    co_await coax::signals({SIGUSR1});
    coax::dump(coax::reactor::current());
  }
}

coax::task<> serve(coax::listener& listener, int workers) {
  idle_workers g_readwrite;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i) s.spawn(readwrite_routine, std::ref(g_readwrite));
    co_await coax::race(accept_routine(listener, g_readwrite), dump_routine(),
                        coax::signals({SIGINT, SIGTERM}));
    listener.close();
    // Idle workers leave, busy ones finish: for 10 s, or until a second signal.
    g_readwrite.close();
    co_await coax::race(s.join_within(10s), coax::signals({SIGINT, SIGTERM}));
    s.cancel();
  });
}

struct arguments {
  bool detach = false;
  std::string ip = "127.0.0.1";
  std::uint16_t port = 9000;
  int workers = 1024;
  int processes = static_cast<int>(std::thread::hardware_concurrency());
};

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "echo: %s\n", why.c_str());
  std::exit(2);
}

int number(const char* name, std::string_view text, int least, int most) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most)
    refuse(std::string(name) + " \"" + std::string(text) + "\" is not a number from " +
           std::to_string(least) + " to " + std::to_string(most));
  return value;
}

arguments parse(std::span<char*> given) {
  arguments args;
  if (!given.empty() && std::string_view(given[0]) == "-d") {
    args.detach = true;
    given = given.subspan(1);
  }
  if (given.size() > 4)
    refuse("too many arguments: echo [-d] [ip] [port] [task_count] [process_count]");
  if (given.size() > 0) args.ip = given[0];
  if (given.size() > 1) args.port = static_cast<std::uint16_t>(number("port", given[1], 0, 65535));
  if (given.size() > 2) args.workers = number("task_count", given[2], 1, 10'000'000);
  if (given.size() > 3) args.processes = number("process_count", given[3], 1, 1024);
  return args;
}

void announce(const coax::listener& listener, const arguments& args) {
  const std::unique_ptr<coax::reactor> like_this = coax::make_reactor();
  const std::string why = like_this->fallback_reason();
  std::printf("echo: listening on %s, %d process%s x %d workers, %s%s\n",
              listener.local_endpoint().value().to_string().c_str(), args.processes,
              args.processes == 1 ? "" : "es", args.workers,
              std::string(like_this->backend()).c_str(),
              why.empty() ? "" : (" (" + why + ")").c_str());
  std::fflush(stdout);
}

/// A signal that comes before anybody waits for it is kept until somebody does.
void hold_signals() {
  sigset_t stops;
  sigemptyset(&stops);
  for (const int signal : {SIGINT, SIGTERM}) sigaddset(&stops, signal);
  ::pthread_sigmask(SIG_BLOCK, &stops, nullptr);
}

int run(int argc, char** argv) {
  const arguments args = parse(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
  const auto where = coax::endpoint::ip(args.ip, args.port);
  if (!where) refuse("ip \"" + args.ip + "\" is not an IPv4 or IPv6 address");
  auto listener = coax::listener::bind(*where);  // before the fork: the processes share it
  if (!listener) {
    std::fprintf(stderr, "echo: cannot listen on %s: %s\n", where->to_string().c_str(),
                 listener.error().message().c_str());
    return 1;
  }
  hold_signals();
  announce(*listener, args);
  if (args.detach && ::daemon(1, 0) != 0) {
    std::perror("echo: cannot detach");
    return 1;
  }
  if (args.processes > 1)
    return coax::prefork({.processes = args.processes}, serve, std::ref(*listener), args.workers);
  coax::run(serve, *listener, args.workers);
  return 0;
}

#if defined(__cpp_exceptions)
int main(int argc, char** argv) try { return run(argc, argv); } catch (const std::exception& e) {
  std::fprintf(stderr, "echo: %s\n", e.what());
  return 1;
}
#else
int main(int argc, char** argv) { return run(argc, argv); }
#endif
