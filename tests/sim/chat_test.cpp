#include "../catch.hpp"
#include "bad_days.hpp"

#include <coax/coax.hpp>
#include <coax/task/frames.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#define main chat_main  // its routines, as they are
#include "../../examples/chat.cpp"
#undef main

// The example chat on many bad days: whoever stays hears every line of everybody, whole, once, and
// in the order in which it was said; whoever leaves in order hears what was said until then; and
// nobody holds up the others for long.

namespace {

namespace sim = coax::sim;
using coax::stream;
using coax::task;

std::string line_of(int tag, int number) {
  const int size = (tag + number * 7) % 60;
  const char letter = static_cast<char>('a' + (tag + number) % 26);
  return std::to_string(tag) + ' ' + std::to_string(number) + ' ' +
         std::string(static_cast<std::size_t>(size) + 1, letter) + '\n';
}

/// What one guest hears, from his first byte to his last.
class hearing {
 public:
  bool wrong = false;
  bool closes = false;
  int lines = 0;  // of guests
  int own = 0;
  bool greeted() const noexcept { return me_ != 0; }
  bool is_whole() const noexcept { return rest_.empty(); }
  int count_of(int tag) const {
    for (const auto& [name, who] : others_)
      if (who.tag == tag) return who.next;
    return 0;
  }

  explicit hearing(int tag) noexcept : tag_(tag) {}

  void take(std::span<const std::byte> bytes) {
    rest_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (auto end = rest_.find('\n'); end != rest_.npos; end = rest_.find('\n')) {
      if (!line(rest_.substr(0, end + 1))) wrong = true;
      rest_.erase(0, end + 1);
    }
  }

 private:
  struct other {
    std::optional<int> tag;
    int next = 0;
    bool is_here = true;
  };

  /// False when it should not have come, here and now.
  bool line(const std::string& text) {
    if (closes) return false;
    if (text[0] == '*') return news(text);
    if (!greeted()) return false;
    std::istringstream in(text);
    int name = 0;
    int tag = 0;
    int number = 0;
    char colon = 0;
    if (!(in >> name >> colon >> tag >> number) || colon != ':') return false;
    if (text != std::to_string(name) + ": " + line_of(tag, number)) return false;
    // Who was here before this guest may be in the middle of what he says.
    if (name < me_ && others_.find(name) == others_.end()) others_[name].next = number;
    const auto at = others_.find(name);
    if (at == others_.end()) return false;
    other& who = at->second;
    if (!who.tag) who.tag = tag;
    if (who.tag != tag || (name == me_ && tag != tag_)) return false;
    if (!who.is_here || who.next++ != number) return false;
    ++lines;
    if (name == me_) ++own;
    return true;
  }
  bool news(const std::string& text) {
    if (text == "* the room closes\n") return closes = true;
    std::istringstream in(text.substr(1));
    int name = 0;
    std::string what;
    if (!(in >> name)) return false;
    std::getline(in, what);
    if (what == " is here") {
      if (!greeted()) me_ = name;
      return name >= me_ && others_.emplace(name, other{}).second;
    }
    if (what != " has left" && what != " does not keep up") return false;
    if (name == me_ || !greeted()) return false;
    return std::exchange(others_[name].is_here, false);
  }

  int tag_;
  int me_ = 0;
  std::string rest_;
  std::map<int, other> others_;  // with the guest himself
};

/// What all guests have come to.
struct outcomes {
  int here = 0;
  int complete = 0;
  bool wrong = false;
};

/// What a guest does, and how long he takes for it.
struct manners {
  int lines = 0;
  coax::clock::duration between{};
  coax::clock::duration reads_slowly{};
};

task<> say(stream& conn, int tag, manners how) {
  for (int i = 0; i < how.lines; ++i) {
    const std::string line = line_of(tag, i);
    auto sent = co_await coax::within(60s, conn.write(line));
    if (!sent) co_return;
    if (how.between > 0s) co_await coax::sleep_for(how.between);
  }
  static_cast<void>(conn.shutdown_write());
}

/// Hears everything until the end. True when that came in order.
task<bool> hear(stream& conn, hearing& all, outcomes& seen, coax::clock::duration slowly = {}) {
  std::array<std::byte, 700> buf;
  while (true) {
    auto n = co_await coax::within(120s, conn.read(buf));
    if (!n) co_return n.error() == coax::errc::end_of_stream;
    all.take(std::span(buf).first(*n));
    if (all.wrong) seen.wrong = true;
    if (slowly > 0s) co_await coax::sleep_for(slowly);
  }
}

task<> guest(std::uint32_t seed, outcomes& seen) {
  sim::generator random(seed);
  for (int i = 0; i < 3; ++i) {
    const auto pause = static_cast<int>(random() % 5000);
    co_await coax::sleep_for(std::chrono::milliseconds(pause));
    manners how;
    how.lines = static_cast<int>(random() % 80);
    if (random() % 2 == 0) how.between = std::chrono::milliseconds(random() % 50);
    if (random() % 4 == 0) how.reads_slowly = std::chrono::milliseconds(random() % 800);
    const bool stays = random() % 2 == 0;
    const int tag = static_cast<int>(random() % 1'000'000);
    auto conn = co_await coax::within(30s, coax::connect("chat", 9000));
    if (!conn) continue;
    hearing all(tag);
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(say, std::ref(*conn), tag, how);
      if (stays)
        co_await hear(*conn, all, seen, how.reads_slowly);
      else
        static_cast<void>(co_await coax::within(3s, hear(*conn, all, seen, how.reads_slowly)));
      s.cancel();
    });
  }
}

/// On a good day: waits until `count` are here, says its lines, and leaves in order once it has
/// heard those of all.
task<> regular(int tag, int count, outcomes& seen) {
  constexpr int lines = 8;  // all of them together fit into what may be unread
  auto conn = co_await coax::connect("chat", 9000);
  hearing all(tag);
  bool in_order = false;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    s.spawn([&]() -> task<> {
      while (!all.greeted()) co_await coax::sleep_for(10ms);
      ++seen.here;
      while (seen.here < count) co_await coax::sleep_for(10ms);
      for (int i = 0; i < lines; ++i) {
        const std::string line = line_of(tag, i);
        auto sent = co_await conn->write(line);
        if (!sent) co_return;
      }
      while (all.lines < count * lines) co_await coax::sleep_for(10ms);
      static_cast<void>(conn->shutdown_write());
    });
    in_order = co_await hear(*conn, all, seen);
    s.cancel();
  });
  if (in_order && all.is_whole() && all.own == lines && all.lines == count * lines) ++seen.complete;
}

/// Stays until the room closes.
task<> stayer(int tag, outcomes& seen) {
  auto conn = co_await coax::connect("chat", 9000);
  hearing all(tag);
  std::array<std::byte, 700> buf;
  while (auto n = co_await conn->read(buf)) all.take(std::span(buf).first(*n));
  if (all.closes && all.is_whole() && !all.wrong) ++seen.complete;
}

task<> chat() {
  auto listener = co_await simulated::listen_at_last();
  co_await serve(std::move(listener));
}

void bad_day(std::uint64_t seed, bool print) {
  const auto frames = coax::detail::frames::live();
  sim::generator random(seed);
  {
    sim::world w{sim::faults::swarm(seed, {}, print)};
    outcomes heard;
    auto& server = w.host("chat", chat);
    std::vector<sim::host*> hosts{&server};
    for (std::uint32_t i = 0; i < 4; ++i)
      hosts.push_back(&w.host("cli" + std::to_string(i), guest,
                              static_cast<std::uint32_t>(seed) * 10 + i, std::ref(heard)));
    w.invariant("lines are whole, in order and come once", [&] { return !heard.wrong; });

    simulated::live_through(w, random, hosts);
    w.run_for(30min);
    constexpr int regulars = 4;
    outcomes last;
    for (int i = 0; i < regulars; ++i)
      hosts.push_back(&w.host("reg" + std::to_string(i), regular, i, regulars, std::ref(last)));
    w.run_for(2h);  // those who crashed are found out when they are written to
    REQUIRE(!last.wrong);
    REQUIRE(last.complete == regulars);
    REQUIRE(server.open_streams() == 0);
    REQUIRE(server.open_fds() == 1);

    outcomes closing;
    for (int i = 0; i < 2; ++i)
      hosts.push_back(&w.host("stay" + std::to_string(i), stayer, i, std::ref(closing)));
    w.run_for(1min);
    server.signal(SIGTERM);
    w.run_until_quiet(1h);
    REQUIRE(closing.complete == 2);
    simulated::require_nothing_left(hosts);
  }
  REQUIRE(coax::detail::frames::live() == frames);
}

/// Says all its lines, ends its side, and hears what there is.
task<> says_and_leaves(int tag, int lines, outcomes& seen) {
  auto conn = co_await coax::connect("chat", 9000);
  hearing all(tag);
  manners how;
  how.lines = lines;
  auto both = co_await coax::when_all(say(*conn, tag, how), hear(*conn, all, seen));
  CHECK(std::get<1>(both));
  CHECK(all.is_whole());
  CHECK(all.own == lines);
  ++seen.complete;
}

}  // namespace

TEST_CASE("who stays in the chat hears each line whole, once and in order, on bad days",
          "[seeds]") {
  simulated::on_bad_days(bad_day);
}

TEST_CASE("who has said all and ends his side still hears what was said") {
  for (const auto completion : {sim::completion::readiness, sim::completion::ring}) {
    sim::world w{{.latency = {1ms, 5ms},
                  .send_buffer = 500,
                  .receive_buffer = 500,
                  .completion = completion}};
    outcomes seen;
    auto& server = w.host("chat", chat);
    w.host("cli", says_and_leaves, 1, 50, std::ref(seen));
    w.run_for(1s);
    CHECK(seen.complete == 1);
    CHECK(!seen.wrong);
    CHECK(server.open_streams() == 0);
  }
}

TEST_CASE("who has left and does not hear what was said has his place for some seconds only") {
  sim::world w{{.latency = {1ms, 5ms}, .send_buffer = 100, .receive_buffer = 100}};
  auto& server = w.host("chat", chat);
  w.host("cli", []() -> task<> {
    auto conn = co_await coax::connect("chat", 9000);
    std::string text;
    for (int i = 0; i < 60; ++i) text += line_of(1, i);
    auto sent = co_await conn->write(text);
    REQUIRE(sent);
    REQUIRE(conn->shutdown_write());
    co_await coax::sleep_for(1h);
  });
  w.run_for(1s);
  CHECK(server.open_streams() == 1);
  w.run_for(10s);
  CHECK(server.open_streams() == 0);
}

TEST_CASE("who does not read is dropped, and holds up the others for a second at most") {
  constexpr int lines = 1000;
  sim::world w{{.latency = {1ms, 5ms}, .send_buffer = 4096, .receive_buffer = 4096}};
  auto& server = w.host("chat", chat);
  std::size_t unread = 0;
  w.host("slow", [&]() -> task<> {
    auto conn = co_await coax::connect("chat", 9000);
    co_await coax::sleep_for(1min);
    std::array<std::byte, 700> buf;
    while (auto n = co_await conn->read(buf)) unread += *n;
  });
  outcomes seen;
  hearing all(1);
  std::optional<coax::clock::time_point> heard_all;
  w.host("listener", [&]() -> task<> {
    auto conn = co_await coax::connect("chat", 9000);
    std::array<std::byte, 700> buf;
    while (auto n = co_await conn->read(buf)) {
      all.take(std::span(buf).first(*n));
      if (all.lines == lines && !heard_all) heard_all = coax::now();
    }
  });
  w.run_for(1s);
  CHECK(server.open_streams() == 2);
  const auto began = w.now();
  w.host("talker", says_and_leaves, 2, lines, std::ref(seen));
  w.run_for(30s);
  CHECK(!all.wrong);
  REQUIRE(all.lines == lines);
  CHECK(*heard_all - began < 5s);  // at the speed of the network, it would take 3 s
  CHECK(seen.complete == 1);
  CHECK(server.open_streams() == 1);
  w.run_for(1min);
  CHECK(unread > 4096);
  CHECK(unread < 2 * 4096 + 64 * 100);
}

TEST_CASE("a line of somebody who is gone meanwhile reaches everybody or nobody") {
  sim::world w{{.latency = {1ms, 2ms}, .send_buffer = 1000, .receive_buffer = 1000}};
  w.host("chat", chat);
  const auto hears = [](hearing& all, coax::clock::duration later) -> task<> {
    auto conn = co_await coax::connect("chat", 9000);
    co_await coax::sleep_for(later);
    std::array<std::byte, 700> buf;
    while (auto n = co_await conn->read(buf)) all.take(std::span(buf).first(*n));
  };
  hearing at_once(1);
  hearing late(2);
  w.host("quick", hears, std::ref(at_once), 0s);
  w.host("late", hears, std::ref(late), 2200ms);
  w.run_for(1s);
  w.host("gone", []() -> task<> {
    auto conn = co_await coax::connect("chat", 9000);
    manners how;
    how.lines = 300;
    how.between = 5ms;
    static_cast<void>(co_await coax::within(900ms, say(*conn, 3, how)));
  });  // which is closed with what it has not read: a reset
  w.run_for(10s);
  CHECK(!at_once.wrong);
  CHECK(!late.wrong);
  CHECK(at_once.lines > 60);
  CHECK(late.lines == at_once.lines);
}
