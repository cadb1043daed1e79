#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <chrono>
#include <functional>
#include <string>

// What is refused: at the call that was given it, at once, and at the cost of nothing else.

namespace {

/// Every operation on `fd` fails with `error`, without a wait.
coax::task<> all_fail_with(int fd, std::errc error) {
  std::array<std::byte, 16> some;
  auto read = co_await coax::read(fd, some);
  CHECK(read.error() == error);
  auto written = co_await coax::write(fd, std::string_view("x"));
  CHECK(written.error() == error);
  auto accepted = co_await coax::accept(fd);
  CHECK(accepted.error() == error);
  auto polled = co_await coax::poll(fd, POLLIN);
  CHECK(polled.error() == error);
  auto received = co_await receive(fd, some);
  CHECK(received.error() == error);
  auto sent = co_await send_all(fd, "x");
  CHECK(sent.error() == error);
  const sockaddr_in nowhere{};
  coax::operations::connect connecting(fd, reinterpret_cast<const sockaddr*>(&nowhere),
                                       sizeof(nowhere));
  auto connected = co_await connecting;
  CHECK(connected.error() == error);
}

}  // namespace

TEST_CASE("a descriptor that is not open is bad_file_descriptor at once") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    co_await all_fail_with(-1, std::errc::bad_file_descriptor);
    co_await all_fail_with(1'000'000'000, std::errc::bad_file_descriptor);
    fd_pair p = unix_pair();
    const int closed = p.ours.get();
    auto sent = co_await coax::write(closed, std::string_view("x"));  // it is known to the reactor
    CHECK(sent);
    p.ours.reset();
    co_await all_fail_with(closed, std::errc::bad_file_descriptor);
    fd_pair taken = unix_pair();
    const int number = taken.ours.get();
    taken_over(std::move(taken.ours)).close();
    co_await all_fail_with(number, std::errc::bad_file_descriptor);
  });
}

TEST_CASE("an empty buffer gives 0 at once, even where nothing is ready") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    fill(p.ours.get());
    auto read = co_await coax::read(p.ours.get(), std::span<std::byte>());
    CHECK(read.value() == 0);
    auto written = co_await coax::write(p.ours.get(), std::span<const std::byte>());
    CHECK(written.value() == 0);
    for (const auto enough :
         {coax::operations::recv::until::some, coax::operations::recv::until::full}) {
      coax::operations::recv receiving(p.ours.get(), std::span<std::byte>(), enough);
      auto received = co_await receiving;
      CHECK(received.value() == 0);
    }
    auto sent = co_await send_all(p.ours.get(), "");
    CHECK(sent.value() == 0);
    sent = co_await send_some(p.ours.get(), "");
    CHECK(sent.value() == 0);
    coax::reactor::current().close(p.ours.release());
  });
}

TEST_CASE("receiving and sending on what is no socket is not_a_socket") {
  on_each_backend([]() -> coax::task<> {
    fd_pair p = pipe_to_us();
    std::array<std::byte, 16> some;
    auto received = co_await receive(p.ours.get(), some);
    CHECK(received.error() == std::errc::not_a_socket);
    auto sent = co_await send_all(p.theirs.get(), "x");
    CHECK(sent.error() == std::errc::not_a_socket);
    coax::reactor::current().close(p.ours.release());
    coax::reactor::current().close(p.theirs.release());
  });
}

TEST_CASE("a socket that listens is neither read nor written, and nobody waits for that") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    coax::detail::ignore_sigpipe();  // as `run` does
    const loopback_listener listener;
    std::array<std::byte, 16> some;
    auto read = co_await coax::read(listener.fd.get(), some);
    CHECK(read.error() == std::errc::not_connected);
    auto written = co_await coax::write(listener.fd.get(), std::string_view("x"));
    CHECK(written.error() == std::errc::broken_pipe);
  });
}

TEST_CASE("accepting from what does not listen fails as accept(2) does") {
  on_each_backend([]() -> coax::task<> {
    const coax::unique_fd datagrams(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    auto of_datagrams = co_await coax::accept(datagrams.get());
    CHECK(of_datagrams.error() == std::errc::operation_not_supported);
    const coax::unique_fd idle(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto of_idle = co_await coax::accept(idle.get());
    CHECK(of_idle.error() == std::errc::invalid_argument);
    fd_pair pipe = pipe_to_us();
    auto of_pipe = co_await coax::accept(pipe.ours.get());
    CHECK(of_pipe.error() == std::errc::not_a_socket);
  });
}

TEST_CASE("a second reader is device_or_resource_busy at once, and the first gets its data") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    bool got = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        auto n = co_await coax::read(p.ours.get(), some);
        got = n.value() == 5;
      });
      co_await turns();
      std::array<std::byte, 16> other;
      for (int i = 0; i < 3; ++i) {
        auto second = co_await coax::read(p.ours.get(), other);
        CHECK(second.error() == std::errc::device_or_resource_busy);
        auto polled = co_await coax::poll(p.ours.get(), POLLIN);
        CHECK(polled.error() == std::errc::device_or_resource_busy);
        auto accepted = co_await coax::accept(p.ours.get());
        CHECK(accepted.error() == std::errc::device_or_resource_busy);
      }
      auto written = co_await coax::write(p.ours.get(), std::string_view("a writer is no reader"));
      CHECK(written);
      CHECK_FALSE(got);
      put(p.theirs, "hello");
    };
    co_await coax::with_scope(body);
    CHECK(got);
  });
}

TEST_CASE("a second writer is device_or_resource_busy at once, and the first goes on") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    const std::size_t filled = fill(socket.get());
    bool sent = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto n = co_await send_all(socket.get(), "first");
        sent = n.value() == 5;
      });
      co_await turns();
      auto second = co_await send_all(socket.get(), "second");
      CHECK(second.error() == std::errc::device_or_resource_busy);
      auto polled = co_await coax::poll(socket.get(), POLLOUT);
      CHECK(polled.error() == std::errc::device_or_resource_busy);
      CHECK_FALSE(sent);
      CHECK(drain(p.theirs.get()).size() == filled);
    };
    co_await coax::with_scope(body);
    CHECK(sent);
    CHECK(drain(p.theirs.get()) == "first");
  });
}

TEST_CASE("a refused second waiter leaves the place to the next one") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = pipe_to_us();
    std::string log;
    const auto waits = [&](char name) -> coax::task<> {
      std::array<std::byte, 1> some;
      auto n = co_await coax::read(p.ours.get(), some);
      log += n ? name : '-';
    };
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn(std::ref(waits), 'a');
      co_await turns();
      s.spawn(std::ref(waits), 'b');
      co_await turns();
      CHECK(log == "-");
      put(p.theirs, "1");
      co_await turns(6);
      CHECK(log == "-a");
      s.spawn(std::ref(waits), 'c');
      co_await turns();
      put(p.theirs, "2");
    };
    co_await coax::with_scope(body);
    CHECK(log == "-ac");
  });
}

TEST_CASE("connect reports a refused connection") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    loopback_listener listener;
    const auto connects = [&](int fd) -> coax::task<std::error_code> {
      coax::operations::connect connecting(fd, listener.to(), sizeof(listener.address));
      auto connected = co_await connecting;
      co_return connected.error();
    };
    const coax::unique_fd one = tcp_socket(SOCK_NONBLOCK);
    const coax::unique_fd two = tcp_socket(SOCK_NONBLOCK);
    auto first = co_await connects(one.get());
    CHECK_FALSE(first);
    listener.fd.reset();
    auto refused = co_await connects(two.get());
    CHECK(refused == std::errc::connection_refused);
  });
}

TEST_CASE("a loop that reads or writes nothing lets others run, and ends when its time is up") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    const auto asks_for_nothing = [&](int way) -> coax::task<> {
      while (true) {
        coax::result<std::size_t> n = std::size_t{1};
        if (way == 0) n = co_await receive(socket.get(), {});
        if (way == 1) n = co_await send_all(socket.get(), "");
        if (way == 2) n = co_await coax::read(p.theirs.get(), {});
        if (way == 3) n = co_await coax::write(p.theirs.get(), "");
        if (way == 4) n = co_await coax::read(-1, {});
        CHECK(n.value() == 0);
      }
    };
    for (int way = 0; way < 5; ++way) {
      auto ended = co_await coax::within(std::chrono::seconds(0), asks_for_nothing(way));
      CHECK(ended.error() == std::errc::timed_out);
    }
  });
}
