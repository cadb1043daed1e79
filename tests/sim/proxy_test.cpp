#include "../catch.hpp"
#include "bad_days.hpp"

#include <coax/coax.hpp>
#include <coax/task/frames.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#define main proxy_main  // its routines, as they are
#include "../../examples/proxy.cpp"
#undef main

// The example proxy on many bad days. Two ends talk through it, each of which resets what it could
// not finish: so an end that comes in order must have everything in front of it, once and in order,
// whichever end came first, and whatever happened to the proxy.

namespace {

namespace sim = coax::sim;
using coax::stream;
using coax::task;
using simulated::pattern_at;

constexpr int most = 3;

/// What the ends of the connections have seen.
struct outcomes {
  int complete = 0;
  int cut = 0;
  bool wrong = false;
};

/// What one side says: its pattern, behind a header that announces it.
struct message {
  std::uint32_t seed = 0;
  std::uint32_t size = 0;
  std::array<std::byte, 8> header() const {
    std::array<std::byte, 8> made;
    std::memcpy(made.data(), &seed, 4);
    std::memcpy(made.data() + 4, &size, 4);
    return made;
  }
  explicit message(std::span<const std::byte, 8> from) {
    std::memcpy(&seed, from.data(), 4);
    std::memcpy(&size, from.data() + 4, 4);
  }
  message(std::uint32_t seed_, std::uint32_t size_) : seed(seed_), size(size_) {}

  /// The server's answer.
  message answer() const { return {seed + 1, size / 2 + 1}; }
  bool operator==(const message&) const = default;
};

/// Who ends first, and lets the other begin only then.
enum class turn : std::uint8_t { client, server, both_at_once };
turn turn_of(const message& asked) { return static_cast<turn>(asked.seed / 2 % 3); }

task<bool> send_header(stream& to, message m) {
  const auto header = m.header();
  auto sent = co_await coax::within(90s, to.write(header));
  co_return static_cast<bool>(sent);
}

task<bool> send_rest(stream& to, message m) {
  std::vector<std::byte> chunk;
  for (std::size_t sent = 0; sent < m.size;) {
    chunk.resize(std::min<std::size_t>(m.size - sent, 1 + (m.seed + sent) % 3000));
    for (std::size_t i = 0; i < chunk.size(); ++i) chunk[i] = pattern_at(m.seed, sent + i);
    auto n = co_await coax::within(90s, to.write(chunk));
    if (!n) co_return false;
    sent += *n;
  }
  auto ended = to.shutdown_write();
  co_return static_cast<bool>(ended);
}

/// Reads what is left of `m`, and the end. False when the connection failed.
task<bool> hear_rest(stream& from, message m, outcomes& seen) {
  std::array<std::byte, 2000> buf;
  for (std::size_t got = 0;;) {
    auto n = co_await coax::within(90s, from.read(buf));
    if (!n) {
      const bool in_order = n.error() == coax::errc::end_of_stream;
      if (in_order && got != m.size) seen.wrong = true;
      co_return in_order;
    }
    for (std::size_t i = 0; i < *n; ++i)
      if (buf[i] != pattern_at(m.seed, got + i)) seen.wrong = true;
    got += *n;
    if (got > m.size) seen.wrong = true;
  }
}

/// Sends one message and hears the other, in the order that was asked for.
task<bool> converse(stream& conn, message mine, message theirs, turn whose, turn my_turn,
                    outcomes& seen) {
  bool good = false;
  if (whose == turn::both_at_once) {
    auto both = co_await coax::when_all(send_rest(conn, mine), hear_rest(conn, theirs, seen));
    good = std::get<0>(both) && std::get<1>(both);
  } else if (whose == my_turn) {
    good = co_await send_rest(conn, mine);
    if (good) good = co_await hear_rest(conn, theirs, seen);
  } else {
    good = co_await hear_rest(conn, theirs, seen);
    if (good) good = co_await send_rest(conn, mine);
  }
  co_return good;
}

/// One connection through the proxy, or to it.
task<> ask(message asked, outcomes& seen) {
  auto conn = co_await coax::within(30s, coax::connect("proxy", 9000));
  if (!conn) {
    ++seen.cut;
    co_return;
  }
  reset_on_close(*conn, true);
  bool good = co_await send_header(*conn, asked);
  std::array<std::byte, 8> header{};
  if (good) {
    auto got = co_await coax::within(90s, conn->read_exactly(header));
    good = static_cast<bool>(got);
    if (good && message(header) != asked.answer()) seen.wrong = true;
    if (got.error() == coax::errc::end_of_stream) seen.wrong = true;
  }
  if (good)
    good = co_await converse(*conn, asked, asked.answer(), turn_of(asked), turn::client, seen);
  reset_on_close(*conn, !good);
  ++(good ? seen.complete : seen.cut);
}

task<> client(std::uint32_t seed, outcomes& seen) {
  sim::generator random(seed);
  for (int i = 0; i < 4; ++i) {
    const auto pause = static_cast<int>(random() % 4000);
    co_await coax::sleep_for(std::chrono::milliseconds(pause));
    const auto word = random();
    co_await ask(
        {static_cast<std::uint32_t>(word), static_cast<std::uint32_t>(word >> 32) % 20'000}, seen);
  }
}

task<> answer(stream conn, outcomes& seen) {
  reset_on_close(conn, true);
  std::array<std::byte, 8> header{};
  // Nothing at all comes of a connection that the proxy gave up before it knew that it had it.
  auto first = co_await coax::within(90s, conn.read(std::span(header).first(1)));
  if (!first) co_return;
  auto got = co_await coax::within(90s, conn.read_exactly(std::span(header).subspan(1)));
  // The client has sent at least its header, or it has reset the connection.
  if (got.error() == coax::errc::end_of_stream) seen.wrong = true;
  if (!got) co_return;
  const message asked(header);
  bool good = co_await send_header(conn, asked.answer());
  if (good)
    good = co_await converse(conn, asked.answer(), asked, turn_of(asked), turn::server, seen);
  reset_on_close(conn, !good);
}

/// What the proxy stands in front of.
task<> target(outcomes& seen) {
  auto listener = co_await simulated::listen_at_last();
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    auto accept_all = [&]() -> task<> {
      while (true) {
        auto conn = co_await listener.accept();
        s.spawn(answer, std::move(conn).value(), std::ref(seen));
      }
    };
    co_await coax::race(accept_all(), coax::signals({SIGTERM}));
    s.cancel();
  });
}

task<> proxy(coax::timeout idle) {
  auto listener = co_await simulated::listen_at_last();
  co_await serve(listener, coax::endpoint::parse("10.0.0.1:9000").value(), idle, most);
}

/// The proxy says on stderr what failed, which is what most of it does here.
class stderr_hidden {
 public:
  explicit stderr_hidden(bool hide) {
    if (!hide) return;
    std::fflush(stderr);
    kept_ = ::dup(STDERR_FILENO);
    const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    ::dup2(nowhere, STDERR_FILENO);
    ::close(nowhere);
  }
  stderr_hidden(const stderr_hidden&) = delete;
  stderr_hidden& operator=(const stderr_hidden&) = delete;
  ~stderr_hidden() {
    if (kept_ < 0) return;
    ::dup2(kept_, STDERR_FILENO);
    ::close(kept_);
  }

 private:
  int kept_ = -1;
};

void bad_day(std::uint64_t seed, bool print) {
  const auto frames = coax::detail::frames::live();
  sim::generator random(seed);
  {
    sim::world w{sim::faults::swarm(seed, {}, print)};
    const stderr_hidden hidden(!print);  // and not when the world says how to run it again
    outcomes heard;
    auto& behind = w.host("target", target, std::ref(heard));
    auto& server = w.host("proxy", proxy, coax::timeout(60s));
    std::vector<sim::host*> hosts{&behind, &server};
    for (std::uint32_t i = 0; i < 4; ++i)
      hosts.push_back(&w.host("cli" + std::to_string(i), client,
                              static_cast<std::uint32_t>(seed) * 10 + i, std::ref(heard)));
    w.invariant("what ends in order is whole", [&] { return !heard.wrong; });
    w.invariant("no more connections than places",
                [&] { return server.open_streams() <= 2 * most + 1; });

    simulated::live_through(w, random, hosts);
    w.run_for(30min);
    REQUIRE(server.open_streams() == 0);
    REQUIRE(server.open_fds() == 1);
    REQUIRE(behind.open_streams() == 0);
    outcomes last;
    std::vector<sim::host*> after;
    for (std::uint32_t i = 0; i < 6; ++i) {
      after.push_back(&w.host("after" + std::to_string(i), ask, message(i, 3000), std::ref(last)));
      hosts.push_back(after.back());
    }
    w.run_for(10min);
    for (const sim::host* each : after) REQUIRE(!each->is_running());
    REQUIRE(last.complete == 6);
    REQUIRE(server.open_streams() == 0);

    server.signal(SIGTERM);
    behind.signal(SIGTERM);
    w.run_until_quiet(1h);
    simulated::require_nothing_left(hosts);
  }
  REQUIRE(coax::detail::frames::live() == frames);
}

}  // namespace

TEST_CASE("the proxy relays all of it in order, or it does not end in order, on bad days",
          "[seeds]") {
  simulated::on_bad_days(bad_day);
}
