#include "each_backend.hpp"
#include "sockets.hpp"

#include "../task/death.hpp"
#include "../task/foreign.hpp"

#include <coax/task/within.hpp>

#include <chrono>
#include <coroutine>
#include <exception>
#include <utility>
#include <vector>

// Operations awaited from a coroutine type that knows nothing of coax.

using namespace std::chrono_literals;

namespace {

// Each operation has a name: g++ 12 would await a copy of what stands in the expression.
foreign reads(int fd, std::size_t& got) {
  std::array<std::byte, 16> some;
  coax::operations::read operation = coax::read(fd, some);
  auto n = co_await operation;
  got = n ? *n : 0;
}
foreign polls(int fd, short& seen) {
  coax::operations::poll operation = coax::poll(fd, POLLIN);
  auto events = co_await operation;
  seen = events ? *events : short{-1};
}
foreign sleeps(coax::timeout d) {
  auto sleep = coax::sleep_for(d);
  co_await sleep;
}
foreign accepts(int fd, coax::unique_fd& into) {
  coax::operations::accept operation = coax::accept(fd);
  auto accepted = co_await operation;
  if (accepted) into = std::move(*accepted);
}
foreign reads_in_time(int fd, std::error_code& why) {
  std::array<std::byte, 16> some;
  auto limited = coax::within(1ms, coax::read(fd, some));
  auto n = co_await limited;
  why = n.error();
}

}  // namespace

TEST_CASE("a foreign coroutine awaits operations that are ready, or that wait") {
  on_each_backend([]() -> coax::task<> {
    for (const bool waits : {false, true}) {
      const fd_pair a = pipe_to_us();
      const fd_pair b = unix_pair();
      const loopback_listener listener;
      coax::unique_fd client;
      const auto make_ready = [&] {
        put(a.theirs, "hello");
        put(b.theirs, "x");
        client = listener.client();
      };
      if (!waits) make_ready();
      std::size_t got = 0;
      short seen = 0;
      coax::unique_fd accepted;
      const foreign one = reads(a.ours.get(), got);
      const foreign two = polls(b.ours.get(), seen);
      const foreign three = accepts(listener.fd.get(), accepted);
      co_await turns(10);
      CHECK(one.is_done() == !waits);
      CHECK(two.is_done() == !waits);
      CHECK(three.is_done() == !waits);
      if (waits) make_ready();
      co_await turns(10);
      CHECK(one.is_done());
      CHECK(two.is_done());
      CHECK(three.is_done());
      CHECK(got == 5);
      CHECK(seen == POLLIN);
      CHECK(accepted);
    }
  });
}

TEST_CASE("a foreign coroutine sleeps, and waits under within") {
  on_each_backend([]() -> coax::task<> {
    const fd_pair pipe = pipe_to_us();
    std::error_code why;
    const foreign one = sleeps(1ms);
    const foreign two = reads_in_time(pipe.ours.get(), why);
    CHECK_FALSE(one.is_done());
    co_await coax::sleep_for(2ms);
    co_await turns(10);
    CHECK(one.is_done());
    CHECK(two.is_done());
    CHECK(why == std::errc::timed_out);
  });
}

TEST_CASE(
    "destroying a foreign coroutine while its operation is in the kernel aborts with a message") {
  for (const coax::backend b : backends_here()) {
    const ending child = ending_of([b] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> coax::task<> {
        const fd_pair pipe = pipe_to_us();
        std::size_t got = 0;
        {
          const foreign gone = reads(pipe.ours.get(), got);
        }
        co_return;
      });
    });
    CHECK(child.aborted_saying("was destroyed while it waited"));
  }
}

TEST_CASE("a run that ends while a foreign coroutine waits in the kernel aborts with a message") {
  for (const coax::backend b : backends_here()) {
    const ending child = ending_of([b] {
      const fd_pair pipe = pipe_to_us();
      std::size_t got = 0;
      std::vector<foreign> left;
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, [&]() -> coax::task<> {
        left.push_back(reads(pipe.ours.get(), got));
        co_return;
      });
    });
    CHECK(child.aborted_saying("in no scope"));
  }
}

TEST_CASE("a run that ends while a foreign coroutine sleeps aborts with a message") {
  for (const coax::backend b : backends_here()) {
    const ending child = ending_of([b] {
      std::vector<foreign> left;
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, [&]() -> coax::task<> {
        left.push_back(sleeps(1h));
        co_return;
      });
    });
    CHECK(child.aborted_saying("in no scope still waited for a timer"));
  }
}
