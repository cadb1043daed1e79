#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>

#include <array>
#include <chrono>
#include <optional>
#include <string>

// A stream is closed, and the next one gets its number.

namespace {

/// Counts how often a descriptor is tried.
class counting final : public coax::syscalls {
 public:
  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    received += fd == watched;
    return syscalls::recv(fd, into, size, flags);
  }
  int watched = -1;
  int received = 0;
};

/// Makes `p.ours` the descriptor `number`, which is free.
void give_number(fd_pair& p, int number) {
  if (p.ours.get() == number) return;
  REQUIRE(::fcntl(number, F_GETFD) == -1);
  REQUIRE(::dup3(p.ours.get(), number, O_CLOEXEC) == number);
  p.ours.reset(number);
}

}  // namespace

TEST_CASE("events of a closed stream do not reach the one that got its number") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    counting calls;
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, [&]() -> coax::task<> {
      for (const bool copy_stays : {false, true}) {
        fd_pair old = unix_pair();
        std::optional<taken_over> first(std::move(old.ours));
        const int number = first->get();
        std::array<std::byte, 16> some;
        put(old.theirs, "known");
        auto body = [&](coax::scope& s) -> coax::task<> {
          for (int i = 0; i < 2; ++i) {  // the second one waits, so the kernel knows of it
            cancellable root([](int fd) -> coax::task<> {
              std::array<std::byte, 16> into;
              static_cast<void>(co_await receive(fd, into));
            }(number));
            co_await turns();
            root.cancel();
            co_await end_of(root);
          }
          // In one turn: it becomes ready, it is closed, and its number comes back.
          const coax::unique_fd copy(copy_stays ? ::dup(number) : -1);
          put(old.theirs, "for the old one");
          first.reset();
          fd_pair fresh = unix_pair();
          give_number(fresh, number);
          const taken_over second(std::move(fresh.ours));
          calls.watched = number;
          calls.received = 0;
          std::string got;
          s.spawn([&]() -> coax::task<> {
            auto n = co_await receive(second.get(), some);
            got = n ? text_of(std::span(some).first(*n)) : n.error().message();
          });
          co_await turns(5);
          if (copy_stays) put(old.theirs, "more, now that the new one waits");
          old.theirs.reset();
          co_await turns(5);
          CHECK(got == "");
          if (b == coax::backend::epoll) CHECK(calls.received == 1);
          put(fresh.theirs, "hello");
          co_await turns(5);
          CHECK(got == "hello");
          calls.watched = -1;
          s.cancel();
        };
        co_await coax::with_scope(body);
      }
    });
  }
}

TEST_CASE("a read that is in line leaves alone the stream that has got its number meanwhile") {
  on_each_backend([]() -> coax::task<> {
    for (const bool borrowed : {true, false}) {
      // A ring has the next step of such a read already, and makes it on whatever has the number.
      if (!borrowed && coax::reactor::current().backend() != "epoll") continue;
      fd_pair old = borrowed ? pipe_to_us() : unix_pair();
      fd_pair other = unix_pair();
      const taken_over others(std::move(other.ours));
      const int number = old.ours.get();
      if (!borrowed) coax::reactor::current().own(number, false);
      std::error_code failed;
      std::size_t got = 0;
      const auto reads = [&]() -> coax::task<> {
        std::array<std::byte, 10> some;
        coax::result<std::size_t> n = 0U;
        if (borrowed)
          n = co_await coax::read(number, some);
        else
          n = co_await receive_full(number, some);
        if (n)
          got = *n;
        else
          failed = n.error();
      };
      std::optional<taken_over> second;
      fd_pair fresh = unix_pair();
      const auto replaces = [&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        auto n = co_await receive(others.get(), some);
        n.value();
        old.ours.reset();  // behind the reactor's back
        give_number(fresh, number);
        second.emplace(std::move(fresh.ours));
        put(fresh.theirs, "new");
      };
      if (!borrowed) put(old.theirs, "half");
      cancellable reader(reads());
      cancellable replacer(replaces());
      co_await turns();
      put(other.theirs, "x");  // the kernel reports this first
      put(old.theirs, "old");
      co_await end_of(replacer);
      co_await end_of(reader);
      CHECK(((borrowed && got == 3) || failed == std::errc::operation_canceled));
      std::array<std::byte, 16> some;
      auto n = co_await receive(number, some);
      REQUIRE(n);
      CHECK(text_of(std::span(some).first(*n)) == "new");
    }
  });
}

TEST_CASE("a stream that had nothing is not asked again before the kernel says that it has") {
  counting calls;
  const auto reactor = reactor_of(coax::backend::epoll, calls);
  run_clean(*reactor, [&]() -> coax::task<> {
    fd_pair p = tcp_pair();
    const taken_over socket(std::move(p.ours), true);
    calls.watched = socket.get();
    std::array<std::byte, 16> some;
    const auto receives = [&]() -> coax::task<> {
      auto n = co_await receive(socket.get(), some);
      CHECK(n.value() == 5);
    };
    for (int i = 0; i < 3; ++i) {
      cancellable root(receives());
      co_await turns();
      root.cancel();
      co_await end_of(root);
    }
    CHECK(calls.received == 1);
    put(p.theirs, "hello");
    co_await receives();
    CHECK(calls.received == 2);
    cancellable root(receives());  // the read was short, so there is nothing left
    co_await turns();
    CHECK(calls.received == 2);
    put(p.theirs, "hello");
    co_await end_of(root);
    CHECK(calls.received == 3);
  });
}

TEST_CASE(
    "closing a stream under its reader and its writer ends both with operation_canceled, and frees the number") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const bool tcp : {false, true}) {
      fd_pair p = tcp ? tcp_pair() : unix_pair();
      taken_over socket(std::move(p.ours), tcp);
      const int number = socket.get();
      const int small = 4096;
      here().setsockopt(number, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
      while (fill(number) != 0) co_await coax::sleep_for(std::chrono::milliseconds(1));
      std::error_code read;
      std::error_code written;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          std::array<std::byte, 16> some;
          auto n = co_await receive(number, some);
          read = n.error();
        });
        s.spawn([&]() -> coax::task<> {
          auto n = co_await send_all(number, "x");
          written = n.error();
        });
        co_await turns();
        socket.close();
        // The kernel may still be at work for those of a ring, which take their answers with them.
        if (!is_simulated())
          CHECK(is_open(number) == (coax::reactor::current().backend() == "io_uring"));
        auto late = co_await send_all(number, "y");
        CHECK(late.error() == std::errc::bad_file_descriptor);
      };
      co_await coax::with_scope(body);
      CHECK(read == std::errc::operation_canceled);
      CHECK(written == std::errc::operation_canceled);
      CHECK_FALSE(is_open(number));
      // The peer gets its end.
      drain(p.theirs.get());
      std::array<char, 1> some;
      CHECK(here().recv(p.theirs.get(), some.data(), some.size(), 0) <= 0);
    }
  });
}

TEST_CASE(
    "a transfer that was cut off in the middle fails its direction from then on, until the number is new") {
  on_each_backend([]() -> coax::task<> {
    fd_pair p = unix_pair();
    std::optional<taken_over> socket(std::move(p.ours));
    const int number = socket->get();
    std::array<std::byte, 10> some;
    put(p.theirs, "half");
    const auto reads = [&]() -> coax::task<> {
      static_cast<void>(co_await receive_full(number, some));
    };
    cancellable root(reads());
    co_await turns();
    root.cancel();
    co_await end_of(root);
    auto n = co_await receive(number, some);
    CHECK(n.error() == coax::errc::transfer_cut);
    auto sent = co_await send_all(number, "the other direction is whole");
    CHECK(sent);
    const std::string large(5'000'000, 'x');
    const auto sends = [&]() -> coax::task<> {
      static_cast<void>(co_await send_all(number, large));
    };
    cancellable other(sends());
    co_await turns();
    other.cancel();
    co_await end_of(other);
    sent = co_await send_all(number, "x");
    CHECK(sent.error() == coax::errc::transfer_cut);
    socket.reset();
    fd_pair fresh = unix_pair();
    give_number(fresh, number);
    socket.emplace(std::move(fresh.ours));
    put(fresh.theirs, "hello");
    n = co_await receive(number, some);
    CHECK(n.value() == 5);
    sent = co_await send_all(number, "x");
    CHECK(sent);
  });
}
