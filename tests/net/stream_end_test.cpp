#include <coax/net/stream.hpp>
#include <coax/task/scope.hpp>

#include "pairs.hpp"

#include <sys/socket.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// How a stream ends: the peer's end in every order with data, resets, and closing on this side.

namespace {

using coax::errc;
using coax::stream;
using coax::task;

/// What the peer does, all of it in one go: a reader sees it as one event.
class ending {
 public:
  std::string_view data;
  bool reset = false;

  ending(std::string_view d, bool r) : data(d), reset(r) {}

  void happen(coax::unique_fd peer) const {
    if (!data.empty())
      REQUIRE(::send(peer.get(), data.data(), data.size(), MSG_MORE) == std::ssize(data));
    if (reset)
      reset_connection(std::move(peer));
    else
      peer.reset();  // with what was held back by MSG_MORE: one segment
  }
};

task<> see(stream& s, std::string& bytes, std::error_code& why) {
  why = co_await read_to_end(s, bytes);
}

/// One connection, ended while a reader waits (`waits_first`) or before one comes.
task<> end_one(transport t, const ending& how, bool waits_first) {
  raw_pair both = raw_connected(t);
  stream near = adopted(std::move(both.near));
  std::string bytes;
  std::error_code why;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    if (!waits_first) how.happen(std::move(both.far));
    s.spawn(see, std::ref(near), std::ref(bytes), std::ref(why));
    if (!waits_first) co_return;
    co_await turns(2);
    how.happen(std::move(both.far));
  });
  REQUIRE(bytes == how.data);
  if (how.reset)
    REQUIRE(why == std::errc::connection_reset);
  else
    REQUIRE(why == errc::end_of_stream);
}

void end_many(transport t, const ending& how) {
  for (const bool waits_first : {false, true}) {
    INFO("reader " << (waits_first ? "waits" : "comes later"));
    on_each_backend([&]() -> task<> {
      for (int i = 0; i < 200; ++i) co_await end_one(t, how, waits_first);
    });
  }
}

}  // namespace

TEST_CASE("data and the end in one segment are both seen") {
  end_many(transport::tcp, ending("the last words", false));
}

TEST_CASE("data and the end are both seen over a Unix socket") {
  end_many(transport::unix_socket, ending("the last words", false));
}

TEST_CASE("the end without data is seen") { end_many(transport::tcp, ending("", false)); }

TEST_CASE("a reset is seen, after the data that came before it") {
  end_many(transport::tcp, ending("", true));
  for (const bool waits_first : {false, true})
    on_each_backend([&]() -> task<> {
      // MSG_MORE would let the reset overtake the data
      for (int i = 0; i < 200; ++i) {
        raw_pair both = raw_connected(transport::tcp);
        stream near = adopted(std::move(both.near));
        std::string bytes;
        std::error_code why;
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          if (waits_first) {
            s.spawn(see, std::ref(near), std::ref(bytes), std::ref(why));
            co_await turns(2);
          }
          REQUIRE(::send(both.far.get(), "x", 1, 0) == 1);
          reset_connection(std::move(both.far));
          if (!waits_first) s.spawn(see, std::ref(near), std::ref(bytes), std::ref(why));
        });
        CHECK(bytes == "x");
        CHECK(why == std::errc::connection_reset);
      }
    });
}

TEST_CASE("the end that comes while data is still unread does not hide it") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    for (int round = 0; round < 3; ++round) {
      auto sent = co_await far.write("abc");
      REQUIRE(sent);
      std::array<std::byte, 1> one;
      auto first = co_await near.read(one);
      REQUIRE(first);
    }
    auto ended = far.shutdown_write();
    REQUIRE(ended);
    std::string rest;
    const std::error_code why = co_await read_to_end(near, rest);
    CHECK(rest == "abcabc");
    CHECK(why == errc::end_of_stream);
  });
}

TEST_CASE("after the peer has ended its side, this side still writes") {
  on_each_backend([]() -> task<> {
    for (const transport t : {transport::tcp, transport::unix_socket}) {
      for (int i = 0; i < 200; ++i) {
        stream_pair both(t);
        auto asked = co_await both.near.write("question");
        REQUIRE(asked);
        auto ended = both.near.shutdown_write();
        REQUIRE(ended);
        std::string question;
        const std::error_code why = co_await read_to_end(both.far, question);
        CHECK(question == "question");
        CHECK(why == errc::end_of_stream);
        auto answered = co_await both.far.write("answer");
        REQUIRE(answered);
        const std::string answer = co_await read_text(both.near);
        CHECK(answer == "answer");
        auto too_late = co_await both.near.write("more");
        CHECK(too_late.error() == std::errc::broken_pipe);
      }
    }
  });
}

TEST_CASE("the end stays the end") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto ended = far.shutdown_write();
    REQUIRE(ended);
    std::array<std::byte, 8> some;
    for (int i = 0; i < 3; ++i) {
      auto got = co_await near.read(some);
      CHECK(got.error() == errc::end_of_stream);
    }
  });
}

TEST_CASE("when a write has heard of a reset, a read does not take it for the end") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    stream near = adopted(std::move(both.near));
    reset_connection(std::move(both.far));
    auto sent = co_await near.write("is anybody there?");
    CHECK(sent.error() == std::errc::connection_reset);
    std::array<std::byte, 16> buf;
    for (int i = 0; i < 2; ++i) {
      auto got = co_await near.read(buf);
      CHECK(got.error() == std::errc::connection_reset);
      auto lease = co_await near.receive();
      CHECK(lease.error() == std::errc::connection_reset);
    }
    auto nothing = co_await near.read({});
    CHECK(nothing);
  });
}

TEST_CASE("read_exactly fails with end_of_stream when the stream ends before it is full") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await far.write("abc");
    REQUIRE(sent);
    auto ended = far.shutdown_write();
    REQUIRE(ended);
    std::array<std::byte, 8> some;
    auto got = co_await near.read_exactly(some);
    CHECK(got.error() == errc::end_of_stream);
  });
}

TEST_CASE("a write to a closed peer fails and raises no signal") {
  const auto before = std::signal(SIGPIPE, SIG_DFL);  // which would end this process
  on_each_pair([](stream& near, stream& far) -> task<> {
    {
      const stream closed = std::move(far);
    }
    std::error_code why;
    // Over TCP the first write is what tells the peer that nobody listens here.
    for (int i = 0; i < 1000 && !why; ++i) {
      auto sent = co_await near.write("anybody there?");
      why = sent.error();
    }
    CHECK((why == std::errc::broken_pipe || why == std::errc::connection_reset));
    auto again = co_await near.write_some("still nobody?");
    CHECK(again.error() == std::errc::broken_pipe);
  });
  std::signal(SIGPIPE, before);
}

TEST_CASE("a peer that resets ends a write that waits for room") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    stream near = adopted(std::move(both.near));
    const std::vector<std::byte> much = pattern(8u << 20, 1);
    std::error_code why;
    const auto write_much = [&]() -> task<> {
      auto sent = co_await near.write(much);
      why = sent.error();
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(std::ref(write_much));
      co_await turns(3);
      CHECK(!why);
      reset_connection(std::move(both.far));
    });
    CHECK((why == std::errc::broken_pipe || why == std::errc::connection_reset));
    auto more = co_await near.write("more");
    CHECK(more.error() == errc::transfer_cut);
  });
}
