// The echo server with threads in place of processes (libco's example_thread): each thread runs a
// reactor, an acceptor and idle workers of its own, and all accept from one listener.
//
//   threads [ip] [port] [threads] [workers]
//
// By default 127.0.0.1, 9000, one thread per core, 256 workers in each.

#include <coax/coax.hpp>

#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

using namespace std::chrono_literals;

using idle_workers = coax::worker_stack<coax::stream>;

coax::task<> worker(idle_workers& idle) {
  std::array<std::byte, 16 * 1024> buf;
  while (auto conn = co_await idle.park()) {
    while (auto n = co_await coax::within(60s, conn->read(buf))) {
      auto sent = co_await coax::within(60s, conn->write(std::span(buf).first(*n)));
      if (!sent) break;
    }
  }
}

coax::task<> acceptor(coax::listener& listener, idle_workers& idle) {
  while (auto reserved = co_await idle.reserve()) {
    auto conn = co_await listener.accept();
    reserved->hand_off(std::move(conn).value());
  }
}

/// The life of one thread. Every thread is told of a signal; the listener is not theirs to close.
coax::task<> serve(coax::listener& listener, int workers) {
  idle_workers idle;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i) s.spawn(worker, std::ref(idle));
    co_await coax::race(acceptor(listener, idle), coax::signals({SIGINT, SIGTERM}));
    idle.close();
    co_await coax::race(s.join_within(10s), coax::signals({SIGINT, SIGTERM}));
    s.cancel();
  });
}

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "threads: %s\n", why.c_str());
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

int main(int argc, char** argv) {
  const auto given = std::span(argv, static_cast<std::size_t>(argc)).subspan(1);
  if (given.size() > 4) refuse("too many arguments: threads [ip] [port] [threads] [workers]");
  const std::string ip = given.size() > 0 ? given[0] : "127.0.0.1";
  const int port = given.size() > 1 ? number("port", given[1], 0, 65535) : 9000;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = given.size() > 2 ? number("threads", given[2], 1, 1024) : cores;
  const int workers = given.size() > 3 ? number("workers", given[3], 1, 10'000'000) : 256;
  const auto where = coax::endpoint::ip(ip, static_cast<std::uint16_t>(port));
  if (!where) refuse("ip \"" + ip + "\" is not an IPv4 or IPv6 address");
  try {
    auto listener = coax::listener::bind(*where).value();
    std::printf("threads: listening on %s, %d thread%s x %d workers, %s\n",
                listener.local_endpoint().value().to_string().c_str(), threads,
                threads == 1 ? "" : "s", workers,
                std::string(coax::make_reactor()->backend()).c_str());
    std::fflush(stdout);
    coax::run_threads(threads, serve, std::ref(listener), workers);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "threads: %s\n", e.what());
    return 1;
  }
}
