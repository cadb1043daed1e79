// The echo server of libco's example_echosvr: an acceptor hands connections to a stack of idle workers.
//
//   echo [ip] [port] [task_count] [process_count]      by default 127.0.0.1 9000 1024 1

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
#include <utility>

using namespace std::chrono_literals;

using idle_workers = coax::worker_stack<coax::stream>;

coax::task<> readwrite_routine(idle_workers& g_readwrite) {
  std::array<std::byte, 16 * 1024> buf;
  while (auto conn = co_await g_readwrite.park()) {
    while (auto n = co_await coax::within(60s, conn->read(buf))) {
      auto sent = co_await coax::within(60s, conn->write(std::span(buf).first(*n)));
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

struct arguments {
  std::string ip = "127.0.0.1";
  std::uint16_t port = 9000;
  int tasks = 1024;
};

void print_listening(const coax::listener& listener, const arguments& args) {
  const coax::reactor& reactor = coax::reactor::current();
  const std::string why = reactor.fallback_reason().empty() ? "" : " (" + reactor.fallback_reason() + ")";
  std::printf("echo: listening on %s, 1 process x %d workers, %s%s\n", listener.local_endpoint().value().to_string().c_str(),
              args.tasks, std::string(reactor.backend()).c_str(), why.c_str());
  std::fflush(stdout);
}

coax::task<> serve(coax::listener& listener, const arguments& args) {
  idle_workers g_readwrite;
  auto stop = coax::signals({SIGINT, SIGTERM});  // from here on neither ends the process by itself
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < args.tasks; ++i) s.spawn(readwrite_routine, std::ref(g_readwrite));
    print_listening(listener, args);
    co_await coax::race(accept_routine(listener, g_readwrite), std::move(stop));
    listener.close();
    g_readwrite.close();  // idle workers leave, busy ones finish, for up to 10 s or until a second signal
    co_await coax::race(s.join_within(10s), coax::signals({SIGINT, SIGTERM}));
    s.cancel();
  });
}

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "echo: %s\n", why.c_str());
  std::exit(2);
}

int number(const char* name, std::string_view text, int least, int most) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most)
    refuse(std::string(name) + " \"" + std::string(text) + "\" is not a number from " + std::to_string(least) + " to " +
           std::to_string(most));
  return value;
}

arguments parse(std::span<char*> given) {
  arguments args;
  if (given.size() > 4) refuse("too many arguments: echo [ip] [port] [task_count] [process_count]");
  if (given.size() > 0) args.ip = given[0];
  if (given.size() > 1) args.port = static_cast<std::uint16_t>(number("port", given[1], 0, 65535));
  if (given.size() > 2) args.tasks = number("task_count", given[2], 1, 10'000'000);
  if (given.size() > 3 && number("process_count", given[3], 1, 1024) > 1)
    refuse("process_count " + std::string(given[3]) + ": more than one process is not supported yet");
  return args;
}

int main(int argc, char** argv) {
  const arguments args = parse(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
  const auto where = coax::endpoint::ip(args.ip, args.port);
  if (!where) refuse("ip \"" + args.ip + "\" is not an IPv4 or IPv6 address");
  auto listener = coax::listener::bind(*where);
  if (!listener) {
    std::fprintf(stderr, "echo: cannot listen on %s: %s\n", where->to_string().c_str(), listener.error().message().c_str());
    return 1;
  }
  try {
    coax::run(serve, *listener, args);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "echo: %s\n", e.what());
    return 1;
  }
}
