#include <coax/net/stream.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

// Closing a stream on this side: at once, and after the peer has got everything.

namespace {

using namespace std::chrono_literals;
using coax::errc;
using coax::stream;
using coax::task;

using outcome = std::optional<coax::result<std::size_t>>;

task<> read_some(stream& from, std::span<std::byte> into, outcome& how) {
  auto got = co_await from.read(into);
  how.emplace(got);
}
task<> write_all(stream& to, std::span<const std::byte> bytes, outcome& how) {
  auto sent = co_await to.write(bytes);
  how.emplace(sent);
}

task<> close_and_tell(stream& s, std::error_code& how) {
  auto closed = co_await s.close();
  how = closed.error();
}

}  // namespace

TEST_CASE("closing a stream that another task reads tells the reader and the peer") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 8> bytes;
    outcome how;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(how));
      co_await turns(2);
      {
        const stream closed = std::move(near);
      }
      std::string nothing;
      const std::error_code why = co_await read_to_end(far, nothing);
      CHECK(why == errc::end_of_stream);
    });
    REQUIRE(how);
    CHECK(how->error() == std::errc::operation_canceled);
  });
}

TEST_CASE(
    "a TCP stream that is destroyed with bytes unread resets the connection, whoever has them") {
  for (const int waited : {0, 1, 5}) {
    INFO("after " << waited << " turns");
    on_each_tcp_pair([waited](stream& near, stream& far) -> task<> {
      {
        stream closed = std::move(near);
        auto sent = co_await far.write("one");
        auto one = co_await coax::within(patience, closed.receive());
        REQUIRE(one);
        sent = co_await far.write("two");  // which an io_uring reactor takes ahead
        REQUIRE(sent);
        co_await turns(waited);
      }
      std::string nothing;
      const std::error_code why = co_await read_to_end(far, nothing);
      CHECK(nothing.empty());
      if (why == errc::end_of_stream) {  // they were on their way: the reset follows the end
        co_await turns(20);
        auto late = co_await far.write("x");
        CHECK(late.error() == std::errc::broken_pipe);
      } else {
        CHECK(why == std::errc::connection_reset);
      }
    });
  }
}

TEST_CASE("a stream that is destroyed tells its peer at once, before anything else runs") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    {
      stream near = adopted(std::move(both.near));
      REQUIRE(::send(both.far.get(), "one", 3, MSG_NOSIGNAL) == 3);
      auto one = co_await coax::within(patience, near.receive());
      REQUIRE(one);
    }
    char nothing = 0;
    CHECK(::recv(both.far.get(), &nothing, 1, MSG_DONTWAIT) == 0);
  });
}

TEST_CASE("so does one that another task reads or writes") {
  on_each_backend([]() -> task<> {
    for (const bool writes : {false, true}) {
      raw_pair both = raw_connected(transport::tcp);
      std::optional<stream> near(adopted(std::move(both.near)));
      std::array<std::byte, 8> bytes;
      const std::vector<std::byte> large(8'000'000);
      outcome how;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        if (writes)
          s.spawn(write_all, std::ref(*near), std::span<const std::byte>(large), std::ref(how));
        else
          s.spawn(read_some, std::ref(*near), std::span(bytes), std::ref(how));
        co_await turns(5);
        near.reset();
        ssize_t got = 1;
        std::array<char, 65536> dropped;
        while (got > 0) got = ::recv(both.far.get(), dropped.data(), dropped.size(), MSG_DONTWAIT);
        CHECK(got == 0);
      });
      REQUIRE(how);
      CHECK(how->error() == std::errc::operation_canceled);
    }
  });
}

TEST_CASE("a TCP stream that outlives its run with bytes unread resets the connection") {
  for (const coax::backend on : backends_here()) {
    INFO("on " << name_of(on));
    raw_pair both = raw_connected(transport::tcp);
    {
      std::optional<stream> near;
      const auto one = reactor_of(on);
      coax::detail::run_on(*one, [&]() -> task<> {
        near.emplace(adopted(std::move(both.near)));
        REQUIRE(::send(both.far.get(), "one", 3, MSG_NOSIGNAL) == 3);
        auto first = co_await coax::within(patience, near->receive());
        REQUIRE(first);
        REQUIRE(::send(both.far.get(), "two", 3, MSG_NOSIGNAL) == 3);
        co_await turns(5);
      });
    }
    char nothing = 0;
    CHECK(::recv(both.far.get(), &nothing, 1, 0) < 0);
    CHECK(errno == ECONNRESET);
  }
}

TEST_CASE("closing a stream that others read and write tells both") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::vector<std::byte> much = pattern(16u << 20, 3);
    std::array<std::byte, 8> bytes;
    outcome reader;
    outcome writer;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(reader));
      s.spawn(write_all, std::ref(near), std::span(much), std::ref(writer));
      co_await turns(2);
      {
        const stream closed = std::move(near);
      }
      std::string some;
      co_await read_to_end(far, some);
      CHECK(some.size() < much.size());
    });
    REQUIRE((reader && writer));
    CHECK(reader->error() == std::errc::operation_canceled);
    CHECK(writer->error() == std::errc::operation_canceled);
  });
}

TEST_CASE("a stream is closed by the task that a read has just woken") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 8> bytes;
    outcome how;
    std::optional<stream> closing(std::move(near));
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(*closing), std::span(bytes), std::ref(how));
      co_await turns(2);
      auto sent = co_await far.write("abc");  // has arrived when the reader is told
      CHECK(sent);
      closing.reset();
    });
    REQUIRE(how);
    if (!*how) CHECK(how->error() == std::errc::operation_canceled);
  });
}

TEST_CASE("the next owner of a descriptor's number keeps its data from the last one's reader") {
  for (int given = 0; given < 4; ++given) {
    INFO("the reader had " << given << " turns");
    on_each_backend([&]() -> task<> {
      for (int i = 0; i < 50; ++i) {
        const transport t = i % 2 == 0 ? transport::tcp : transport::unix_socket;
        std::optional<stream_pair> old(t);
        std::array<std::byte, 64> stolen{};
        outcome how;
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(read_some, std::ref(old->near), std::span(stolen), std::ref(how));
          co_await turns(given);
          const stream far = std::move(old->far);
          old.reset();
          // The number is free for whoever comes now, or is not: both is right.
          stream_pair next(t);
          auto sent = co_await next.far.write("secret");
          CHECK(sent);
          auto also = co_await next.near.write("secret");
          CHECK(also);
          const std::string one = co_await read_text(next.near);
          CHECK(one == "secret");
          const std::string other = co_await read_text(next.far);
          CHECK(other == "secret");
        });
        REQUIRE(how);
        CHECK(!*how);
        // Closed before it had begun, it finds no connection.
        CHECK((how->error() == std::errc::operation_canceled ||
               (given == 0 && how->error() == std::errc::bad_file_descriptor)));
        CHECK(stolen[0] == std::byte{});
      }
    });
  }
}

TEST_CASE("a descriptor keeps its number until the last operation on it has ended") {
  on_each_backend([]() -> task<> {
    std::optional<stream_pair> old(transport::tcp);
    const int number = old->near.native_handle();
    std::array<std::byte, 8> bytes;
    outcome how;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(old->near), std::span(bytes), std::ref(how));
      co_await turns(2);
      {
        const stream closed = std::move(old->near);
      }
      const bool still_reading =
          coax::reactor::current().in_flight() > 1;  // the reactor's own wake-up is one
      const coax::unique_fd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (still_reading) CHECK(next.get() != number);
      while (!how) co_await coax::yield();
    });
    CHECK(how->error() == std::errc::operation_canceled);
  });
}

TEST_CASE("close delivers a large reply although much of the request was never read") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::vector<std::byte> request = pattern(100'000, 1);
    const std::vector<std::byte> reply = pattern(4u << 20, 2);
    outcome asked;
    outcome answered;
    std::error_code closed = errc::bad_port;  // anything but success
    const auto serve = [&]() -> task<> {
      std::array<std::byte, 100> beginning;
      auto some = co_await far.read_exactly(beginning);
      CHECK(some);
      co_await write_all(far, reply, answered);
      co_await close_and_tell(far, closed);
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(std::ref(serve));
      co_await write_all(near, request, asked);
      std::vector<std::byte> got(reply.size());
      auto all = co_await near.read_exactly(got);
      CHECK(all);
      CHECK((got == reply));  // in one piece: megabytes are not to be printed
      std::string more;
      const std::error_code why = co_await read_to_end(near, more);
      CHECK(why == errc::end_of_stream);
      CHECK(more.empty());
      {
        const stream done = std::move(near);
      }
    });
    CHECK(!closed);
    CHECK(!far.is_open());
  });
}

TEST_CASE("close drops what the peer still sends, and ends with the peer") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::error_code closed = errc::bad_port;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(close_and_tell, std::ref(near), std::ref(closed));
      std::string nothing;
      const std::error_code why = co_await read_to_end(far, nothing);
      CHECK(why == errc::end_of_stream);
      CHECK(closed == errc::bad_port);  // not yet: the peer has not ended
      for (int i = 0; i < 20; ++i) {
        auto sent = co_await far.write("too late, but no error yet");
        CHECK(sent);
        co_await turns(2);
      }
      {
        const stream done = std::move(far);
      }
    });
    CHECK(!closed);
  });
}

TEST_CASE("close gives up on a peer that does not stop sending") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::vector<std::byte> flood = pattern(stream::linger_bytes_max * 20, 1);
    std::error_code closed;
    outcome flooded;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(close_and_tell, std::ref(near), std::ref(closed));
      co_await write_all(far, flood, flooded);
    });
    CHECK(closed == std::errc::connection_aborted);
    REQUIRE(flooded);
    CHECK((flooded->error() == std::errc::broken_pipe ||
           flooded->error() == std::errc::connection_reset));
  });
}

TEST_CASE("close gives up on a peer that never ends") {
  on_each_backend([]() -> task<> {
    stream_pair both(transport::tcp);
    std::error_code closed;
    const auto begin = coax::now();
    co_await close_and_tell(both.near, closed);
    CHECK(closed == std::errc::timed_out);
    CHECK(coax::now() - begin >= stream::linger_limit);
    std::string nothing;
    const std::error_code why = co_await read_to_end(both.far, nothing);
    CHECK(why == errc::end_of_stream);
  });
}

TEST_CASE("a peer that reset is no reason to linger") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    stream near = adopted(std::move(both.near));
    reset_connection(std::move(both.far));
    auto closed = co_await near.close();
    CHECK(closed.error() == std::errc::not_connected);
    CHECK(!near.is_open());
  });
}

TEST_CASE("close that is not awaited, or is cancelled, closes at once") {
  on_each_kernel_pair([](stream& near, stream& far) -> task<> {
    stream_pair other(transport::tcp);
    {
      const task<coax::result<void>> never_awaited = near.close();
      CHECK(!near.is_open());
    }
    std::string nothing;
    const std::error_code why = co_await read_to_end(far, nothing);
    CHECK(why == errc::end_of_stream);

    std::error_code untouched = errc::bad_port;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(close_and_tell, std::ref(other.near), std::ref(untouched));
      co_await turns(3);
      const bool by_itself = co_await s.join_within(0ms);
      CHECK(!by_itself);
    });
    CHECK(untouched == errc::bad_port);
    auto sent = co_await other.far.write("x");
    co_await turns(2);
    auto again = co_await other.far.write("x");
    CHECK((!sent || !again));  // the first is answered by a reset
  });
}

TEST_CASE("close while another task reads ends both") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 8> bytes;
    outcome how;
    std::error_code closed;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(how));
      co_await turns(2);
      s.spawn(close_and_tell, std::ref(near), std::ref(closed));
      std::string nothing;
      const std::error_code why = co_await read_to_end(far, nothing);
      CHECK(why == errc::end_of_stream);
      const stream gone = std::move(far);
    });
    CHECK(!closed);
    CHECK(how->error() == std::errc::operation_canceled);
  });
}

TEST_CASE("close while another task writes ends that before it ends the stream") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::vector<std::byte> more_than_fits(64 * 1024 * 1024);
    outcome how;
    std::error_code closed;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(write_all, std::ref(near), std::span(more_than_fits), std::ref(how));
      co_await turns(2);
      s.spawn(close_and_tell, std::ref(near), std::ref(closed));
      std::string some;
      const std::error_code why = co_await read_to_end(far, some);
      CHECK(why == errc::end_of_stream);
      CHECK(some.size() < more_than_fits.size());
      const stream gone = std::move(far);
    });
    REQUIRE(how);
    CHECK(how->error() == std::errc::operation_canceled);
    CHECK(!closed);
  });
}

namespace {

/// The far end sends what nobody reads, and goes on until the reply is there.
task<> see_reply(stream& far, std::size_t size) {
  std::string reply;
  while (reply.size() < size) {
    auto sent = co_await far.write("and more");
    REQUIRE(sent);
    std::array<std::byte, 16 * 1024> some;
    auto got = co_await coax::within(patience, far.read(some));
    if (!got) FAIL_CHECK(got.error().message());
    if (!got) break;
    reply.append(text_of(std::span(some).first(*got)));
  }
  const stream gone = std::move(far);
  CHECK(reply.size() == size);
}

}  // namespace

TEST_CASE("close sends the last reply after a request that was cut off") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto request = co_await far.write("too little");
    REQUIRE(request);
    std::array<std::byte, 100> much;
    auto got = co_await coax::within(1ms, near.read_exactly(much));
    CHECK(got.error() == std::errc::timed_out);
    const std::vector<std::byte> reply(64 * 1024);
    outcome sent;
    std::error_code closed;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(see_reply, std::ref(far), reply.size());
      co_await write_all(near, reply, sent);
      co_await close_and_tell(near, closed);
    });
    CHECK(!closed);
  });
}

TEST_CASE("close sends the last reply though another task reads") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    const std::vector<std::byte> reply(64 * 1024);
    outcome sent;
    std::error_code closed;
    std::error_code why;
    const auto reads = [](stream& from, std::error_code& how) -> task<> {
      std::string into;
      how = co_await read_to_end(from, into);
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(reads, std::ref(near), std::ref(why));
      s.spawn(see_reply, std::ref(far), reply.size());
      co_await write_all(near, reply, sent);
      co_await close_and_tell(near, closed);
    });
    CHECK(!closed);
    // It may have read something, and have asked again, before it heard of that.
    CHECK((why == std::errc::operation_canceled || why == std::errc::bad_file_descriptor));
  });
}

TEST_CASE("a close that is cancelled while it waits for another task's end closes at once") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::array<std::byte, 8> bytes;
    outcome how;
    std::error_code untouched = errc::bad_port;
    for (int given = 0; given < 4 && near.is_open(); ++given) {
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(read_some, std::ref(near), std::span(bytes), std::ref(how));
        co_await turns(2);
        s.spawn(close_and_tell, std::ref(near), std::ref(untouched));
        co_await turns(given);
        co_await s.join_within(0ms);
      });
    }
    std::string nothing;
    const std::error_code why = co_await read_to_end(far, nothing);
    CHECK(why == errc::end_of_stream);
    CHECK(untouched == errc::bad_port);
  });
}

TEST_CASE("a task that is cancelled closes the streams it owns") {
  on_each_backend([]() -> task<> {
    for (int given = 0; given < 4; ++given) {
      stream_pair both(transport::tcp);
      const auto own = [](stream mine) -> task<> {
        std::array<std::byte, 8> bytes;
        auto got = co_await mine.read(bytes);
        CHECK(!got);
      };
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(own, std::move(both.near));
        co_await turns(given);
        co_await s.join_within(0ms);
      });
      std::string nothing;
      const std::error_code why = co_await read_to_end(both.far, nothing);
      CHECK(why == errc::end_of_stream);
    }
  });
}

TEST_CASE("a TCP stream destroyed before its reader hears of what came resets the connection") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    std::optional<stream> near(adopted(std::move(both.near)));
    std::array<std::byte, 8> bytes;
    outcome how;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(read_some, std::ref(*near), std::span(bytes), std::ref(how));
      co_await turns(2);
      REQUIRE(::send(both.far.get(), "unread", 6, MSG_NOSIGNAL) == 6);
      near.reset();
    });
    REQUIRE(how);
    co_await turns(5);
    char nothing = 0;
    const auto got = ::recv(both.far.get(), &nothing, 1, MSG_DONTWAIT);
    const int why = errno;
    CHECK(got == (*how ? 0 : -1));  // on io_uring the reader may have been given it all the same
    if (got < 0) CHECK(why == ECONNRESET);
  });
}

TEST_CASE("close gives up in time on a peer that sends a little now and then, and never ends") {
  const auto dribble = [](stream& to) -> task<> {
    while (auto sent = co_await to.write("x")) co_await coax::sleep_for(100ms);
  };
  const auto body = [&](stream& near, stream& far) -> task<> {
    const auto begin = coax::now();
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(dribble, std::ref(far));
      auto closed = co_await coax::within(1h, near.close());
      CHECK(closed.error() == std::errc::timed_out);
      CHECK(coax::now() - begin == stream::linger_limit);
      s.cancel();
    });
  };
  on_simulation([&]() -> task<> { co_await with_connected_pair(body); });
}

TEST_CASE(
    "SO_LINGER without time resets the connection, whatever was read before and whoever waits") {
  enum class before {
    nothing,
    read,
    receive,
    reader_waits,
    receiver_waits,
    ends_on_another_thread
  };
  for (const before what : {before::nothing, before::read, before::receive, before::reader_waits,
                            before::receiver_waits, before::ends_on_another_thread}) {
    INFO("case " << static_cast<int>(what));
    on_each_backend([what]() -> task<> {
      raw_pair both = raw_connected(transport::tcp);
      std::optional<stream> near(adopted(std::move(both.near)));
      std::array<std::byte, 4> some;
      REQUIRE(::send(both.far.get(), "x", 1, MSG_NOSIGNAL) == 1);
      if (what == before::receive || what == before::receiver_waits ||
          what == before::ends_on_another_thread) {
        const auto lease = co_await near->receive();
        REQUIRE(lease);
      } else {
        auto got = co_await near->read(some);
        REQUIRE(got);
      }
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        if (what == before::reader_waits)
          s.spawn([&]() -> task<> { static_cast<void>(co_await near->read(some)); });
        if (what == before::receiver_waits)
          s.spawn([&]() -> task<> { static_cast<void>(co_await near->receive()); });
        co_await turns(5);
        const linger without_time{1, 0};
        REQUIRE(::setsockopt(near->native_handle(), SOL_SOCKET, SO_LINGER, &without_time,
                             sizeof(without_time)) == 0);
        if (what == before::ends_on_another_thread) std::thread([own = std::move(*near)] {}).join();
        near.reset();
      });
      co_await turns(5);
      const auto got = ::recv(both.far.get(), some.data(), 1, MSG_DONTWAIT);
      const int why = errno;
      CHECK(got == -1);
      CHECK(why == ECONNRESET);
    });
  }
}

TEST_CASE(
    "a stream that is destroyed leaves its connection to who holds a duplicate of the descriptor") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    const coax::unique_fd kept(::fcntl(both.near.get(), F_DUPFD_CLOEXEC, 0));
    {
      stream near = adopted(std::move(both.near));
      REQUIRE(::send(both.far.get(), "x", 1, MSG_NOSIGNAL) == 1);
      const auto lease = co_await near.receive();
      REQUIRE(lease);
      co_await turns(5);
    }
    co_await turns(5);
    char next = 0;
    CHECK(::send(kept.get(), "y", 1, MSG_NOSIGNAL) == 1);
    CHECK(::recv(both.far.get(), &next, 1, MSG_DONTWAIT) == 1);
    CHECK(::send(both.far.get(), "z", 1, MSG_NOSIGNAL) == 1);
    CHECK(::recv(kept.get(), &next, 1, MSG_DONTWAIT) == 1);
    CHECK(next == 'z');
  });
}
