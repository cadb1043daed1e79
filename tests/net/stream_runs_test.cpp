#include <coax/io/statistics.hpp>
#include <coax/net/stream.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include "../task/death.hpp"
#include "pairs.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

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

TEST_CASE("what is kept of a stream is kept by its number") {
  using coax::detail::undelivered;
  constexpr int first = 1'000'000;  // not open
  for (int i = 0; i < 5'000; ++i)
    undelivered::keep(first + i, {.lost = static_cast<std::uint8_t>(1 + i % 100)});
  CHECK(undelivered::take(first - 1'024).lost == 0);
  for (int i = 0; i < 5'000; ++i) {
    const int there = i * 7 % 5'000;
    if (undelivered::take(first + there).lost != 1 + there % 100) FAIL("of another one");
    if (undelivered::take(first + there).lost != 0) FAIL("twice");
  }
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

TEST_CASE(
    "a stream that ends on another thread ends its connection, and its number serves a listener") {
  on_each_backend([]() -> task<> {
    auto from = coax::listener::bind("127.0.0.1:0");
    REQUIRE(from);
    auto client = co_await coax::connect(from->local_endpoint().value());
    auto conn = co_await from->accept();
    REQUIRE((client && conn));
    auto sent = co_await client->write("x");
    {
      const auto lease = co_await conn->receive();  // on io_uring the kernel goes on to receive
      REQUIRE((sent && lease));
    }
    std::array<std::byte, 4> nothing;
    auto silent = co_await coax::within(0ms, conn->read(nothing));  // and epoll has the descriptor
    CHECK(silent.error() == std::errc::timed_out);
    const int number = conn->native_handle();
    std::thread([own = std::move(*conn)] {}).join();
    auto end = co_await client->read(nothing);
    CHECK(end.error() == coax::errc::end_of_stream);

    auto next = coax::listener::bind("127.0.0.1:0");
    REQUIRE(next);
    CHECK(next->native_handle() == number);
    const coax::endpoint at = next->local_endpoint().value();
    auto late = co_await coax::within(0ms, next->accept());
    CHECK_FALSE(late);
    const auto both = co_await coax::when_all(next->accept(), coax::connect(at));
    CHECK(std::get<0>(both).error() == std::error_code());
    CHECK(std::get<1>(both).error() == std::error_code());
  });
}

TEST_CASE(
    "what a run knew of a stream that ended on another thread is not kept for the next of its number") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    std::optional<stream> later;
    coax::unique_fd peer;
    run_once(b, [&]() -> task<> {
      raw_pair both = raw_connected(transport::unix_socket);
      stream ours = adopted(std::move(both.near));
      REQUIRE(::send(both.far.get(), "half", 4, MSG_NOSIGNAL) == 4);
      std::array<std::byte, 100> much;
      auto cut = co_await coax::within(1ms, ours.read_exactly(much));
      CHECK(cut.error() == std::errc::timed_out);
      const auto replace = [&]() -> task<> {
        const int number = ours.native_handle();
        static_cast<void>(stream(std::move(ours)));
        raw_pair next = raw_connected(transport::unix_socket);
        if (next.far.get() == number) std::swap(next.near, next.far);
        REQUIRE(next.near.get() == number);
        later.emplace(adopted(std::move(next.near)));
        peer = std::move(next.far);
        co_return;
      };
      std::thread([&] { run_once(b, replace); }).join();
    });
    run_once(b, [&]() -> task<> {
      REQUIRE(::send(peer.get(), "whole", 5, MSG_NOSIGNAL) == 5);
      const std::string got = co_await read_text(*later);
      CHECK(got == "whole");
      later.reset();
    });
  }
}

TEST_CASE("nothing is kept of a stream that has ended on another thread") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    int number = -1;
    run_once(b, [&]() -> task<> {
      raw_pair both = raw_connected(transport::unix_socket);
      stream ours = adopted(std::move(both.near));
      number = ours.native_handle();
      REQUIRE(::send(both.far.get(), "half", 4, MSG_NOSIGNAL) == 4);
      std::array<std::byte, 100> much;
      auto cut = co_await coax::within(1ms, ours.read_exactly(much));
      CHECK(cut.error() == std::errc::timed_out);
      std::thread([&] { static_cast<void>(stream(std::move(ours))); }).join();
    });
    CHECK(!coax::detail::undelivered::take(number).read_cut);
  }
}

TEST_CASE("what came ahead in one run may be taken by threads of the next") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    std::vector<stream> streams;
    std::vector<coax::unique_fd> peers;
    run_once(b, [&]() -> task<> {
      for (int i = 0; i < 64; ++i) {
        raw_pair both = raw_connected(transport::unix_socket);
        streams.push_back(adopted(std::move(both.near)));
        peers.push_back(std::move(both.far));
        REQUIRE(::send(peers.back().get(), "x", 1, 0) == 1);
        const auto lease = co_await streams.back().receive();
        REQUIRE(lease);
        REQUIRE(::send(peers.back().get(), "hello", 5, 0) == 5);
      }
      co_await turns(3);
    });
    std::mutex mutex;
    std::atomic<int> received = 0;
    const auto takes = [&]() -> task<> {
      while (true) {
        std::optional<stream> next;
        {
          const std::lock_guard lock(mutex);
          if (streams.empty()) break;
          next.emplace(std::move(streams.back()));
          streams.pop_back();
        }
        const auto lease = co_await next->receive();
        if (lease && lease->bytes().size() == 5) ++received;
      }
    };
    std::thread other([&] { run_once(b, takes); });
    run_once(b, takes);
    other.join();
    CHECK(received == 64);
  }
}

TEST_CASE("a child of a fork that ends leaves the connections of its parent alone") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    static std::optional<stream> kept;
    kept.emplace(adopted(std::move(both.near)));
    std::array<std::byte, 4> bytes;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto got = co_await kept->read(bytes);
        REQUIRE(got);
        CHECK(*got == 1);
      });
      co_await turns(3);
      const pid_t child = ::fork();
      if (child == 0) {
        kept.reset();
        ::_exit(0);
      }
      int how = -1;
      REQUIRE(::waitpid(child, &how, 0) == child);
      CHECK(how == 0);
      REQUIRE(::send(both.far.get(), "x", 1, 0) == 1);
    });
    kept.reset();
  });
}

#ifndef NDEBUG
TEST_CASE(
    "in a debug build, a stream that is used on another thread than its reactor's ends the program") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child = ending_of([b] {
      run_once(b, [b]() -> task<> {
        raw_pair both = raw_connected(transport::tcp);
        stream ours = adopted(std::move(both.near));
        // Here and now, as on another thread: ThreadSanitizer lets no child of a fork start one.
        run_once(b, [&]() -> task<> { static_cast<void>(co_await ours.write("x")); });
        co_return;
      });
    });
    CHECK(child.aborted_saying("a stream was read or written on another thread"));
  }
}
#endif

TEST_CASE(
    "a stream may go to another reactor's thread once its run has ended, or its number when it was closed") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const auto elsewhere = [b](auto body) { std::thread([&] { run_once(b, body); }).join(); };
    std::optional<stream> ours;
    raw_pair both = raw_connected(transport::tcp);
    const auto reactor = reactor_of(b);  // lives on
    coax::detail::run_on(*reactor, [&]() -> task<> {
      ours.emplace(adopted(std::move(both.near)));
      auto sent = co_await ours->write("x");
      CHECK(sent);
    });
    elsewhere([&]() -> task<> {
      auto sent = co_await ours->write("x");
      CHECK(sent);
    });
    coax::detail::run_on(*reactor, [&]() -> task<> {
      const int number = ours->native_handle();
      ours.reset();
      raw_pair next = raw_connected(transport::tcp);
      REQUIRE(::dup2(next.near.get(), number) == number);
      elsewhere([number]() -> task<> {
        stream later = adopted(coax::unique_fd(number));
        auto sent = co_await later.write("x");
        CHECK(sent);
      });
      co_return;
    });
  }
}

TEST_CASE("what comes for a process that a connection was left to does not wake this one") {
  on_each_backend([]() -> task<> {
    raw_pair both = raw_connected(transport::tcp);
    std::optional<stream> near(adopted(std::move(both.near)));
    REQUIRE(::send(both.far.get(), "x", 1, 0) == 1);
    std::array<std::byte, 4> some;
    auto got = co_await near->read(some);
    REQUIRE(got);
    auto waited = co_await coax::within(0ms, near->read(some));  // epoll watches it
    REQUIRE_FALSE(waited);
    for (const int fd : {near->native_handle(), both.far.get()}) ::fcntl(fd, F_SETFL, 0);
    const pid_t child = ::fork();
    if (child == 0) {
      both.far.reset();
      for (char c = 0; ::recv(near->native_handle(), &c, 1, 0) == 1;)
        if (::send(near->native_handle(), &c, 1, MSG_NOSIGNAL) != 1) break;
      ::_exit(0);
    }
    near.reset();
    std::atomic<bool> done = false;
    std::thread client([&] {
      char c = 0;
      for (int i = 0; i < 500; ++i)
        if (::send(both.far.get(), &c, 1, MSG_NOSIGNAL) != 1 ||
            ::recv(both.far.get(), &c, 1, 0) != 1)
          break;
      both.far.reset();
      done = true;
    });
    const auto turns_made = [] { return coax::statistics(coax::reactor::current()).turns; };
    const auto before = turns_made();
    std::uint64_t waits = 0;
    for (; !done; ++waits) co_await coax::sleep_for(1ms);
    CHECK(turns_made() - before < 3 * waits + 50);
    client.join();
    int how = -1;
    REQUIRE(::waitpid(child, &how, 0) == child);
    CHECK(how == 0);
  });
}

TEST_CASE("a writer that waited when its stream ended on another thread writes to nobody else") {
  const std::string much(std::size_t{4} << 20, 'S');
  on_each_backend([&]() -> task<> {
    raw_pair both = raw_connected(transport::unix_socket);
    const int number = both.near.get();
    stream ours = adopted(std::move(both.near));
    std::error_code how;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto sent = co_await ours.write(much);
        how = sent.error();
      });
      co_await turns(10);
      std::thread([gone = std::move(ours)] {}).join();
      raw_pair next = raw_connected(transport::unix_socket);
      REQUIRE((next.near.get() == number || next.far.get() == number));
      if (next.far.get() == number) std::swap(next.near, next.far);
      stream later = adopted(std::move(next.near));
      co_await turns(10);
      std::array<char, 4> some;
      CHECK(::recv(next.far.get(), some.data(), some.size(), MSG_DONTWAIT) == -1);
      auto sent = co_await later.write("x");
      CHECK(sent);
      CHECK(::recv(next.far.get(), some.data(), some.size(), MSG_DONTWAIT) == 1);
    });
    CHECK(how);
  });
}
