#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/io/connection_end.hpp>
#include <coax/io/statistics.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <chrono>

// A borrowed descriptor may be closed, and its number come back, without a word to the reactor.

using namespace std::chrono_literals;

namespace {

/// Makes `fd` stand for what `with` is.
void put_in_place_of(int fd, coax::unique_fd with) {
  REQUIRE(::dup3(with.get(), fd, O_CLOEXEC) == fd);
}

coax::task<> read_hello(int fd) {
  std::array<std::byte, 16> buffer;
  auto n = co_await coax::read(fd, buffer);
  REQUIRE(n);
  CHECK(text_of(std::span(buffer).first(*n)) == "hello");
}

/// Waits for a read that must wait first, then gets "hello".
coax::task<> wait_for_hello(int fd, const coax::unique_fd& peer) {
  bool ended = false;
  auto body = [&](coax::scope& s) -> coax::task<> {
    s.spawn([&]() -> coax::task<> {
      co_await read_hello(fd);
      ended = true;
    });
    co_await turns();
    CHECK_FALSE(ended);
    put(peer, "hello");
  };
  co_await coax::with_scope(body);
  CHECK(ended);
}

}  // namespace

TEST_CASE("a number that was closed and has come back is waited on anew") {
  on_each_backend([]() -> coax::task<> {
    fd_pair first = pipe_to_us();
    const int number = first.ours.get();
    co_await wait_for_hello(number, first.theirs);
    for (int i = 0; i < 3; ++i) {
      fd_pair second = i == 1 ? unix_pair() : pipe_to_us();
      put_in_place_of(number, std::move(second.ours));
      co_await wait_for_hello(number, second.theirs);
    }
  });
}

TEST_CASE("a number that has come back is waited on anew while a copy of the old one is open") {
  on_each_backend([]() -> coax::task<> {
    fd_pair first = pipe_to_us();
    const int number = first.ours.get();
    co_await wait_for_hello(number, first.theirs);
    const coax::unique_fd copy(::dup(number));  // keeps the old file's registration alive
    fd_pair second = pipe_to_us();
    put_in_place_of(number, std::move(second.ours));
    put(first.theirs, "for the old one");
    co_await wait_for_hello(number, second.theirs);
    CHECK(drain(copy.get()) == "for the old one");
  });
}

TEST_CASE("an error of the old file is not told again at the end of the new one") {
  on_each_backend([]() -> coax::task<> {
    fd_pair first = tcp_pair();
    const int number = first.ours.get();
    coax::detail::reset_on_close(here(), first.theirs.get());
    first.theirs.reset();
    std::array<std::byte, 16> buffer;
    auto n = co_await coax::read(number, buffer);
    CHECK(n.error() == std::errc::connection_reset);
    fd_pair second = pipe_to_us();
    put_in_place_of(number, std::move(second.ours));
    second.theirs.reset();
    n = co_await coax::read(number, buffer);
    CHECK(n.error() == coax::errc::end_of_stream);
  });
}

TEST_CASE("events of the old file do not end a wait on the new one") {
  on_each_backend([]() -> coax::task<> {
    fd_pair first = pipe_to_us();
    const int number = first.ours.get();
    const coax::unique_fd copy(::dup(number));
    // A wait that is given up leaves its registration behind.
    auto late = co_await coax::within(0ns, coax::poll(number, POLLIN));
    CHECK(late.error() == std::errc::timed_out);
    fd_pair second = pipe_to_us();
    put_in_place_of(number, std::move(second.ours));
    bool ended = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        co_await read_hello(number);
        ended = true;
      });
      co_await turns();
      put(first.theirs, "x");
      co_await turns();
      CHECK_FALSE(ended);
      put(second.theirs, "hello");
    };
    co_await coax::with_scope(body);
    CHECK(ended);
  });
}

TEST_CASE("a reader and a writer of one borrowed descriptor are each woken") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const bool reader_first : {true, false}) {
      fd_pair p = unix_pair();
      const std::size_t filled = fill(p.ours.get());
      int reads = 0;
      int writes = 0;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          co_await read_hello(p.ours.get());
          ++reads;
        });
        s.spawn([&]() -> coax::task<> {
          auto n = co_await coax::write(p.ours.get(), "all");
          REQUIRE(n);
          ++writes;
        });
        co_await turns();
        if (reader_first) put(p.theirs, "hello");
        if (!reader_first) CHECK(drain(p.theirs.get()).size() == filled);
        co_await turns();
        CHECK(reads == (reader_first ? 1 : 0));
        CHECK(writes == (reader_first ? 0 : 1));
        if (!reader_first) put(p.theirs, "hello");
        if (reader_first) CHECK(drain(p.theirs.get()).size() == filled);
      };
      co_await coax::with_scope(body);
      CHECK(reads == 1);
      CHECK(writes == 1);
      CHECK(drain(p.theirs.get()) == "all");
    }
  });
}

TEST_CASE("cancelling the reader of a borrowed descriptor leaves its writer waiting") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    const std::size_t filled = fill(p.ours.get());
    bool written = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto n = co_await coax::write(p.ours.get(), "all");
        REQUIRE(n);
        written = true;
      });
      co_await turns();
      auto late = co_await coax::within(0ns, coax::poll(p.ours.get(), POLLIN));
      CHECK(late.error() == std::errc::timed_out);
      co_await turns();
      CHECK_FALSE(written);
      CHECK(drain(p.theirs.get()).size() == filled);
    };
    co_await coax::with_scope(body);
    CHECK(written);
  });
}

TEST_CASE("a descriptor that was borrowed can be taken over") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const bool event_came : {true, false}) {
      fd_pair p = tcp_pair();
      const int number = p.ours.get();
      if (event_came)
        co_await wait_for_hello(number, p.theirs);
      else
        static_cast<void>(co_await coax::within(0ns, coax::poll(number, POLLIN)));
      const taken_over socket(std::move(p.ours), true);
      bool ended = false;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          std::array<std::byte, 16> buffer;
          auto n = co_await receive(socket.get(), buffer);
          REQUIRE(n);
          CHECK(*n == 5);
          ended = true;
        });
        co_await turns();
        CHECK_FALSE(ended);
        put(p.theirs, "hello");
        co_await turns(20);
        CHECK(ended);
        s.cancel();
      };
      co_await coax::with_scope(body);
    }
  });
}

TEST_CASE("a listener that was polled can be accepted from as a shared one") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    const loopback_listener listener;
    set_nonblocking(listener.fd.get());
    bool ended = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto events = co_await coax::poll(listener.fd.get(), POLLIN);
        CHECK(events);
      });
      co_await turns();
      const coax::unique_fd first = listener.client();
      co_await turns(10);
      CHECK(listener.take());
      s.spawn([&]() -> coax::task<> {
        auto accepted =
            co_await coax::operations::accept(listener.fd.get(), coax::watching::shared);
        CHECK(accepted);
        ended = true;
      });
      co_await turns();
      CHECK_FALSE(ended);
      const coax::unique_fd client = listener.client();
      co_await turns(20);
      CHECK(ended);
      s.cancel();
    };
    co_await coax::with_scope(body);
    // And polled again after that.
    auto late = co_await coax::within(0ns, coax::poll(listener.fd.get(), POLLIN));
    CHECK(late.error() == std::errc::timed_out);
  });
}

TEST_CASE("what is taken over can be polled too, while its one reader waits for nothing") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = tcp_pair();
    const taken_over socket(std::move(p.ours), true);
    std::array<std::byte, 2> buffer;
    put(p.theirs, "hello");
    auto got = co_await receive(socket.get(), buffer);
    REQUIRE(got);
    auto events =
        co_await coax::poll(socket.get(), POLLIN);  // three bytes are left, and no edge will say so
    REQUIRE(events);
    CHECK(*events == POLLIN);
    CHECK(drain(socket.get()) == "llo");
    auto late = co_await coax::within(0ns, coax::poll(socket.get(), POLLIN));
    CHECK(late.error() == std::errc::timed_out);
    put(p.theirs, "!");
    got = co_await receive(socket.get(), buffer);
    REQUIRE(got);
    CHECK(*got == 1);
  });
}

TEST_CASE("a stream's writer may start while a borrowed wait for reading goes on") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    short seen = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto events = co_await coax::poll(p.ours.get(), POLLIN);
        REQUIRE(events);
        seen = *events;
      });
      co_await turns();
      auto sent = co_await send_all(p.ours.get(), "hello");  // takes the descriptor over
      CHECK(sent);
      put(p.theirs, "x");
      co_await turns(20);
      CHECK(seen == POLLIN);
      s.cancel();
    };
    co_await coax::with_scope(body);
    coax::reactor::current().close(p.ours.release());
  });
}

TEST_CASE(
    "a wait whose descriptor was closed, and came back as a stream's, ends with operation_canceled") {
  on_each_backend([]() -> coax::task<> {
    fd_pair first = pipe_to_us();
    const int number = first.ours.get();
    std::error_code why;
    bool received = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto events = co_await coax::poll(number, POLLIN);
        why = events.error();
      });
      co_await turns();
      fd_pair second = unix_pair();
      first.ours.release();
      put_in_place_of(number, std::move(second.ours));
      const taken_over socket{coax::unique_fd(number)};
      std::array<std::byte, 16> buffer;
      s.spawn([&]() -> coax::task<> {
        auto n = co_await receive(socket.get(), buffer);
        REQUIRE(n);
        received = *n == 5;
      });
      co_await turns();
      CHECK(why == std::errc::operation_canceled);
      CHECK_FALSE(received);
      put(second.theirs, "hello");
      co_await turns(20);
      CHECK(received);
      s.cancel();
    };
    co_await coax::with_scope(body);
  });
}

TEST_CASE("to wait for a stream as for a borrowed descriptor takes few turns") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const bool polls : {false, true}) {
      fd_pair p = tcp_pair();
      const taken_over socket(std::move(p.ours), true);
      std::array<std::byte, 2> buffer;
      const auto calls = [] { return coax::statistics(coax::reactor::current()).system_calls; };
      const auto before = calls();
      if (polls) {
        auto late = co_await coax::within(20ms, coax::poll(socket.get(), POLLIN));
        CHECK(late.error() == std::errc::timed_out);
      } else {
        auto late = co_await coax::within(20ms, coax::read(socket.get(), buffer));
        CHECK(late.error() == std::errc::timed_out);
      }
      CHECK(calls() - before < 40);
      put(p.theirs, "x");
      auto got = co_await coax::read(socket.get(), buffer);
      CHECK(got.value() == 1);
    }
  });
}
