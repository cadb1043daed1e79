#include "../sim/conformance.hpp"
#include "sockets.hpp"

#include <coax/io/buffer_pool.hpp>
#include <coax/io/operations/receive.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// Receiving into the reactor's buffers where something is short or wrong: the ring, its completions, the buffers, the
// descriptor.

using namespace std::chrono_literals;

namespace {

coax::operations::receive lease_of(int fd) { return coax::operations::receive(fd); }

/// Counts how often the ring is entered.
class counting final : public coax::syscalls {
 public:
  int entered = 0;
  int received = 0;

  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    ++received;
    return syscalls::recv(fd, into, size, flags);
  }
#if !defined(COAX_WITHOUT_URING)
  int ring_submit(io_uring& ring) noexcept override {
    ++entered;
    return syscalls::ring_submit(ring);
  }
  int ring_submit_and_wait(io_uring& ring) noexcept override {
    ++entered;
    return syscalls::ring_submit_and_wait(ring);
  }
#endif
};

/// 1,000 connections, each of which is sent several messages, some before and some while somebody receives.
coax::task<> thousand_receives() {
  constexpr std::size_t count = 250;
  constexpr int messages = 4;
  std::vector<fd_pair> pairs;
  for (std::size_t i = 0; i < count; ++i) pairs.push_back(unix_pair());
  std::vector<std::unique_ptr<taken_over>> ours;
  for (fd_pair& p : pairs) ours.push_back(std::make_unique<taken_over>(std::move(p.ours)));
  std::vector<std::string> seen(count);
  auto body = [&](coax::scope& s) -> coax::task<> {
    auto receive_all = [&](std::size_t i) -> coax::task<> {
      while (seen[i].size() < messages) {
        auto lease = co_await lease_of(ours[i]->get());
        REQUIRE(lease);
        seen[i] += text_of(lease->bytes());
      }
    };
    for (std::size_t i = 0; i < count; i += 2) put(pairs[i].theirs, "a");
    for (std::size_t i = 0; i < count; ++i) s.spawn(receive_all, i);
    co_await turns(2);
    for (std::size_t i = 1; i < count; i += 2) put(pairs[i].theirs, "a");
    for (const char* text : {"b", "c", "d"}) {
      co_await turns(2);
      for (const fd_pair& p : pairs) put(p.theirs, text);
    }
  };
  co_await coax::with_scope(body);
  CHECK(std::all_of(seen.begin(), seen.end(), [](const std::string& t) { return t == "abcd"; }));
}

/// Receives of which half are sent something, cancelled at several moments.
coax::task<> cancelled_receives() {
  for (const int after : {0, 1, 2, 3, 10}) {
    std::vector<fd_pair> pairs;
    for (int i = 0; i < 100; ++i) pairs.push_back(unix_pair());
    std::vector<std::unique_ptr<taken_over>> ours;
    for (fd_pair& p : pairs) ours.push_back(std::make_unique<taken_over>(std::move(p.ours)));
    std::vector<std::string> seen(pairs.size());
    auto body = [&](coax::scope& s) -> coax::task<> {
      auto receive_one = [&](std::size_t i) -> coax::task<> {
        auto lease = co_await lease_of(ours[i]->get());
        REQUIRE(lease);
        seen[i] += text_of(lease->bytes());
      };
      for (std::size_t i = 0; i < pairs.size(); ++i) s.spawn(receive_one, i);
      co_await turns(after);
      for (std::size_t i = 0; i < pairs.size(); i += 2) put(pairs[i].theirs, "x");
      co_await turns(1);
      s.cancel();
    };
    co_await coax::with_scope(body);
    for (std::size_t i = 0; i < pairs.size(); i += 2) {
      if (!seen[i].empty()) continue;
      auto lease = co_await coax::within(10s, lease_of(ours[i]->get()));
      REQUIRE(lease);
      CHECK(text_of(lease->bytes()) == "x");
    }
  }
}

}  // namespace

TEST_CASE("a ring of few entries and completions serves 1,000 receives") {
  for (const coax::backend b : backends_here())
    for (const unsigned entries : {1U, 2U, 8U}) {
      INFO("on " << name_of(b) << ", " << entries << " entries");
      const auto reactor = reactor_of(b, coax::syscalls::kernel(), entries);
      run_clean(*reactor, thousand_receives);
    }
  on_simulation(thousand_receives);
}

TEST_CASE("receives that are cancelled in a ring of one entry leave nothing behind") {
  for (const coax::backend b : backends_here()) {
    const auto reactor = reactor_of(b, coax::syscalls::kernel(), 1);
    run_clean(*reactor, cancelled_receives);
  }
  on_simulation(cancelled_receives);
}

TEST_CASE("an idle receiver holds no buffer") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    std::vector<fd_pair> pairs;
    for (int i = 0; i < 200; ++i) pairs.push_back(unix_pair());
    std::vector<std::unique_ptr<taken_over>> ours;
    for (fd_pair& p : pairs) ours.push_back(std::make_unique<taken_over>(std::move(p.ours)));
    auto body = [&](coax::scope& s) -> coax::task<> {
      auto receive_one = [&](std::size_t i) -> coax::task<> {
        while (auto lease = co_await lease_of(ours[i]->get())) co_await coax::yield();
      };
      for (std::size_t i = 0; i < pairs.size(); ++i) {
        s.spawn(receive_one, i);
        put(pairs[i].theirs, "x");
        co_await turns(5);  // one at a time: few buffers are enough
      }
      CHECK(coax::reactor::current().buffers_in_use() <= 32);
      s.cancel();
    };
    co_await coax::with_scope(body);
  });
}

TEST_CASE("reads give back the buffers whose bytes they have taken") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over ours(std::move(p.ours));
    put(p.theirs, "x");
    {
      auto lease = co_await lease_of(ours.get());  // on io_uring it receives ahead from now on
      REQUIRE(lease);
    }
    co_await turns();
    const std::size_t before = coax::reactor::current().buffers_in_use();
    for (int i = 0; i < 100; ++i) {
      put(p.theirs, "xy");
      co_await turns();
      for (const std::string_view expected : {"x", "y"}) {
        std::array<std::byte, 1> byte;
        auto got = co_await receive(ours.get(), byte);
        REQUIRE(got);
        CHECK(text_of(byte) == expected);
      }
    }
    co_await turns();
    CHECK(coax::reactor::current().buffers_in_use() == before);
  });
}

TEST_CASE("receiving from what cannot be received from fails, as often as it is tried") {
  on_each_backend([]() -> coax::task<> {
    const loopback_listener listener;
    fd_pair pipe = pipe_to_us();
    const taken_over not_connected(coax::unique_fd(::dup(listener.fd.get())));
    const taken_over not_a_socket(std::move(pipe.ours));
    for (int i = 0; i < 3; ++i) {
      auto closed = co_await lease_of(100'000);
      CHECK(closed.error() == std::errc::bad_file_descriptor);
      auto pipes = co_await coax::within(10s, lease_of(not_a_socket.get()));
      CHECK(pipes.error() == std::errc::not_a_socket);
      auto listening = co_await coax::within(10s, lease_of(not_connected.get()));
      CHECK(listening.error() == std::errc::not_connected);
    }
  });
}

TEST_CASE("with no buffer left for anybody, a receiver waits without spinning") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    counting calls;
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, [&]() -> coax::task<> {
      // All there are, and those that are in a ring.
      fd_pair first = unix_pair();
      const taken_over socket(std::move(first.ours));
      std::vector<coax::leased_buffer> hoard;
      for (std::uint32_t i = 0; i < 2 * coax::detail::buffer_pool::count_max; ++i) {
        put(first.theirs, "x");
        auto lease = co_await coax::within(10s, lease_of(socket.get()));
        REQUIRE(lease);
        hoard.push_back(std::move(*lease));
      }
      auto body = [&](coax::scope& s) -> coax::task<> {
        std::string got;
        s.spawn([&]() -> coax::task<> {
          auto lease = co_await lease_of(socket.get());
          REQUIRE(lease);
          got = text_of(lease->bytes());
        });
        co_await turns(3);
        const int before = calls.entered + calls.received;
        for (int i = 0; i < 20; ++i) co_await coax::sleep_for(1ms);
        CHECK(calls.entered + calls.received - before < 60);
        CHECK(got.empty());
        put(first.theirs, "y");
        while (got.empty()) co_await coax::yield();
        CHECK(got == "y");
      };
      co_await coax::with_scope(body);
    });
  }
}

TEST_CASE("a number that was closed and opened again behind a receive is not mixed up") {
  on_each_backend([]() -> coax::task<> {
    fd_pair first = unix_pair();
    fd_pair second = unix_pair();
    const int number = first.ours.get();
    coax::reactor::current().own(number, false);
    put(first.theirs, "x");
    auto lease = co_await lease_of(number);
    REQUIRE(lease);
    put(first.theirs, "of the first");
    co_await turns(3);
    // Not through coax: nobody told the reactor.
    REQUIRE(::dup3(second.ours.get(), number, O_CLOEXEC) == number);
    coax::reactor::current().own(number, false);
    // A multishot receive still holds the old socket; on epoll it is gone.
    static_cast<void>(!::send(first.theirs.get(), "of the first", 12, MSG_NOSIGNAL));
    put(second.theirs, "of the second");
    auto next = co_await coax::within(10s, lease_of(number));
    REQUIRE(next);
    CHECK(text_of(next->bytes()) == "of the second");
    coax::reactor::current().close(first.ours.release());
    co_await turns(3);
  });
}

TEST_CASE(
    "what was received before its number was closed and opened again behind a receive is dropped") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    // A ring of one entry is entered, and gives what has come, in the middle of a turn.
    const auto reactor = reactor_of(b, coax::syscalls::kernel(), 1);
    run_clean(*reactor, []() -> coax::task<> {
      fd_pair first = unix_pair();
      fd_pair second = unix_pair();
      const fd_pair others[] = {pipe_to_us(), pipe_to_us()};
      const int number = first.ours.get();
      coax::reactor::current().own(number, false);
      put(first.theirs, "x");
      auto lease = co_await lease_of(number);
      REQUIRE(lease);
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          put(first.theirs, "of the first");
          co_return;
        });
        for (const fd_pair& other : others)
          s.spawn(
              [](const fd_pair& p) -> coax::task<> {
                std::array<std::byte, 1> byte;
                auto got = co_await coax::read(p.ours.get(), byte);
                CHECK(got);
              },
              std::cref(other));
        s.spawn([&]() -> coax::task<> {
          // Not through coax: nobody told the reactor.
          REQUIRE(::dup3(second.ours.get(), number, O_CLOEXEC) == number);
          coax::reactor::current().own(number, false);
          for (const fd_pair& other : others) put(other.theirs, "x");
          co_return;
        });
        co_return;
      };
      co_await coax::with_scope(body);
      put(second.theirs, "of the second");
      auto next = co_await coax::within(10s, lease_of(number));
      REQUIRE(next);
      CHECK(text_of(next->bytes()) == "of the second");
      coax::reactor::current().close(first.ours.release());
      co_await turns(3);
    });
  }
}
