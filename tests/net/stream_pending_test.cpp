#include <coax/net/stream.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

// What happens to a transfer that waits: a second one, a timeout, a cancellation, a move, a close.

namespace {

using namespace std::chrono_literals;
using coax::errc;
using coax::stream;
using coax::task;

/// More than any socket's buffers hold.
const std::vector<std::byte>& much() {
  static const std::vector<std::byte> bytes = pattern(16u << 20, 7);
  return bytes;
}

/// How a transfer ended, once it has.
using outcome = std::optional<coax::result<std::size_t>>;

task<> write_much(stream& to, outcome& how) {
  auto sent = co_await to.write(much());
  how.emplace(sent);
}
task<> read_some(stream& from, std::span<std::byte> into, outcome& how) {
  auto got = co_await from.read(into);
  how.emplace(got);
}
task<> read_full(stream& from, std::span<std::byte> into, outcome& how) {
  auto got = co_await from.read_exactly(into);
  how.emplace(got);
}

/// Later writes fail, and so do what goes through write_some; what is read does not notice.
task<> check_write_is_cut(stream& cut, stream& peer) {
  auto whole = co_await coax::within(patience, cut.write("x"));
  CHECK(whole.error() == errc::transfer_cut);
  auto some = co_await coax::within(patience, cut.write_some("x"));
  CHECK(some.error() == errc::transfer_cut);
  auto nothing = co_await cut.write("");
  CHECK(nothing);
  auto back = co_await peer.write("reading goes on");
  CHECK(back);
  const std::string got = co_await read_text(cut);
  CHECK(got == "reading goes on");
}

task<> check_read_is_cut(stream& cut, stream& peer) {
  auto more = co_await peer.write("defghij");
  CHECK(more);
  std::array<std::byte, 4> some;
  auto read = co_await coax::within(patience, cut.read(some));
  CHECK(read.error() == errc::transfer_cut);
  auto exactly = co_await coax::within(patience, cut.read_exactly(some));
  CHECK(exactly.error() == errc::transfer_cut);
  auto sent = co_await cut.write("writing goes on");
  CHECK(sent);
  const std::string got = co_await read_text(peer);
  CHECK(got == "writing goes on");
}

}  // namespace

TEST_CASE("a second reader is turned away at once, and the first goes on") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 8> bytes;
    outcome first;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(first));
      for (int i = 0; i < 3; ++i) {
        co_await turns(1);
        std::array<std::byte, 8> others;
        auto second = co_await coax::within(patience, near.read(others));
        CHECK(second.error() == std::errc::device_or_resource_busy);
        auto exactly = co_await coax::within(patience, near.read_exactly(others));
        CHECK(exactly.error() == std::errc::device_or_resource_busy);
      }
      CHECK(!first);
      auto written = co_await near.write("a writer is another thing");
      CHECK(written);
      auto sent = co_await far.write("abc");
      CHECK(sent);
    });
    REQUIRE(first);
    REQUIRE(*first);
    CHECK(text_of(std::span(bytes).first(**first)) == "abc");
  });
}

TEST_CASE("on io_uring a read that was cancelled keeps its place until it has unwound") {
  on_each_kernel_pair([](stream& near, stream&) -> task<> {
    const bool keeps_it = coax::reactor::current().backend() == "io_uring";
    std::array<std::byte, 8> bytes;
    outcome first;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(first));
      co_await turns();
      s.cancel();
      auto second = co_await coax::shield(coax::within(0s, near.read(bytes)));
      CHECK(second.error() ==
            (keeps_it ? std::errc::device_or_resource_busy : std::errc::timed_out));
    });
    CHECK(!first);
    auto third = co_await coax::within(0s, near.read(bytes));
    CHECK(third.error() == std::errc::timed_out);
  });
}

TEST_CASE("a second writer is turned away at once, and the first goes on") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    outcome first;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(write_much, std::ref(near), std::ref(first));
      for (int i = 0; i < 3; ++i) {
        co_await turns(1);
        auto second = co_await coax::within(patience, near.write("x"));
        CHECK(second.error() == std::errc::device_or_resource_busy);
        auto some = co_await coax::within(patience, near.write_some("x"));
        CHECK(some.error() == std::errc::device_or_resource_busy);
      }
      CHECK(!first);
      std::vector<std::byte> got(much().size());
      auto all = co_await far.read_exactly(got);
      CHECK(all);
      CHECK((got == much()));  // in one piece: megabytes are not to be printed
    });
    REQUIRE(first);
    CHECK(*first);
  });
}

TEST_CASE("a write cut off in the middle by its timeout fails those that follow") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await coax::within(20ms, near.write(much()));
    CHECK(sent.error() == std::errc::timed_out);
    co_await check_write_is_cut(near, far);
    // The peer finds the half, and the end after it.
    auto ended = near.shutdown_write();
    CHECK(ended);
    std::string half;
    const std::error_code why = co_await read_to_end(far, half);
    CHECK(why == errc::end_of_stream);
    CHECK(half.size() < much().size());
    CHECK((text_of(std::span(much()).first(half.size())) == half));
  });
}

TEST_CASE("a write cut off in the middle by a cancellation fails those that follow") {
  on_each_kernel_pair([](stream& near, stream& far) -> task<> {
    for (int given = 1; given < 4; ++given) {
      outcome how;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(write_much, std::ref(near), std::ref(how));
        co_await turns(given);
        const bool by_itself = co_await s.join_within(0ms);
        CHECK(!by_itself);
      });
      CHECK(!how);
      if (given == 1) co_await check_write_is_cut(near, far);
      stream_pair next(transport::tcp);
      near = std::move(next.near);
      far = std::move(next.far);
    }
  });
}

TEST_CASE("a write that has to wait for its first byte can be given up without harm") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::size_t filled = 0;
    while (true) {
      auto some = co_await coax::within(5ms, near.write_some(much()));
      if (!some) break;
      filled += *some;
    }
    for (int given_up = 0; given_up < 3;) {
      auto whole = co_await coax::within(1ms, near.write("whole"));
      if (whole) {  // TCP has found a little room after all
        filled += 5;
      } else {
        CHECK(whole.error() == std::errc::timed_out);
        ++given_up;
      }
    }
    std::vector<std::byte> first(filled);
    auto drained = co_await far.read_exactly(first);
    REQUIRE(drained);
    auto sent = co_await near.write("and on");
    CHECK(sent);
    const std::string got = co_await read_text(far);
    CHECK(got == "and on");
  });
}

TEST_CASE("a read_exactly cut off in the middle by its timeout fails the reads that follow") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await far.write("abc");
    REQUIRE(sent);
    std::array<std::byte, 10> ten;
    auto got = co_await coax::within(20ms, near.read_exactly(ten));
    CHECK(got.error() == std::errc::timed_out);
    co_await check_read_is_cut(near, far);
  });
}

TEST_CASE("a read_exactly cut off in the middle by a cancellation fails the reads that follow") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 10> ten;
    outcome how;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      auto sent = co_await far.write("abc");
      REQUIRE(sent);
      s.spawn(read_full, std::ref(near), std::span(ten), std::ref(how));
      co_await turns(5);
      const bool by_itself = co_await s.join_within(0ms);
      CHECK(!by_itself);
    });
    CHECK(!how);
    co_await check_read_is_cut(near, far);
  });
}

TEST_CASE("a read_exactly given up before its first byte does no harm") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 3> three;
    for (int i = 0; i < 3; ++i) {
      auto none = co_await coax::within(1ms, near.read_exactly(three));
      CHECK(none.error() == std::errc::timed_out);
      auto none_either = co_await coax::within(0ms, near.read(three));
      CHECK(none_either.error() == std::errc::timed_out);
    }
    auto sent = co_await far.write("abc");
    REQUIRE(sent);
    auto got = co_await near.read_exactly(three);
    REQUIRE(got);
    CHECK(text_of(three) == "abc");
  });
}

TEST_CASE("a read or a write that is ready beats a timeout of nothing") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await coax::within(0ms, far.write("abc"));
    CHECK(sent);
    std::array<std::byte, 3> three;
    auto got = co_await coax::within(0ms, near.read_exactly(three));
    CHECK(got);
  });
}

TEST_CASE("a byte that comes together with the cancellation is read or left, never dropped") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::string seen;
    for (char c = 'a'; c <= 'z'; ++c) {
      for (int between = 0; between < 3; ++between) {
        std::array<std::byte, 4> some;
        outcome how;
        const std::string one(1, c);
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(read_some, std::ref(near), std::span(some), std::ref(how));
          co_await turns(2);
          auto sent = co_await far.write(one);
          CHECK(sent);
          co_await turns(between);
          co_await s.join_within(0ms);
        });
        if (how && *how)
          seen += text_of(std::span(some).first(**how));
        else
          seen += co_await read_text(near);
        REQUIRE(seen.size() ==
                static_cast<std::size_t>(c - 'a') * 3 + static_cast<std::size_t>(between) + 1);
        REQUIRE(seen.back() == c);
      }
    }
  });
}

TEST_CASE("a read that waits goes on when its stream is moved") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 8> bytes;
    outcome how;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(how));
      co_await turns(2);
      stream moved = std::move(near);
      co_await turns(2);
      near = std::move(moved);
      stream elsewhere = std::move(near);
      auto sent = co_await far.write("abc");
      CHECK(sent);
      while (!how) co_await coax::yield();
      CHECK(elsewhere.is_open());
    });
    REQUIRE(*how);
    CHECK(text_of(std::span(bytes).first(**how)) == "abc");
  });
}

TEST_CASE(
    "a write that waits for a peer which has ended its side can be given up, and closed under") {
  for (const transport t : {transport::tcp, transport::unix_socket}) {
    INFO(name_of(t));
    on_each_backend([t]() -> task<> {
      raw_pair both = raw_connected(t);
      std::optional<stream> near(adopted(std::move(both.near)));
      REQUIRE(::shutdown(both.far.get(), SHUT_WR) == 0);
      auto given_up = co_await coax::within(0ns, near->write(much()));
      CHECK(given_up.error() == std::errc::timed_out);

      raw_pair others = raw_connected(t);
      near.emplace(adopted(std::move(others.near)));
      REQUIRE(::shutdown(others.far.get(), SHUT_WR) == 0);
      outcome how;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(write_much, std::ref(*near), std::ref(how));
        co_await turns(10);
        CHECK_FALSE(how);
        near.reset();
      });
      CHECK(how->error() == std::errc::operation_canceled);
    });
  }
}

TEST_CASE("a write that waits is told when this side is ended") {
  for (const transport t : {transport::tcp, transport::unix_socket}) {
    INFO(name_of(t));
    on_each_backend([t]() -> task<> {
      raw_pair both = raw_connected(t);
      stream near = adopted(std::move(both.near));
      outcome how;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(write_much, std::ref(near), std::ref(how));
        co_await turns(10);
        CHECK_FALSE(how);
        auto ended = near.shutdown_write();
        CHECK(ended);
      });
      CHECK(how->error() == std::errc::broken_pipe);
    });
  }
}
