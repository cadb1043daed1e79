// Measures an echo server and checks every byte of it, like libco's example_echocli.
//
//   echo_client [ip] [port] [connections] [--size bytes] [--depth messages] [--seconds n]
//
// By default 127.0.0.1, 9000, 10 connections, messages of 64 bytes, 1 in flight on each connection,
// 10 seconds. SIGINT ends it early, with the figures; a second one at once. The exit status is 1
// when a byte differs or a connection is refused or breaks.

#include <coax/coax.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

/// Counts of durations in buckets 1/64 of their power of two wide: none is off by more than 0.8 %.
class histogram {
 public:
  void add(std::chrono::nanoseconds d) {
    const auto value = static_cast<std::uint64_t>(std::max<std::int64_t>(d.count(), 0));
    const auto shift = static_cast<std::size_t>(std::bit_width(value | 64) - 7);
    ++buckets_[shift * 64 + static_cast<std::size_t>(value >> shift)];
    ++count_;
    max_ = std::max(max_, value);
  }

  /// The microseconds that this part of all durations did not exceed.
  double quantile(double part) const {
    auto left = static_cast<std::uint64_t>(std::ceil(part * static_cast<double>(count_)));
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      if (buckets_[i] < left) {
        left -= buckets_[i];
        continue;
      }
      const std::size_t shift = i < 128 ? 0 : i / 64 - 1;
      const std::uint64_t middle = ((i - shift * 64) << shift) + ((std::uint64_t{1} << shift) >> 1);
      return static_cast<double>(part < 1 ? std::min(middle, max_) : max_) / 1000;
    }
    return 0;
  }

 private:
  std::array<std::uint64_t, 64 * 59> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t max_ = 0;
};

struct arguments {
  std::string ip = "127.0.0.1";
  std::uint16_t port = 9000;
  std::size_t connections = 10;
  std::size_t size_bytes = 64;
  std::size_t depth = 1;
  int seconds = 10;
};

/// What all connections share.
struct bench {
  bench(const arguments& given, const coax::endpoint& at) : args(given), server(at) {}

  arguments args;
  coax::endpoint server;
  /// Messages that are sent or received at once: a system call for each would be the limit.
  std::size_t batch = std::clamp<std::size_t>(65536 / args.size_bytes, 1, args.depth);
  std::size_t connected = 0;
  std::size_t answered = 0;
  coax::event all_connected;
  coax::event all_answered;  // nothing is in flight any more
  coax::event failed;
  std::string failure;    // the first; the others follow from it
  bool stopping = false;  // no message is sent for a reply any more
  std::uint64_t replies = 0;
  histogram latency;
  coax::clock::time_point begin{};  // of sending
  double rate = 0;                  // messages/s from there until it stopped

  void fail(std::string why) {
    if (!failed.is_set()) failure = std::move(why);
    failed.set();
  }
};

struct connection {
  std::size_t number;
  coax::stream stream;
  std::vector<coax::clock::time_point> sent_at;  // of message m: at m % depth
  std::uint64_t allowed;                         // messages that may be sent, from the first on
  std::uint64_t sent = 0;
  std::uint64_t received = 0;
  coax::event may_send{};

  void broke(bench& b, std::error_code why) const {
    b.fail("connection " + std::to_string(number) + " broke after " + std::to_string(received) +
           " replies: " + why.message());
  }
};

/// The content of a message: splitmix64 of who sends it and when.
void fill(std::span<std::byte> message, std::uint64_t connection, std::uint64_t sequence) {
  std::uint64_t state = (connection << 40) + sequence * 0xD1B54A32D192ED03;
  for (std::size_t i = 0; i < message.size(); i += sizeof(state)) {
    std::uint64_t word = state += 0x9E3779B97F4A7C15;
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9;
    word ^= word >> 27;
    std::memcpy(&message[i], &word, std::min(sizeof(word), message.size() - i));
  }
}

coax::task<> send_messages(bench& b, connection& c) {
  const std::size_t size = b.args.size_bytes;
  std::vector<std::byte> batch(b.batch * size);
  while (true) {
    while (c.sent == c.allowed) {
      c.may_send.reset();
      co_await c.may_send.wait();
    }
    const auto count = std::min<std::size_t>(c.allowed - c.sent, b.batch);
    const auto begin = coax::now();
    for (std::size_t i = 0; i < count; ++i, ++c.sent) {
      fill(std::span(batch).subspan(i * size, size), c.number, c.sent);
      c.sent_at[c.sent % b.args.depth] = begin;
    }
    auto written = co_await c.stream.write(std::span(batch).first(count * size));
    if (!written) {
      c.broke(b, written.error());
      co_return;
    }
  }
}

/// Reads until everything that may be sent was and has come back.
coax::task<> check_replies(bench& b, connection& c) {
  const std::size_t size = b.args.size_bytes;
  std::vector<std::byte> got(b.batch * size);
  std::vector<std::byte> expected(size);
  std::size_t have = 0;
  while (c.received < c.allowed) {
    auto n = co_await c.stream.read(std::span(got).subspan(have));
    if (!n) {
      c.broke(b, n.error());
      co_return;
    }
    have += *n;
    const auto end = coax::now();
    std::size_t used = 0;
    for (; have - used >= size && c.received < c.allowed; used += size, ++c.received, ++b.replies) {
      fill(expected, c.number, c.received);
      if (std::memcmp(&got[used], expected.data(), size) != 0) {
        b.fail("reply " + std::to_string(c.received) + " on connection " +
               std::to_string(c.number) + " differs from what was sent");
        co_return;
      }
      b.latency.add(end - c.sent_at[c.received % b.args.depth]);
      if (!b.stopping) ++c.allowed;
    }
    have -= used;
    std::memmove(got.data(), got.data() + used, have);
    c.may_send.set();
  }
  if (have != 0) b.fail("more came back than was sent");
}

coax::task<> talk(bench& b, std::size_t number) {
  auto made = co_await coax::within(10s, coax::connect(b.server));
  if (!made) {
    b.fail("cannot connect to " + b.server.to_string() + ": " + made.error().message());
    co_return;
  }
  if (++b.connected == b.args.connections) b.all_connected.set();
  co_await b.all_connected.wait();

  std::vector<coax::clock::time_point> sent_at(b.args.depth);
  connection c{number, *std::move(made), std::move(sent_at), b.args.depth};
  // Two tasks, or a server that reads no more until it is read from would wait for us, and we for
  // it.
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    s.spawn(send_messages, std::ref(b), std::ref(c));
    co_await check_replies(b, c);
    s.cancel();
  });
  if (c.received == c.allowed && ++b.answered == b.args.connections) b.all_answered.set();
  static_cast<void>(co_await c.stream.close());  // every byte is back: how the peer ends is its own
}

coax::task<> run_clock(bench& b) {
  co_await b.all_connected.wait();
  b.begin = coax::now();
  std::uint64_t before = 0;
  for (int second = 1; second <= b.args.seconds; ++second) {
    co_await coax::sleep_until(b.begin + std::chrono::seconds(second));
    const std::uint64_t replies = b.replies - std::exchange(before, b.replies);
    if (::isatty(STDERR_FILENO) != 0)
      std::fprintf(stderr, "%d s: %llu messages/s\n", second,
                   static_cast<unsigned long long>(replies));
  }
}

coax::task<> measure(bench& b, coax::scope& s) {
  for (std::size_t i = 1; i <= b.args.connections; ++i) s.spawn(talk, std::ref(b), i);
  co_await coax::race(run_clock(b), b.failed.wait(), coax::signals({SIGINT, SIGTERM}));
  if (!b.all_connected.is_set()) b.fail("stopped before all connections were made");
  b.stopping = true;
  const std::chrono::duration<double> elapsed = coax::now() - b.begin;
  b.rate = static_cast<double>(b.replies) / elapsed.count();

  auto drained = co_await coax::within(
      5s, coax::race(b.all_answered.wait(), b.failed.wait(), coax::signals({SIGINT, SIGTERM})));
  if (!drained) b.fail("replies are missing 5 s after the last message");
  if (!b.all_answered.is_set()) s.cancel();  // otherwise the connections end by themselves
}

coax::task<int> run_bench(bench& b) {
  co_await coax::with_scope([&](coax::scope& s) { return measure(b, s); });
  if (b.failed.is_set()) {
    std::fprintf(stderr, "echo_client: %s\n", b.failure.c_str());
    co_return 1;
  }
  std::printf("%.0f messages/s, %.0f bytes/s, us: p50 %.1f, p99 %.1f, p99.9 %.1f, max %.1f\n",
              b.rate, b.rate * static_cast<double>(b.args.size_bytes), b.latency.quantile(0.5),
              b.latency.quantile(0.99), b.latency.quantile(0.999), b.latency.quantile(1));
  co_return 0;
}

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "echo_client: %s\n", why.c_str());
  std::exit(2);
}

std::size_t number(const std::string& name, std::string_view text, std::size_t most) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > most)
    refuse(name + " \"" + std::string(text) + "\" is not a number from 1 to " +
           std::to_string(most));
  return value;
}

arguments parse(std::span<char*> given) {
  arguments args;
  std::size_t position = 0;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::string text = given[i];
    if (text.starts_with("--")) {
      if (text != "--size" && text != "--depth" && text != "--seconds")
        refuse("option \"" + text + "\" is none of --size, --depth and --seconds");
      if (++i == given.size()) refuse(text + " lacks its number");
      if (text == "--size") args.size_bytes = number(text, given[i], 1 << 24);
      if (text == "--depth") args.depth = number(text, given[i], 1 << 16);
      if (text == "--seconds") args.seconds = static_cast<int>(number(text, given[i], 1'000'000));
    } else if (++position == 1) {
      args.ip = text;
    } else if (position == 2) {
      args.port = static_cast<std::uint16_t>(number("port", text, 65535));
    } else if (position == 3) {
      args.connections = number("connections", text, 1'000'000);
    } else {
      refuse("too many arguments: \"" + text + "\" comes after ip, port and connections");
    }
  }
  return args;
}

int main(int argc, char** argv) {
  const arguments args = parse(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
  const auto server = coax::endpoint::ip(args.ip, args.port);
  if (!server) refuse("ip \"" + args.ip + "\" is not an IPv4 or IPv6 address");
  try {
    bench b(args, *server);
    return coax::run(run_bench, b);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "echo_client: %s\n", e.what());
    return 1;
  }
}
