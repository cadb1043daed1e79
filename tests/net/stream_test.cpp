#include <coax/net/stream.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using coax::errc;
using coax::stream;
using coax::task;

/// A kernel that takes one byte at a time, and gives at most three.
class dribbling : public coax::syscalls {
 public:
  int send(int fd, const void* from, std::size_t, int flags) noexcept override {
    ++sends;
    return syscalls::send(fd, from, 1, flags);
  }
  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    return syscalls::recv(fd, into, std::min(size, 1 + static_cast<std::size_t>(recvs++ % 3)),
                          flags);
  }
  int sends = 0;
  int recvs = 0;
};

task<> write_all(stream& to, std::span<const std::byte> bytes) {
  auto sent = co_await to.write(bytes);
  CHECK(sent);
  if (sent) CHECK(*sent == bytes.size());
}

/// Reads as many bytes as are expected, in pieces of all sizes up to `piece_max`.
task<> read_in_pieces(stream& from, std::span<const std::byte> expected, std::size_t piece_max) {
  std::vector<std::byte> got(expected.size());
  std::size_t piece = 1;
  for (std::size_t have = 0; have < got.size();) {
    piece = piece * 7 % piece_max + 1;
    auto n = co_await from.read(std::span(got).subspan(have, std::min(piece, got.size() - have)));
    REQUIRE(n);
    REQUIRE(*n > 0);
    have += *n;
  }
  CHECK(std::equal(got.begin(), got.end(), expected.begin()));
}

task<> exchange(stream& near, stream& far, std::size_t size, std::size_t piece_max) {
  const std::vector<std::byte> out = pattern(size, 1);
  const std::vector<std::byte> back = pattern(size, 2);
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    s.spawn(write_all, std::ref(near), std::span(out));
    s.spawn(write_all, std::ref(far), std::span(back));
    s.spawn(read_in_pieces, std::ref(far), std::span(out), piece_max);
    s.spawn(read_in_pieces, std::ref(near), std::span(back), piece_max);
    co_return;
  });
}

}  // namespace

TEST_CASE("what one end writes the other reads") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await near.write("hello");
    REQUIRE(sent);
    CHECK(*sent == 5);
    std::array<std::byte, 64> some;
    auto got = co_await far.read(some);
    REQUIRE(got);
    CHECK(text_of(std::span(some).first(*got)) == "hello");

    const std::string reply = "well, hello";
    auto back = co_await far.write_some(std::as_bytes(std::span(reply)));
    REQUIRE(back);
    CHECK(*back == reply.size());
    auto all = co_await near.read_exactly(std::span(some).first(reply.size()));
    REQUIRE(all);
    CHECK(*all == reply.size());
    CHECK(text_of(std::span(some).first(*all)) == reply);
  });
}

TEST_CASE("text is written from a literal, a string and a string_view") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::string text = "b";
    const std::string_view view = "c";
    auto a = co_await near.write("a");
    auto b = co_await near.write(text);
    auto c = co_await near.write_some(view);
    REQUIRE((a && b && c));
    std::array<std::byte, 3> all;
    auto got = co_await far.read_exactly(all);
    REQUIRE(got);
    CHECK(text_of(all) == "abc");
  });
}

TEST_CASE("read gives what is there, and not what fits only") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await near.write("abcdef");
    REQUIRE(sent);
    std::array<std::byte, 4> some;
    auto first = co_await far.read(some);
    REQUIRE(first);
    CHECK(*first == 4);
    auto second = co_await far.read(some);
    REQUIRE(second);
    CHECK(*second == 2);
    CHECK(text_of(std::span(some).first(2)) == "ef");
  });
}

TEST_CASE("read_exactly puts together what comes in pieces") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 6> all;
    bool full = false;
    const auto read_six = [&]() -> task<> {
      auto got = co_await far.read_exactly(all);
      full = got && *got == 6;
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(std::ref(read_six));
      for (const char* piece : {"a", "bc", "def"}) {
        co_await turns(4);
        CHECK(!full);
        auto sent = co_await near.write(piece);
        REQUIRE(sent);
      }
    });
    CHECK(full);
    CHECK(text_of(all) == "abcdef");
  });
}

TEST_CASE("an empty span is read and written at once, whatever state the stream is in") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::span<std::byte> nothing;
    for (int round = 0; round < 2; ++round) {
      auto read = co_await near.read(nothing);
      auto exactly = co_await near.read_exactly(nothing);
      auto written = co_await near.write(nothing);
      auto some = co_await near.write_some("");
      REQUIRE((read && exactly && written && some));
      CHECK((*read == 0 && *exactly == 0 && *written == 0 && *some == 0));
      {
        const stream gone = std::move(far);
      }
    }
  });
}

TEST_CASE("large writes arrive whole in both directions at once, read in small pieces") {
  on_each_pair(
      [](stream& near, stream& far) -> task<> { co_await exchange(near, far, 8u << 20, 3000); });
}

TEST_CASE("a kernel that takes one byte at a time takes everything in the end") {
  // Over a Unix socket: on TCP a read that came back short says that there is no more.
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    dribbling slow;
    const auto reactor = reactor_of(b, slow);
    run_clean(*reactor, []() -> task<> {
      stream_pair both(transport::unix_socket);
      co_await exchange(both.near, both.far, 20'000, 100);
    });
    CHECK(slow.sends >=
          16);  // on io_uring the first of a turn is a plain call; the ring does the rest
    if (b == coax::backend::epoll) CHECK(slow.sends >= 40'000);
  }
}

TEST_CASE("over TCP, too, short sends are carried on with") {
  class one_at_a_time final : public dribbling {
    int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
      return syscalls::recv(fd, into, size, flags);
    }
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    one_at_a_time slow;
    const auto reactor = reactor_of(b, slow);
    run_clean(*reactor, []() -> task<> {
      stream_pair both(transport::tcp);
      co_await exchange(both.near, both.far, 5'000, 100);
    });
  }
}

TEST_CASE("calls that are interrupted are made again") {
  class interrupted final : public coax::syscalls {
    int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
      return ++calls % 3 != 0 ? -EINTR : syscalls::recv(fd, into, size, flags);
    }
    int send(int fd, const void* from, std::size_t size, int flags) noexcept override {
      return ++calls % 3 != 0 ? -EINTR : syscalls::send(fd, from, size, flags);
    }
    int calls = 0;
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    interrupted often;
    const auto reactor = reactor_of(b, often);
    run_clean(*reactor, []() -> task<> {
      stream_pair both(transport::tcp);
      co_await exchange(both.near, both.far, 100'000, 1000);
    });
  }
}

TEST_CASE("adopt takes over a connected stream socket") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    const int number = both.near.get();
    {
      auto adopted = stream::adopt(both.near.get());
      REQUIRE(adopted);
      both.near.release();
      CHECK(adopted->native_handle() == number);
      CHECK(adopted->is_open());
    }
    CHECK(::fcntl(number, F_GETFD) == -1);  // closed with the stream
    co_return;
  });
}

TEST_CASE("adopt leaves alone what is no stream socket") {
  on_each_backend([]() -> task<> {
    const coax::unique_fd datagrams(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const coax::unique_fd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
    auto of_datagrams = stream::adopt(datagrams.get());
    CHECK(of_datagrams.error() == std::errc::invalid_argument);
    auto of_file = stream::adopt(file.get());
    CHECK(of_file.error() == std::errc::not_a_socket);
    const coax::unique_fd listening = raw_listener();
    auto of_listening = stream::adopt(listening.get());
    CHECK(of_listening.error() == std::errc::invalid_argument);
    auto of_none = stream::adopt(-1);
    CHECK(of_none.error() == std::errc::bad_file_descriptor);
    auto of_closed = stream::adopt(1'000'000);
    CHECK(of_closed.error() == std::errc::bad_file_descriptor);
    CHECK(::fcntl(datagrams.get(), F_GETFD) != -1);
    CHECK(::fcntl(file.get(), F_GETFD) != -1);
    co_return;
  });
}

TEST_CASE("a stream knows both of its addresses") {
  on_each_backend([]() -> task<> {
    stream_pair both(transport::tcp);
    auto here = both.near.local_endpoint();
    auto there = both.near.remote_endpoint();
    REQUIRE((here && there));
    CHECK(*here == both.far.remote_endpoint().value());
    CHECK(*there == both.far.local_endpoint().value());
    CHECK(here->port() != 0);
    stream_pair local(transport::unix_socket);
    auto unnamed = local.near.remote_endpoint();
    REQUIRE(unnamed);
    CHECK(unnamed->is_unix());
    co_return;
  });
}

TEST_CASE("a stream that was moved from has no connection") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    stream moved = std::move(near);
    CHECK(moved.is_open());
    CHECK(!near.is_open());
    CHECK(near.native_handle() == -1);
    std::array<std::byte, 4> some;
    auto read = co_await near.read(some);
    CHECK(read.error() == std::errc::bad_file_descriptor);
    auto written = co_await near.write("x");
    CHECK(written.error() == std::errc::bad_file_descriptor);
    CHECK(near.local_endpoint().error() == std::errc::bad_file_descriptor);
    CHECK(near.shutdown_write().error() == std::errc::bad_file_descriptor);
    auto closed = co_await near.close();
    CHECK(closed.error() == std::errc::bad_file_descriptor);
    auto sent = co_await moved.write("still here");
    CHECK(sent);
    const std::string got = co_await read_text(far);
    CHECK(got == "still here");
  });
}

TEST_CASE("assigning over a stream closes the connection it had") {
  on_each_backend([]() -> task<> {
    stream_pair one(transport::tcp);
    stream_pair other(transport::tcp);
    one.near = std::move(other.near);
    std::string nothing;
    const std::error_code why = co_await read_to_end(one.far, nothing);
    CHECK(why == errc::end_of_stream);
    auto sent = co_await one.near.write("x");
    CHECK(sent);
    const std::string got = co_await read_text(other.far);
    CHECK(got == "x");
  });
}

TEST_CASE("what a stream is asked for can be kept, moved and dropped before it is awaited") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::ptrdiff_t before = coax::detail::frames::live();
    std::array<std::byte, 8> buf{};
    {
      [[maybe_unused]] auto dropped = near.write("lost?");
      [[maybe_unused]] auto limited = coax::within(std::chrono::seconds(1), far.read(buf));
      auto kept = near.write("kept");
      auto moved = std::move(kept);
      auto sent = co_await std::move(moved);
      CHECK(sent.value() == 4);
      // The shorter limit counts, whichever it is.
      auto twice = coax::within(std::chrono::seconds(60),
                                coax::within(std::chrono::seconds(60), far.read(buf)));
      auto n = co_await std::move(twice);
      CHECK(text_of(std::span(buf).first(n.value())) == "kept");
      auto late = co_await coax::within(std::chrono::seconds(60),
                                        coax::within(std::chrono::milliseconds(1), far.read(buf)));
      CHECK(late.error() == std::errc::timed_out);
    }
    CHECK(coax::detail::frames::live() == before);
  });
}
