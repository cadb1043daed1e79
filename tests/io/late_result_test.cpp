#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <vector>

// The kernel is faster than the cancellation: what it gave is delivered, or was not taken at all.

namespace {

/// When the cancellation comes: in the turn that starts the operation, or so many turns later.
constexpr std::array<int, 3> delays{1, 2, 5};

/// Leaves 0 to be the next descriptor, as in a program that was started without a stdin.
class without_stdin {
 public:
  without_stdin() : kept_(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)) { ::close(STDIN_FILENO); }
  without_stdin(const without_stdin&) = delete;
  without_stdin& operator=(const without_stdin&) = delete;
  ~without_stdin() {
    if (kept_) ::dup2(kept_.get(), STDIN_FILENO);
  }

 private:
  coax::unique_fd kept_;
};

}  // namespace

TEST_CASE(
    "a connection that comes together with the cancellation is delivered, or stays in the backlog") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 30; ++round) {
      const int delay = delays[static_cast<std::size_t>(round) % delays.size()];
      const bool cancels_first = round % 2 == 0;
      const loopback_listener listener;
      coax::unique_fd accepted;
      const auto accepts = [&]() -> coax::task<> {
        auto fd = co_await coax::accept(listener.fd.get());
        if (fd) accepted = std::move(*fd);
      };
      cancellable root(accepts());
      co_await turns(delay);
      if (cancels_first) root.cancel();
      const coax::unique_fd client = listener.client();
      root.cancel();
      co_await end_of(root);
      set_nonblocking(listener.fd.get());
      if (!accepted) accepted = listener.take();
      REQUIRE(accepted);
      put(client, "x");
      CHECK(drain(accepted.get()) == "x");
      CHECK_FALSE(listener.take());
    }
  });
}

TEST_CASE(
    "a connection that was accepted when its listener is closed is delivered, as descriptor 0 too") {
  on_each_backend([]() -> coax::task<> {
    for (const bool as_zero : {false, true}) {
      loopback_listener listener;
      const coax::unique_fd client = listener.client();
      std::optional<without_stdin> nothing_is_open_as_0;
      if (as_zero) nothing_is_open_as_0.emplace();
      coax::unique_fd accepted;
      const auto accepts = [&]() -> coax::task<> {
        auto fd = co_await coax::accept(listener.fd.get());
        if (fd) accepted = std::move(*fd);
      };
      cancellable root(accepts());
      co_await turns(1);  // it has asked, and the kernel may not have heard it
      coax::reactor::current().close(listener.fd.release(), coax::reactor::reach::here);
      co_await end_of(root);
      REQUIRE(accepted);
      CHECK((accepted.get() == 0) == as_zero);
      put(client, "x");
      CHECK(drain(accepted.get()) == "x");
    }
  });
}

TEST_CASE("a byte that comes together with the cancellation is delivered, or stays where it was") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 60; ++round) {
      const int delay = delays[static_cast<std::size_t>(round) % delays.size()];
      const bool borrowed = round % 2 == 0;
      const bool cancels_first = round % 4 < 2;
      fd_pair p = borrowed ? pipe_to_us() : unix_pair();
      std::optional<taken_over> socket;
      const int fd = p.ours.get();
      if (!borrowed) socket.emplace(std::move(p.ours));
      std::string got;
      const auto reads = [&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        if (borrowed) {
          auto n = co_await coax::read(fd, some);
          got = text_of(std::span(some).first(n.value()));
        } else {
          auto n = co_await receive(fd, some);
          got = text_of(std::span(some).first(n.value()));
        }
      };
      cancellable root(reads());
      co_await turns(delay);
      if (cancels_first) root.cancel();
      put(p.theirs, "x");
      root.cancel();
      co_await end_of(root);
      CHECK(got + drain(fd) == "x");
    }
  });
}

TEST_CASE("a byte that comes in the turn in which another task cancels, or closes, is not lost") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 8; ++round) {
      const bool closes = round % 2 == 0;
      const bool other_first = round % 4 < 2;  // in the order in which the kernel reports them
      fd_pair p = unix_pair();
      fd_pair other = unix_pair();
      taken_over socket(std::move(p.ours));
      const taken_over others(std::move(other.ours));
      const int fd = socket.get();
      std::string got;
      std::error_code failed;
      const auto reads = [&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        auto n = co_await receive(fd, some);
        if (n)
          got = text_of(std::span(some).first(*n));
        else
          failed = n.error();
      };
      cancellable root(reads());
      const auto intrudes = [&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        auto n = co_await receive(others.get(), some);
        n.value();
        if (closes)
          socket.close();
        else
          root.cancel();
      };
      cancellable intruder(intrudes());
      co_await turns(2);
      put(other_first ? other.theirs : p.theirs, "x");
      put(other_first ? p.theirs : other.theirs, "x");
      co_await end_of(root);
      co_await end_of(intruder);
      if (closes) {
        CHECK((got == "x" || failed == std::errc::operation_canceled));
        CHECK_FALSE(is_open(fd));
      } else {
        // What the kernel had reported by then, the task is told.
        if (coax::reactor::current().backend() == "epoll") CHECK(got == "x");
        CHECK(got + drain(fd) == "x");
      }
    }
  });
}

TEST_CASE(
    "bytes that the socket takes together with the cancellation are counted, or were not sent") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 30; ++round) {
      const int delay = delays[static_cast<std::size_t>(round) % delays.size()];
      fd_pair p = unix_pair();
      const taken_over socket(std::move(p.ours));
      const std::size_t filled = fill(socket.get());
      bool sent = false;
      const auto sends = [&]() -> coax::task<> {
        auto n = co_await send_all(socket.get(), "x");
        sent = n.value() == 1;
      };
      cancellable root(sends());
      co_await turns(delay);
      std::string drained = drain(p.theirs.get());
      root.cancel();
      co_await end_of(root);
      drained += drain(p.theirs.get());
      CHECK(drained.size() == filled + (sent ? 1 : 0));
    }
  });
}

TEST_CASE(
    "a connect that succeeds together with the cancellation leaves the socket to the caller") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 30; ++round) {
      const int delay = delays[static_cast<std::size_t>(round) % delays.size()];
      const loopback_listener listener;
      const coax::unique_fd client = tcp_socket(SOCK_NONBLOCK);
      bool connected = false;
      const auto connects = [&]() -> coax::task<> {
        coax::operations::connect operation(client.get(), listener.to(), sizeof(listener.address));
        auto done = co_await operation;
        connected = static_cast<bool>(done);
      };
      cancellable root(connects());
      co_await turns(delay);
      root.cancel();
      co_await end_of(root);
      if (connected) {
        const coax::unique_fd accepted = listener.take();
        put(client, "x");
        CHECK(drain(accepted.get()) == "x");
      }
      CHECK(is_open(client.get()));
    }
  });
}

TEST_CASE("a connect that the other side does not answer can be cancelled") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    const loopback_listener listener(0);
    std::vector<coax::unique_fd> queued;
    const auto connects = [&]() -> coax::task<> {
      queued.push_back(tcp_socket(SOCK_NONBLOCK));
      coax::operations::connect operation(queued.back().get(), listener.to(),
                                          sizeof(listener.address));
      auto done = co_await operation;
      CHECK(done);
    };
    // The backlog takes one or two; who comes then is not answered.
    for (int i = 0; i < 5; ++i) {
      cancellable root(connects());
      for (int turn = 0; turn < 50 && !root.has_ended(); ++turn) co_await coax::yield();
      const bool waited = !root.has_ended();
      root.cancel();
      co_await end_of(root);
      if (waited) co_return;
    }
    FAIL("no connect had to wait");
  });
}

TEST_CASE("an accepted connection that nobody takes is closed") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    const loopback_listener listener;
    const coax::unique_fd client = listener.client();
    {
      coax::operations::accept operation = coax::accept(listener.fd.get());
      static_cast<void>(co_await operation);  // gives the connection to a result that is dropped
    }
    std::array<char, 1> some;
    CHECK(here().recv(client.get(), some.data(), some.size(), 0) == 0);
  });
}

TEST_CASE("what came while a task kept its turn beats a limit that ran out in it") {
  on_each_backend([]() -> coax::task<> {
    constexpr std::size_t many = 100;  // more than are looked at in a row
    std::vector<fd_pair> pairs;
    for (std::size_t i = 0; i < many; ++i) pairs.push_back(unix_pair());
    std::size_t got = 0;
    const auto reads = [&](int fd) -> coax::task<> {
      std::array<std::byte, 1> one;
      auto n = co_await coax::within(std::chrono::microseconds(1), coax::read(fd, one));
      if (n) ++got;
      CHECK(n.error() != std::errc::timed_out);
    };
    auto body = [&](coax::scope& s) -> coax::task<> {
      for (const fd_pair& each : pairs) s.spawn(reads, each.ours.get());
      co_await coax::yield();  // they begin
      co_await coax::yield();  // their limits count
      for (const fd_pair& each : pairs) put(each.theirs, "x");
      const coax::clock::time_point begin = coax::now();
      while (coax::now() - begin < std::chrono::milliseconds(1)) continue;
      co_return;
    };
    co_await coax::with_scope(body);
    CHECK(got == many);
  });
}

TEST_CASE("what came beats a limit that ran out, however many that it only brings on came before") {
  on_each_backend([]() -> coax::task<> {
    constexpr std::size_t many = 300;  // more than the kernel tells of at a time
    std::vector<coax::unique_fd> theirs;
    std::deque<taken_over> ours;
    for (std::size_t i = 0; i <= many; ++i) {
      fd_pair p = unix_pair();
      theirs.push_back(std::move(p.theirs));
      ours.emplace_back(std::move(p.ours));
    }
    const auto reads_two = [](int fd) -> coax::task<> {
      std::array<std::byte, 2> two;
      auto n = co_await receive_full(fd, two);
      CHECK(n);
    };
    const auto reads_in_time = [](int fd) -> coax::task<> {
      std::array<std::byte, 1> one;
      auto n = co_await coax::within(std::chrono::microseconds(1), receive(fd, one));
      CHECK(n);
    };
    auto body = [&](coax::scope& s) -> coax::task<> {
      for (std::size_t i = 0; i < many; ++i) s.spawn(reads_two, ours[i].get());
      s.spawn(reads_in_time, ours[many].get());
      co_await coax::yield();  // they begin
      co_await coax::yield();  // the limit counts
      for (const coax::unique_fd& each : theirs) put(each, "x");
      const coax::clock::time_point begin = coax::now();
      while (coax::now() - begin < std::chrono::milliseconds(1)) continue;
      co_await coax::yield();
      for (const coax::unique_fd& each : theirs) put(each, "x");
    };
    co_await coax::with_scope(body);
  });
}
