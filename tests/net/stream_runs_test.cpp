#include <coax/net/stream.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

// A stream that outlives its run: what the next run knows of it. For what it has received, see receive_test.cpp.

namespace {

using namespace std::chrono_literals;
using coax::stream;
using coax::task;

/// One run after the other, the first on each backend and the second on each.
template <class Body>
void on_each_two_backends(Body&& body) {
  for (const coax::backend first : backends_here())
    for (const coax::backend second : backends_here()) {
      INFO("on " << name_of(first) << ", then on " << name_of(second));
      body(first, second);
    }
}

template <class Body>
void run_once(coax::backend on, Body&& body) {
  const auto reactor = reactor_of(on);
  coax::detail::run_on(*reactor, body);
}

}  // namespace

TEST_CASE("that a connection was lost, and how, a read says in the next run too") {
  on_each_two_backends([](coax::backend first, coax::backend second) {
    std::optional<stream> near;
    run_once(first, [&]() -> task<> {
      raw_pair both = raw_connected(transport::tcp);
      near.emplace(adopted(std::move(both.near)));
      reset_connection(std::move(both.far));
      auto sent = co_await near->write("is anybody there?");
      CHECK(sent.error() == std::errc::connection_reset);
    });
    run_once(second, [&]() -> task<> {
      std::array<std::byte, 8> some;
      auto got = co_await coax::within(patience, near->read(some));
      CHECK(got.error() == std::errc::connection_reset);
      near.reset();
    });
  });
}

TEST_CASE("a direction that was cut off in one run has failed in the next, and the other has not") {
  for (const bool reading : {true, false}) {
    on_each_two_backends([reading](coax::backend first, coax::backend second) {
      INFO((reading ? "the reading one" : "the writing one"));
      raw_pair both = raw_connected(transport::tcp);
      std::optional<stream> near;
      run_once(first, [&]() -> task<> {
        near.emplace(adopted(std::move(both.near)));
        if (reading) {
          REQUIRE(::send(both.far.get(), "half", 4, MSG_NOSIGNAL) == 4);
          std::array<std::byte, 100> much;
          auto cut = co_await coax::within(1ms, near->read_exactly(much));
          CHECK(cut.error() == std::errc::timed_out);
        } else {
          const std::string more_than_fits(64 * 1024 * 1024, 'x');
          auto cut = co_await coax::within(1ms, near->write(more_than_fits));
          CHECK(cut.error() == std::errc::timed_out);
        }
      });
      run_once(second, [&]() -> task<> {
        std::array<std::byte, 8> some;
        if (reading) {
          auto got = co_await coax::within(patience, near->read(some));
          CHECK(got.error() == coax::errc::transfer_cut);
          auto sent = co_await coax::within(patience, near->write("x"));
          CHECK(sent);
        } else {
          auto sent = co_await coax::within(patience, near->write("x"));
          CHECK(sent.error() == coax::errc::transfer_cut);
          REQUIRE(::send(both.far.get(), "whole", 5, MSG_NOSIGNAL) == 5);
          auto got = co_await coax::within(patience, near->read(some));
          CHECK(got);
        }
        near.reset();
      });
    });
  }
}

TEST_CASE(
    "a TCP stream that is destroyed in the next run, with bytes unread, resets the connection") {
  on_each_two_backends([](coax::backend first, coax::backend second) {
    raw_pair both = raw_connected(transport::tcp);
    std::optional<stream> near;
    run_once(first, [&]() -> task<> {
      near.emplace(adopted(std::move(both.near)));
      REQUIRE(::send(both.far.get(), "one", 3, MSG_NOSIGNAL) == 3);
      auto one = co_await coax::within(patience, near->receive());
      REQUIRE(one);
      REQUIRE(::send(both.far.get(), "two", 3, MSG_NOSIGNAL) == 3);
      co_await turns(5);
    });
    run_once(second, [&]() -> task<> {
      near.reset();
      co_return;
    });
    char nothing = 0;
    CHECK(::recv(both.far.get(), &nothing, 1, 0) < 0);
    CHECK(errno == ECONNRESET);
  });
}

TEST_CASE("what is known of a stream from its run does not reach the next one of its number") {
  on_each_two_backends([](coax::backend first, coax::backend second) {
    std::optional<stream> old;
    run_once(first, [&]() -> task<> {
      raw_pair both = raw_connected(transport::tcp);
      old.emplace(adopted(std::move(both.near)));
      REQUIRE(::send(both.far.get(), "half", 4, MSG_NOSIGNAL) == 4);
      std::array<std::byte, 100> much;
      auto cut = co_await coax::within(1ms, old->read_exactly(much));
      CHECK(cut.error() == std::errc::timed_out);
    });
    raw_pair both = raw_connected(transport::tcp);
    const int number = old->native_handle();
    REQUIRE(::dup3(both.near.get(), number, O_CLOEXEC) == number);  // somebody closed the old one
    std::optional<stream> next;
    run_once(second, [&]() -> task<> {
      next.emplace(adopted(coax::unique_fd(number)));
      co_return;
    });
    run_once(first, [&]() -> task<> {
      REQUIRE(::send(both.far.get(), "whole", 5, MSG_NOSIGNAL) == 5);
      const std::string got = co_await read_text(*next);
      CHECK(got == "whole");
      next.reset();
      old.reset();
    });
  });
}
