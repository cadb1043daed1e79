#include "../catch.hpp"
#include "../task/death.hpp"
#include "echo_server.hpp"

#include <coax/io/fd.hpp>
#include <coax/io/random.hpp>
#include <coax/net/resolve.hpp>
#include <coax/process/blocking.hpp>

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace sim = coax::sim;
using namespace std::chrono_literals;
using coax::stream;
using coax::task;
using simulated::server_at;

namespace {

using opened = std::optional<stream>;

/// Accepts one connection, keeps it in `into` and stays.
task<> accept_and_hold(opened& into) {
  auto from = coax::listener::bind("0.0.0.0:9000").value();
  auto conn = co_await from.accept();
  into.emplace(std::move(*conn));
  co_await coax::sleep_for(1000h);
}

/// Echoes on one connection after the other, without an end.
task<> echo_one_by_one() {
  auto from = coax::listener::bind("0.0.0.0:9000").value();
  std::array<std::byte, 4096> buf;
  while (auto conn = co_await from.accept())
    while (auto n = co_await conn->read(buf)) {
      auto sent = co_await conn->write(std::span(buf).first(*n));
      if (!sent) break;
    }
}

/// Listens, and accepts nobody.
task<> only_listen(coax::listen_options how) {
  auto from = coax::listener::bind("0.0.0.0:9000", how).value();
  co_await coax::sleep_for(1000h);
}

task<> idle() { co_await coax::sleep_for(1000h); }

task<> connect_once(std::error_code& outcome, coax::clock::duration& took) {
  const auto began = coax::now();
  auto conn = co_await coax::connect(server_at());
  outcome = conn.error();
  took = coax::now() - began;
}

/// Writes `text`, reads as much back, and notes when it was there.
task<> ping(std::string text, std::string& got, coax::clock::time_point& at) {
  auto conn = co_await coax::connect(server_at());
  REQUIRE(conn);
  auto sent = co_await conn->write(text);
  REQUIRE(sent);
  std::vector<std::byte> back(text.size());
  auto n = co_await conn->read_exactly(back);
  got = n ? std::string(reinterpret_cast<const char*>(back.data()), back.size())
          : n.error().message();
  at = coax::now();
  co_await idle();
}

}  // namespace

TEST_CASE("an idle client is dropped after a minute, in no time") {
  for (const auto completion : {sim::completion::readiness, sim::completion::ring}) {
    sim::world w{{.seed = 7, .latency = {1ms, 20ms}, .completion = completion, .short_io = 0.3}};
    simulated::counts seen;
    auto& server = w.host("srv", simulated::serve, std::ref(seen), 3);
    std::string got;
    coax::clock::time_point at;
    w.host("cli", ping, std::string("hello"), std::ref(got), std::ref(at));
    w.run_for(1min);
    CHECK(got == "hello");
    CHECK(server.open_streams() == 1);
    w.run_for(1min);
    CHECK(w.now() - w.start() == 2min);
    CHECK(server.open_streams() == 0);
    CHECK(seen.closed == 1);
  }
}

TEST_CASE("the same seed gives the same trace, and another another") {
  const auto hash_of = [](std::uint64_t seed) {
    sim::world w{{.seed = seed, .latency = {1ms, 20ms}, .short_io = 0.3}};
    simulated::counts seen;
    w.host("srv", simulated::serve, std::ref(seen), 3);
    std::string got;
    coax::clock::time_point at;
    w.host("cli", ping, std::string("hello"), std::ref(got), std::ref(at));
    w.run_for(2min);
    return w.trace_hash();
  };
  CHECK(hash_of(1) == hash_of(1));
  std::set<std::uint64_t> hashes;
  for (std::uint64_t seed = 0; seed < 20; ++seed) hashes.insert(hash_of(seed));
  CHECK(hashes.size() == 20);
}

TEST_CASE("a run is replayed from its decisions") {
  const sim::options how{.latency = {1ms, 20ms}, .short_io = 0.3, .eintr = 0.1};
  const auto run = [&](sim::oracle decide) {
    sim::world w(how, decide);
    simulated::counts seen;
    w.host("srv", simulated::serve, std::ref(seen), 3);
    std::string got;
    coax::clock::time_point at;
    w.host("cli", ping, std::string("hello"), std::ref(got), std::ref(at));
    w.run_for(2min);
    return std::pair(w.trace_hash(), w.decisions());
  };
  const auto [hash, decisions] = run(sim::oracle(3));
  const auto [again, same] = run(sim::oracle::replaying(decisions));
  CHECK(hash == again);
  CHECK(same.size() == decisions.size());
}

TEST_CASE("COAX_SIM_SEED overrules the seed") {
  ::setenv("COAX_SIM_SEED", "42", 1);
  {
    const sim::world w{{.seed = 7}};
    CHECK(w.how().seed == 42);
  }
  ::setenv("COAX_SIM_SEED", "many", 1);
  CHECK_THROWS_AS(sim::world(), std::invalid_argument);
  ::unsetenv("COAX_SIM_SEED");
}

TEST_CASE("the trace names time, host and event") {
  sim::world w;
  w.host("srv", idle);
  std::error_code outcome;
  coax::clock::duration took{};
  w.host("cli", connect_once, std::ref(outcome), std::ref(took));
  w.run_for(10s);
  CHECK(w.trace().find("0.000000000 cli connect(1) = -115") != std::string::npos);
  CHECK(w.trace().find("cli exit") != std::string::npos);
}

TEST_CASE("packets take as long as the latency and the rate say") {
  std::string got;
  coax::clock::time_point at;
  {
    sim::world w{{.latency = {10ms, 10ms}}};
    w.host("srv", echo_one_by_one);
    w.host("cli", ping, std::string("x"), std::ref(got), std::ref(at));
    w.run_for(1s);
    CHECK(at - w.start() == 40ms);  // there and back to connect, and again for the byte
  }
  sim::world w{{.rate = 100'000}};
  std::size_t received = 0;
  const auto sink = [&]() -> task<> {
    auto from = coax::listener::bind("0.0.0.0:9000").value();
    auto conn = co_await from.accept();
    std::array<std::byte, 4096> buf;
    while (auto n = co_await conn->read(buf)) received += *n;
    at = coax::now();
  };
  w.host("srv", sink);
  const auto pour = [&]() -> task<> {
    auto conn = co_await coax::connect(server_at());
    auto sent = co_await conn->write(std::string(1'000'000, 'x'));
    CHECK(sent);
  };
  w.host("cli", pour);
  w.run_for(1h);
  CHECK(received == 1'000'000);
  CHECK(at - w.start() > 10s);
  CHECK(at - w.start() < 25s);
}

TEST_CASE("a peer that does not read stops the writer") {
  sim::world w;
  opened held;
  w.host("srv", accept_and_hold, std::ref(held));
  std::size_t written = 0;
  const auto pour = [&]() -> task<> {
    auto conn = co_await coax::connect(server_at());
    const std::vector<std::byte> block(1000);
    while (auto n = co_await conn->write(block)) written += *n;
  };
  w.host("cli", pour);
  w.run_for(1h);
  CHECK(written >= 100'000);
  CHECK(written <= 2 * 64 * 1024);
  held.reset();
}

TEST_CASE("a full socket is not writable, be its buffer ever so small") {
  for (const std::size_t size : {1, 2, 3}) {
    sim::world w{{.send_buffer = size, .receive_buffer = size}};
    opened held;
    w.host("srv", accept_and_hold, std::ref(held));
    bool filled = false;
    std::error_code writable;
    const auto pour = [&]() -> task<> {
      auto conn = co_await coax::connect(server_at());
      const std::vector<std::byte> block(10);
      auto n = co_await coax::within(1s, conn->write(block));
      filled = n.error() == std::errc::timed_out;
      auto seen = co_await coax::within(1s, coax::poll(conn->native_handle(), POLLOUT));
      writable = seen.error();
    };
    w.host("cli", pour);
    w.run_for(1min);
    CHECK(filled);
    CHECK(writable == std::errc::timed_out);
    held.reset();
  }
}

TEST_CASE("who has looked and found no room to write is told when there is some") {
  for (const sim::completion kind : {sim::completion::readiness, sim::completion::ring}) {
    sim::world w{{.send_buffer = 16, .receive_buffer = 1, .completion = kind}};
    std::string got;
    const auto writes = [](coax::stream& to) -> task<> {
      auto all = co_await to.write("0123456789abcd");  // which leaves room, but too little
      CHECK(all);
      auto rest =
          co_await coax::write(to.native_handle(), std::as_bytes(std::span("efghijklmn", 10)));
      CHECK(rest);
    };
    const auto both = [&]() -> task<> {
      auto listener = coax::listener::bind("127.0.0.1:9000").value();
      auto near = co_await coax::connect(listener.local_endpoint().value());
      auto far = co_await listener.accept();
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(writes, std::ref(*near));
        co_await coax::sleep_for(1s);
        std::array<std::byte, 16> some;
        while (got.size() < 24) {
          auto n = co_await far->read(some);
          got.append(reinterpret_cast<const char*>(some.data()), n.value());
        }
      });
    };
    w.host("host", both);
    w.run_for(1min);
    CHECK(got == "0123456789abcdefghijklmn");
  }
}

TEST_CASE("connecting: refused, unreachable, and never answered") {
  std::error_code outcome;
  coax::clock::duration took{};
  SECTION("where nobody listens it is refused after a round trip") {
    sim::world w{{.latency = {10ms, 10ms}}};
    w.host("srv", idle);
    w.host("cli", connect_once, std::ref(outcome), std::ref(took));
    w.run_for(1min);
    CHECK(outcome == std::errc::connection_refused);
    CHECK(took == 20ms);
  }
  SECTION("an address that no host has is unreachable after three seconds") {
    sim::world w;
    const auto to_nobody = [&]() -> task<> {
      auto conn = co_await coax::connect(server_at(77));
      outcome = conn.error();
      took = coax::now() - w.start();
    };
    w.host("cli", to_nobody);
    w.run_for(1min);
    CHECK(outcome == std::errc::host_unreachable);
    CHECK(took == 3s);
  }
  SECTION("another network is unreachable at once") {
    sim::world w;
    const auto abroad = [&]() -> task<> {
      auto conn = co_await coax::connect(coax::endpoint::parse("192.0.2.1:80").value());
      outcome = conn.error();
    };
    w.host("cli", abroad);
    w.run_for(1min);
    CHECK(outcome == std::errc::network_unreachable);
  }
  SECTION("one that hangs times out after two minutes") {
    sim::world w{{.hang = 1}};
    w.host("srv", echo_one_by_one);
    w.host("cli", connect_once, std::ref(outcome), std::ref(took));
    w.run_for(1h);
    CHECK(outcome == std::errc::timed_out);
    CHECK(took == 127s);
  }
  SECTION("so does one to a host that is down") {
    sim::world w;
    auto& server = w.host("srv", echo_one_by_one);
    server.crash();
    w.host("cli", connect_once, std::ref(outcome), std::ref(took));
    w.run_for(1h);
    CHECK(outcome == std::errc::timed_out);
    CHECK(took == 127s);
  }
}

TEST_CASE("a partition holds back what is sent until it heals") {
  sim::world w{{.latency = {1ms, 1ms}}};
  auto& server = w.host("srv", echo_one_by_one);
  std::string got;
  coax::clock::time_point at;
  const auto later = [&]() -> task<> {
    auto conn = co_await coax::connect(server_at());
    co_await coax::sleep_for(10s);
    auto sent = co_await conn->write("abc");
    CHECK(sent);
    sent = co_await conn->write("def");
    CHECK(sent);
    std::array<std::byte, 6> back;
    auto n = co_await conn->read_exactly(back);
    got = n ? "all" : n.error().message();
    at = coax::now();
  };
  auto& client = w.host("cli", later);
  w.run_for(5s);
  SECTION("both ways") {
    w.partition(server, client);
    w.run_for(60s);
    CHECK(got.empty());
    w.heal(server, client);
    w.run_for(60s);
    CHECK(got == "all");
    CHECK(at - w.start() == 65s + 2ms);
  }
  SECTION("one way") {
    w.partition_one_way(server, client);
    w.run_for(60s);
    CHECK(got.empty());
    CHECK(w.trace().find("srv send(3) = 3") != std::string::npos);  // that way is open
    w.heal();
    w.run_for(60s);
    CHECK(got == "all");
  }
  SECTION("for longer than TCP has patience") {
    w.partition(server, client);
    w.run_for(1h);
    CHECK(got == std::make_error_code(std::errc::timed_out).message());
  }
}

TEST_CASE("a host that crashes is silent, and resets what it does not know once it is back") {
  sim::world w{{.latency = {1ms, 1ms}}};
  auto& server = w.host("srv", echo_one_by_one);
  std::vector<std::string> heard;
  const auto talk = [&]() -> task<> {
    auto conn = co_await coax::connect(server_at());
    std::array<std::byte, 8> buf;
    while (true) {
      co_await coax::sleep_for(10s);
      auto sent = co_await conn->write("x");
      auto n = sent ? co_await coax::within(5s, conn->read(buf)) : sent;
      heard.push_back(n ? "x" : n.error().message());
      if (!n && n.error() != std::errc::timed_out) break;
    }
  };
  w.host("cli", talk);
  w.run_for(15s);
  server.crash();
  CHECK(!server.is_running());
  CHECK(server.open_fds() == 0);
  w.run_for(27s);
  server.restart();
  CHECK(server.is_running());
  w.run_for(1min);
  const std::string silence = std::make_error_code(std::errc::timed_out).message();
  REQUIRE(heard.size() == 4);
  CHECK(heard[0] == "x");
  CHECK(heard[1] == silence);
  CHECK(heard[2] == silence);
  CHECK(heard[3] == std::make_error_code(std::errc::connection_reset).message());
}

TEST_CASE("an answer that is lost in the crash of who sent it is asked for again") {
  sim::world w{{.latency = {10ms, 10ms}}};
  opened held;
  std::error_code outcome;
  coax::clock::duration took{};
  auto& server = w.host("srv", accept_and_hold, std::ref(held));
  SECTION("to the end of a connection") {
    const auto sends = []() -> task<> {
      auto conn = co_await coax::connect(server_at());
      auto sent = co_await conn->write("hello");
      CHECK(sent);
    };
    auto& client = w.host("cli", sends);
    w.run_for(25ms);
    w.partition_one_way(server, client);
    w.run_for(1s);
    CHECK(!client.is_running());
    CHECK(client.connections() == 1);
    server.crash();
    w.heal();
    server.restart();
    w.run_for(1s);
    CHECK(client.connections() == 0);
  }
  SECTION("to an attempt to connect") {
    auto& client = w.host("cli", connect_once, std::ref(outcome), std::ref(took));
    w.partition_one_way(server, client);
    w.run_for(1s);
    server.crash();
    w.heal();
    server.restart();
    w.run_for(1s);
    CHECK(!client.is_running());
    CHECK(!outcome);
  }
  SECTION("to the offer of a connection") {
    auto& client = w.host("cli", connect_once, std::ref(outcome), std::ref(took));
    w.run_for(15ms);
    w.partition_one_way(client, server);
    w.run_for(1s);
    CHECK(server.connections() == 1);
    client.crash();
    w.heal();
    client.restart();
    client.kill();
    w.run_for(1s);
    CHECK(server.connections() == 0);
  }
  held.reset();
}

TEST_CASE("a program that is killed leaves its connections to its kernel, which closes them") {
  sim::world w{{.latency = {1ms, 1ms}}};
  auto& server = w.host("srv", echo_one_by_one);
  std::string got;
  const auto wait_for_end = [&]() -> task<> {
    auto conn = co_await coax::connect(server_at());
    std::array<std::byte, 8> buf;
    auto n = co_await conn->read(buf);
    got = n.error().message();
  };
  w.host("cli", wait_for_end);
  w.run_for(1s);
  server.kill();
  w.run_for(1s);
  CHECK(got == make_error_code(coax::errc::end_of_stream).message());
  std::error_code outcome;
  coax::clock::duration took{};
  w.host("late", connect_once, std::ref(outcome), std::ref(took));
  w.run_for(1s);
  CHECK(outcome == std::errc::connection_refused);
}

TEST_CASE("signals: told to who waits, kept for who waits later, deadly to who never does") {
  sim::world w;
  std::vector<int> got;
  const auto waits = [&]() -> task<> {
    for (int i = 0; i < 2; ++i) {
      const int number = co_await coax::signals({SIGTERM, SIGHUP});
      got.push_back(number);
      co_await coax::sleep_for(1min);
    }
  };
  auto& first = w.host("first", waits);
  auto& second = w.host("second", idle);
  w.run_for(1s);
  first.signal(SIGHUP);
  w.run_for(1s);
  CHECK(got == std::vector{SIGHUP});
  first.signal(SIGTERM);
  w.run_for(5min);
  CHECK(got == std::vector{SIGHUP, SIGTERM});
  CHECK(!first.is_running());
  second.signal(SIGCHLD);
  CHECK(second.is_running());
  second.signal(SIGTSTP);
  CHECK(second.is_paused());
  second.signal(SIGCONT);
  CHECK(!second.is_paused());
  second.signal(SIGTERM);
  CHECK(!second.is_running());
}

TEST_CASE("a program that ends its own host aborts with a message") {
  const auto ended_by = [](void (sim::host::*end)()) {
    return ending_of([end] {
      sim::world w;
      sim::host* own = nullptr;
      const auto ends = [&]() -> task<> {
        co_await coax::sleep_for(1s);
        (own->*end)();
      };
      own = &w.host("srv", ends);
      w.run_for(2s);
    });
  };
  CHECK(ended_by(&sim::host::crash).aborted_saying("end its own host"));
  CHECK(ended_by(&sim::host::kill).aborted_saying("end its own host"));
}

TEST_CASE("a paused host does not run, and its kernel goes on") {
  sim::world w;
  auto& server = w.host("srv", echo_one_by_one);
  w.run_for(1s);
  server.pause();
  std::string got;
  coax::clock::time_point at;
  w.host("cli", ping, std::string("hello"), std::ref(got), std::ref(at));
  w.run_for(10s);
  CHECK(got.empty());
  CHECK(server.connections() == 1);
  server.resume();
  w.run_for(1s);
  CHECK(got == "hello");
}

TEST_CASE("a server that runs out of descriptors serves those who wait when it has some again") {
  sim::world w;
  simulated::counts seen;
  auto& server = w.host("srv", simulated::serve, std::ref(seen), 10);
  server.limit_fds(4);  // its wake-up, the listener, and two connections
  int served = 0;
  const auto client = [&]() -> task<> {
    auto conn = co_await coax::connect(server_at());
    auto sent = co_await conn->write("x");
    std::array<std::byte, 1> back;
    auto n = co_await conn->read_exactly(back);
    if (sent && n) ++served;
    co_await coax::sleep_for(10s);
  };
  for (int i = 0; i < 4; ++i) w.host("cli" + std::to_string(i), client);
  w.run_for(5s);
  CHECK(served == 2);
  CHECK(server.open_fds() == 3);
  w.run_for(20s);
  CHECK(served == 4);
}

TEST_CASE("a full backlog makes clients wait and try again") {
  sim::world w;
  coax::listen_options how;
  how.backlog = 1;
  auto& server = w.host("srv", only_listen, how);
  std::array<std::error_code, 4> outcome;
  std::array<coax::clock::duration, 4> took{};
  for (std::size_t i = 0; i < 4; ++i)
    w.host("cli" + std::to_string(i), connect_once, std::ref(outcome[i]), std::ref(took[i]));
  w.run_for(1h);
  const auto connected =
      std::count_if(outcome.begin(), outcome.end(), [](const std::error_code& e) { return !e; });
  CHECK(connected == 2);  // Linux takes one more than it was told
  CHECK(std::count(outcome.begin(), outcome.end(), std::errc::timed_out) == 2);
  CHECK(server.open_streams() == 0);
}

TEST_CASE("a planned fault hits the call it names") {
  sim::world w;
  w.host("srv", echo_one_by_one);
  std::string got;
  coax::clock::time_point at;
  auto& client = w.host("cli", ping, std::string("hello"), std::ref(got), std::ref(at));
  SECTION("an interruption is nobody's concern") {
    client.on("recv").nth(1, EINTR).nth(2, EINTR).nth(3, EAGAIN);
    w.run_for(1s);
    CHECK(got == "hello");
    CHECK(client.on("recv").count() >= 4);
  }
  SECTION("a reset is") {
    client.on("recv").nth(1, ECONNRESET);
    w.run_for(1s);
    CHECK(got == std::make_error_code(std::errc::connection_reset).message());
  }
  CHECK_THROWS_AS(client.on("mmap"), std::invalid_argument);
}

TEST_CASE("a latency and a stall may be for ever") {
  constexpr auto for_ever = coax::clock::duration::max();
  for (const bool stalls : {false, true}) {
    sim::options o;
    if (stalls) {
      o.stall = 1;
      o.stall_time = {for_ever, for_ever};
    } else {
      o.latency = {for_ever, for_ever};
    }
    sim::world w{o};
    std::string got;
    coax::clock::time_point at;
    w.host("srv", echo_one_by_one);
    w.host("cli", ping, std::string("x"), std::ref(got), std::ref(at));
    w.run_for(std::chrono::hours(24 * 365));
    CHECK(got.empty());
    CHECK(w.now() - w.start() == std::chrono::hours(24 * 365));
  }
}

TEST_CASE("a planned fault is counted from when it is planned") {
  sim::call_rule rule;
  CHECK(rule.next() == 0);
  CHECK(rule.next() == 0);
  rule.nth(2, EINTR).nth(3, EAGAIN);
  CHECK(rule.next() == 0);
  CHECK(rule.next() == EINTR);
  CHECK(rule.next() == EAGAIN);
  CHECK(rule.next() == 0);
  rule.always(EIO).nth(1, EINTR);
  CHECK(rule.next() == EINTR);
  CHECK(rule.next() == EIO);
  rule.always(0);
  CHECK(rule.next() == 0);
  CHECK(rule.count() == 9);
}

TEST_CASE("by whichever error a connection was lost, a read does not take it for the peer's end") {
  const auto ends_at_once = []() -> task<> {
    auto from = coax::listener::bind("0.0.0.0:9000").value();
    auto conn = co_await from.accept();
    CHECK(conn);
  };
  for (const sim::completion how : {sim::completion::readiness, sim::completion::ring})
    for (const int error : {ECONNRESET, ECONNABORTED, ECONNREFUSED, ETIMEDOUT, EHOSTDOWN,
                            EHOSTUNREACH, ENETUNREACH}) {
      INFO(std::generic_category().message(error));
      std::error_code by_write;
      std::error_code by_read;
      const auto writes_then_reads = [&]() -> task<> {
        auto conn = co_await coax::connect(server_at());
        REQUIRE(conn);
        co_await coax::sleep_for(1s);  // the peer has ended by then
        auto sent = co_await conn->write("x");
        by_write = sent.error();
        std::array<std::byte, 8> some;
        auto got = co_await conn->read(some);
        by_read = got.error();
      };
      sim::world w{{.completion = how}};
      w.host("srv", ends_at_once);
      w.host("cli", writes_then_reads).on("send").always(error);
      w.run_for(5s);
      CHECK(by_write == std::error_code(error, std::system_category()));
      CHECK(by_read == std::error_code(error, std::system_category()));
    }
}

TEST_CASE("a fault that comes by chance hits the calls that can fail so, and no others") {
  using sim::call;
  const std::vector<call> transfers{call::recv, call::send, call::read, call::write};
  const auto and_also = [](std::vector<call> some, std::initializer_list<call> more) {
    some.insert(some.end(), more);
    return some;
  };
  struct row {
    double sim::options::* chance;
    int error;
    std::vector<call> hits;
  };
  const std::vector<row> rows{
      {&sim::options::eintr, EINTR, and_also(transfers, {call::accept, call::connect, call::poll})},
      {&sim::options::eagain, EAGAIN, and_also(transfers, {call::accept})},
      {&sim::options::reset, ECONNRESET, {call::recv, call::send}},
      {&sim::options::econnaborted, ECONNABORTED, {call::accept}},
      {&sim::options::emfile, EMFILE, {call::accept, call::socket}},
      {&sim::options::enobufs, ENOBUFS, {call::accept, call::socket, call::send}},
      {&sim::options::enomem, ENOMEM, {call::accept, call::socket, call::recv}},
  };
  for (const row& each : rows) {
    sim::options how;
    how.*each.chance = 1;
    sim::oracle decide(1);
    sim::engine world(how, decide);
    sim::call_faults faults(world);
    for (const call c :
         {call::recv, call::send, call::read, call::write, call::accept, call::connect,
          call::socket, call::bind, call::listen, call::poll, call::shutdown}) {
      INFO("error " << each.error << ", call " << static_cast<int>(c));
      const bool hit = std::find(each.hits.begin(), each.hits.end(), c) != each.hits.end();
      CHECK(faults.next(c) == (hit ? each.error : 0));
    }
    faults.stop();
    CHECK(faults.next(each.hits[0]) == 0);
  }
}

TEST_CASE("random numbers and names are the world's") {
  const auto draw = [](std::uint64_t seed) {
    sim::world w{{.seed = seed}};
    std::uint64_t drawn = 0;
    int answer = -1;
    std::vector<sockaddr_storage> found;
    const auto program = [&]() -> task<> {
      drawn = coax::random();
      answer = coax::syscalls::current().look_up("other", found).value();
      co_return;
    };
    w.host("one", program);
    w.host("other", idle);
    w.run_for(1s);
    CHECK(answer == 0);
    REQUIRE(found.size() == 1);
    CHECK(coax::endpoint::from_sockaddr(reinterpret_cast<const sockaddr*>(&found[0]),
                                        sizeof(sockaddr_in))
              .to_string() == "10.0.0.2:0");
    return drawn;
  };
  CHECK(draw(1) == draw(1));
  CHECK(draw(1) != draw(2));
}

TEST_CASE("hosts are connected to by name, and what blocks is called at once") {
  sim::world w;
  w.host("srv", echo_one_by_one);
  std::error_code known;
  std::error_code unknown;
  int answer = 0;
  const auto program = [&]() -> task<> {
    auto conn = co_await coax::connect("srv", 9000);
    known = conn.error();
    auto nobody = co_await coax::connect("nobody", 9000);
    unknown = nobody.error();
    const auto six_times_seven = [] { return 6 * 7; };
    answer = co_await coax::blocking(six_times_seven);
  };
  auto& client = w.host("cli", program);
  w.run_for(1s);
  CHECK(!client.is_running());
  CHECK(!known);
  CHECK(unknown);
  CHECK(answer == 42);
}

TEST_CASE("what a program throws comes out of the run") {
  sim::world w;
  w.host("bad", []() -> task<> {
    co_await coax::sleep_for(1s);
    throw std::runtime_error("no");
  });
  CHECK_THROWS_AS(w.run_for(1min), std::runtime_error);
  CHECK(w.now() - w.start() == 1s);
}

TEST_CASE("an invariant is checked after each step") {
  sim::world w;
  int value = 0;
  w.host("one", [&]() -> task<> {
    co_await coax::sleep_for(1s);
    value = 1;
    co_await coax::sleep_for(1s);
    value = 2;
  });
  int checks = 0;
  w.invariant([&] { ++checks; });
  w.invariant("value stays below 2", [&] { return value < 2; });
  CHECK_THROWS_AS(w.run_for(1min), sim::violated);
  CHECK(w.now() - w.start() == 2s);
  CHECK(checks > 2);
}

TEST_CASE("when nothing can happen any more, that is said, with who waits for what") {
  sim::world w;
  w.host("srv", echo_one_by_one);
  w.run_until_quiet();
  CHECK(w.waiting().find("srv waits: 0 streams, 1 descriptors") != std::string::npos);
  CHECK(w.waiting().find("echo_one_by_one") != std::string::npos);
  std::string why;
  try {
    w.run_until([] { return false; });
  } catch (const sim::stuck& e) {
    why = e.what();
  }
  CHECK(why.find("nothing can happen any more") != std::string::npos);
  CHECK(why.find("accept") != std::string::npos);
}

TEST_CASE("what runs for ever without waiting is found out") {
  sim::world w;
  w.host("busy", []() -> task<> {
    while (true) co_await coax::yield();
  });
  CHECK_THROWS_AS(w.run_for(1s), sim::stuck);
}

TEST_CASE("run_until stops at once, and gives up in time") {
  sim::world w;
  bool there = false;
  w.host("one", [&]() -> task<> {
    co_await coax::sleep_for(5s);
    there = true;
    while (true) co_await coax::sleep_for(1s);
  });
  w.run_until([&] { return there; });
  CHECK(w.now() - w.start() == 5s);
  CHECK_THROWS_AS(w.run_until([] { return false; }, 1min), sim::stuck);
  CHECK_THROWS_AS(w.run_until_quiet(1min), sim::stuck);
}

TEST_CASE("a server ends on SIGTERM: busy workers finish, and nothing is left") {
  for (const auto completion : {sim::completion::readiness, sim::completion::ring}) {
    sim::world w{{.latency = {1ms, 5ms}, .completion = completion}};
    simulated::counts seen;
    auto& server = w.host("srv", simulated::serve, std::ref(seen), 3);
    std::string got;
    coax::clock::time_point at;
    w.host("cli", ping, std::string("hello"), std::ref(got), std::ref(at));
    w.run_for(1s);
    server.signal(SIGTERM);
    w.run_for(5s);
    CHECK(server.is_running());
    CHECK(seen.workers == 1);
    w.run_for(10s);
    CHECK(!server.is_running());
    CHECK(seen.workers == 0);
    CHECK(server.open_fds() == 0);
  }
}

TEST_CASE("what is printed of options makes the same world again") {
  sim::options o;
  CHECK(to_string(o) == ".seed = 1");
  o.seed = 18'446'744'073'709'551'615U;
  o.latency.least = 5ms;
  o.rate = 1'000'000;
  o.completion = sim::completion::ring;
  o.eintr = 1e-7;
  o.stall = 0.1;
  o.stall_time = {1s, 2s};
  CHECK(to_string(o) ==
        ".seed = 18446744073709551615, .latency = {5000000ns, 0ns}, .rate = 1000000, "
        ".completion = completion::ring, .eintr = 1e-07, .stall = 0.1, "
        ".stall_time = {1000000000ns, 2000000000ns}");
}

TEST_CASE("a world refuses what cannot be, when it is asked for it") {
  for (const double impossible : {-0.1, 7.0, std::numeric_limits<double>::quiet_NaN()}) {
    sim::options o;
    o.short_io = impossible;
    CHECK_THROWS_WITH(sim::world(o), contains("short_io is "));
  }
  const auto refused = [](auto change, const char* why) {
    sim::options o;
    change(o);
    CHECK_THROWS_WITH(sim::world(o), contains(why));
  };
  refused([](sim::options& o) { o.latency = {20ms, 1ms}; }, "latency: ");
  refused([](sim::options& o) { o.latency = {-20ms, 10ms}; }, "latency: ");
  refused([](sim::options& o) { o.stall_time = {50ms, 1ms}; }, "stall_time: ");
  refused([](sim::options& o) { o.send_buffer = 0; }, "send_buffer");
  refused([](sim::options& o) { o.receive_buffer = 0; }, "receive_buffer");
  refused([](sim::options& o) { o.fds_max = -1; }, "fds_max: ");
  refused([](sim::options& o) { o.backlog_max = 0; }, "backlog_max: ");
  refused([](sim::options& o) { o.completion = static_cast<sim::completion>(9); }, "completion: ");
  const auto nothing = []() -> task<> { co_return; };
  sim::world w;
  sim::host& srv = w.host("srv", nothing);
  CHECK_THROWS_WITH(w.host("srv", nothing), contains("a host \"srv\" already"));
  CHECK_THROWS_WITH(srv.limit_fds(-1), contains("limit_fds of host srv is -1"));
  for (const int number : {0, -1, 65, SIGTERM + 64})
    CHECK_THROWS_WITH(srv.signal(number), contains("signal " + std::to_string(number)));
  CHECK_THROWS_WITH(srv.on("recv").nth(0, EINTR), contains("the first call is 1"));
}

TEST_CASE(
    "one socket listens for IPv4 and another for IPv6 alone on one port, whichever comes first") {
  for (const bool four_first : {true, false}) {
    sim::world w;
    bool both = false;
    w.host("srv", [&]() -> task<> {
      const auto listens = [](bool four) {
        return coax::listener::bind(four ? "0.0.0.0:80" : "[::]:80", {.v6only = !four});
      };
      const auto first = listens(four_first);
      const auto second = listens(!four_first);
      both = first && second;
      co_return;
    });
    w.run_to_end();
    CHECK(both);
  }
}

TEST_CASE(
    "a host whose function throws before it gives its task does not run, and can be started again") {
  for (const int fails_at : {1, 2}) {
    sim::world w;
    int calls = 0;
    const auto fails = [&]() -> task<> {
      if (++calls == fails_at) throw std::runtime_error("before its task");
      return []() -> task<> { co_await coax::sleep_for(1h); }();
    };
    if (fails_at == 1) {
      CHECK_THROWS_WITH(w.host("srv", fails), "before its task");
    } else {
      auto& srv = w.host("srv", fails);
      w.run_for(1s);
      srv.crash();
      CHECK_THROWS_WITH(srv.restart(), "before its task");
      CHECK_FALSE(srv.is_running());
      srv.restart();
      CHECK(srv.is_running());
    }
    w.run_for(1s);
  }
}

TEST_CASE("time does not go back, and an invariant may add another") {
  sim::world w;
  w.host("cli", []() -> task<> { co_await coax::sleep_for(1s); });
  int asked = 0;
  w.invariant([&] {
    if (asked == 0) w.invariant([&] { ++asked; });
    ++asked;
  });
  w.run_for(2s);
  CHECK(asked > 1);
  w.run_for(-1s);
  CHECK(w.now() == w.start() + 2s);
}
