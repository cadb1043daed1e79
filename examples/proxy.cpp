// A TCP relay: what a client sends goes to the target, and back.
//
//   proxy [listen] [target] [idle_seconds] [connections]
//
// By default 127.0.0.1:9001, 127.0.0.1:9000, 60 and 1000. When one side ends, the other is told, and
// may go on. A connection that is silent for idle_seconds is reset, and so is one whose other side
// failed. SIGTERM or Ctrl-C lets connections finish for 10 s; a second one ends them.

#include <coax/coax.hpp>

#include <sys/socket.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <system_error>
#include <utility>

using namespace std::chrono_literals;

/// Says what closing does: a peer must not take the part of a transfer that it has for the whole.
void reset_on_close(const coax::stream& conn, bool reset) {
  const linger how{reset, 0};
  auto& calls = coax::syscalls::current();  // of the reactor: in a simulation, not the kernel's
  calls.setsockopt(conn.native_handle(), SOL_SOCKET, SO_LINGER, &how, sizeof(how));
}

coax::task<> pass_on(coax::stream& from, coax::stream& to, coax::clock::time_point& active) {
  std::array<std::byte, 16 * 1024> buf;
  for (auto n = co_await from.read(buf); n.error() != coax::errc::end_of_stream;
       n = co_await from.read(buf)) {
    auto sent = co_await to.write(std::span(buf).first(n.value()));
    sent.value();
    active = coax::now();
  }
  to.shutdown_write().value();
}

coax::task<> until_idle(const coax::clock::time_point& active, coax::timeout limit) {
  while (coax::now() < limit.after(active)) co_await coax::sleep_until(limit.after(active));
}

coax::task<> relay(coax::stream client, coax::endpoint target, coax::timeout idle,
                   coax::semaphore::permit) {
  reset_on_close(client, true);
  try {
    auto server = co_await coax::within(3s, coax::connect(target));
    reset_on_close(server.value(), true);
    auto active = coax::now();
    auto ended = co_await coax::race(
        coax::when_all(pass_on(client, *server, active), pass_on(*server, client, active)),
        until_idle(active, idle));
    reset_on_close(client, !std::get<0>(ended));  // unless both directions have ended
    reset_on_close(*server, !std::get<0>(ended));
  } catch (const std::system_error& e) {
    std::fprintf(stderr, "proxy: a connection failed: %s\n", e.code().message().c_str());
  }
}

coax::task<> serve(coax::listener& listener, coax::endpoint target, coax::timeout idle, int most) {
  coax::semaphore places(static_cast<std::size_t>(most));
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    auto accept_all = [&]() -> coax::task<> {
      while (true) {
        auto place = co_await places.acquire();  // without one, they wait in the backlog
        auto client = co_await listener.accept();
        s.spawn(relay, std::move(client).value(), target, idle, std::move(place));
      }
    };
    co_await coax::race(accept_all(), coax::signals({SIGINT, SIGTERM}));
    listener.close();
    co_await coax::race(s.join_within(10s), coax::signals({SIGINT, SIGTERM}));
    s.cancel();
  });
}

int number(const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end == '\0' && value >= 1 && value <= 1'000'000) return static_cast<int>(value);
  throw std::system_error(std::make_error_code(std::errc::invalid_argument), text);
}

/// What `make` gives for `text`, which is named if that is an error.
template <class Make>
auto named(const Make& make, std::string_view text) {
  auto made = make(text);
  if (!made) throw std::system_error(made.error(), std::string(text));
  return std::move(*made);
}

int main(int argc, char** argv) try {
  const auto idle = (argc > 3 ? number(argv[3]) : 60) * 1s;
  const int most = argc > 4 ? number(argv[4]) : 1000;
  const auto target = named(coax::endpoint::parse, argc > 2 ? argv[2] : "127.0.0.1:9000");
  auto listener = named([](auto where) { return coax::listener::bind(where); },
                        argc > 1 ? argv[1] : "127.0.0.1:9001");
  std::printf("proxy: listening on %s\n", listener.local_endpoint().value().to_string().c_str());
  std::fflush(stdout);
  coax::run(serve, listener, target, idle, most);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "proxy: %s\n", e.what());
  return 1;
}
