// The echo server with a buffer in each worker, and no more than it takes:
//
//   echo_buffered [ip] [port] [task_count] [process_count]
//
// By default 127.0.0.1, 9000, 1024 workers in each process, one process per core.

#include <coax/coax.hpp>

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <span>
#include <thread>
#include <utility>

using namespace std::chrono_literals;

using idle_workers = coax::worker_stack<coax::stream>;

constexpr auto patience = 60s;  // with a silent client, or one that does not read

coax::task<> readwrite_routine(idle_workers& g_readwrite) {
  std::array<std::byte, 16 * 1024> buf;
  while (auto conn = co_await g_readwrite.park()) {
    while (auto n = co_await coax::within(patience, conn->read(buf))) {
      auto sent = co_await coax::within(patience, conn->write(std::span(buf).first(*n)));
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

coax::task<> serve(coax::listener& listener, int workers) {
  idle_workers g_readwrite;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i) s.spawn(readwrite_routine, std::ref(g_readwrite));
    co_await coax::race(accept_routine(listener, g_readwrite), coax::signals({SIGINT, SIGTERM}));
    listener.close();
    g_readwrite.close();
    co_await s.join_within(10s);
  });
}

int main(int argc, char** argv) {
  const auto number = [&](int at, int otherwise) {
    return argc > at ? std::atoi(argv[at]) : otherwise;
  };
  const auto where = coax::endpoint::ip(argc > 1 ? argv[1] : "127.0.0.1", number(2, 9000));
  const int workers = number(3, 1024);
  const int processes = number(4, static_cast<int>(std::thread::hardware_concurrency()));
  try {
    auto listener = coax::listener::bind(where.value()).value();
    std::printf("echo_buffered: listening on %s, %d processes x %d workers\n",
                listener.local_endpoint().value().to_string().c_str(), processes, workers);
    std::fflush(stdout);
    if (processes > 1)
      return coax::prefork({.processes = processes}, serve, std::ref(listener), workers);
    coax::run(serve, listener, workers);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "echo_buffered: %s\n", e.what());
    return 1;
  }
}
