#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include <sys/time.h>

using namespace std::chrono_literals;

// System calls that are interrupted, answer short, or answer EAGAIN at the worst moment. Most of these calls are
// epoll's; the same bodies run on io_uring, which tries a send before it queues one.

namespace {

/// Interrupts every call `times` times before it lets one through.
class interrupting final : public coax::syscalls {
 public:
  explicit interrupting(int times) : times_(times) {}

  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    return interrupts(recv_) ? -EINTR : syscalls::recv(fd, into, size, flags);
  }
  int send(int fd, const void* from, std::size_t size, int flags) noexcept override {
    return interrupts(send_) ? -EINTR : syscalls::send(fd, from, size, flags);
  }
  int read(int fd, void* into, std::size_t size) noexcept override {
    return interrupts(read_) ? -EINTR : syscalls::read(fd, into, size);
  }
  int write(int fd, const void* from, std::size_t size) noexcept override {
    return interrupts(write_) ? -EINTR : syscalls::write(fd, from, size);
  }
  int accept(int fd, int flags) noexcept override {
    return interrupts(accept_) ? -EINTR : syscalls::accept(fd, flags);
  }
  int poll(pollfd* fds, std::size_t count) noexcept override {
    return interrupts(poll_) ? -EINTR : syscalls::poll(fds, count);
  }
  /// An interrupted connect goes on all the same.
  int connect(int fd, const sockaddr* to, socklen_t size) noexcept override {
    const int answer = syscalls::connect(fd, to, size);
    return answer == 0 || answer == -EINPROGRESS ? -EINTR : answer;
  }
  int interrupted = 0;

 private:
  bool interrupts(int& so_far) noexcept {
    if (so_far == times_) {
      so_far = 0;
      return false;
    }
    ++so_far;
    ++interrupted;
    return true;
  }
  int times_;
  int recv_ = 0, send_ = 0, read_ = 0, write_ = 0, accept_ = 0, poll_ = 0;
};

template <class Calls, class Body>
void on_each_backend_with(Calls& calls, Body&& body) {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, body);
  }
}

}  // namespace

TEST_CASE("a call that is interrupted is made again") {
  const int times = GENERATE(1, 3, 40);  // 40: more often than an operation tries in a row
  interrupting calls(times);
  on_each_backend_with(calls, []() -> coax::task<> {
    const loopback_listener listener;
    const coax::unique_fd client(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    coax::operations::connect connecting(client.get(), listener.to(), sizeof(listener.address));
    auto connected = co_await connecting;
    CHECK(connected);
    auto accepted = co_await coax::accept(listener.fd.get());
    REQUIRE(accepted);
    const taken_over server(std::move(*accepted), true);
    auto written = co_await coax::write(client.get(), std::string_view("ping"));
    CHECK(written);
    std::array<std::byte, 16> some;
    auto received = co_await receive(server.get(), some);
    REQUIRE(received);
    CHECK(text_of(std::span(some).first(*received)) == "ping");
    auto sent = co_await send_all(server.get(), "pong");
    CHECK(sent);
    auto events = co_await coax::poll(client.get(), POLLIN);
    REQUIRE(events);
    CHECK(*events == POLLIN);
    auto read = co_await coax::read(client.get(), some);
    REQUIRE(read);
    CHECK(text_of(std::span(some).first(*read)) == "pong");
  });
  CHECK(calls.interrupted > 0);
}

TEST_CASE("cancelling an operation that is interrupted for ever unwinds it") {
  interrupting calls(1'000'000'000);
  on_each_backend_with(calls, []() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        static_cast<void>(co_await receive(socket.get(), some));
      });
      co_await turns(5);
      s.cancel();
    };
    co_await coax::with_scope(body);
  });
}

namespace {

/// Lets the peer's bytes arrive between the EAGAIN of a call and the wait that follows it.
class arriving_late final : public coax::syscalls {
 public:
  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    const int answer = syscalls::recv(fd, into, size, flags);
    if (answer == -EAGAIN) arrives();
    return answer;
  }
  int poll(pollfd* fds, std::size_t count) noexcept override {
    const int answer = syscalls::poll(fds, count);
    if (answer == 0 && (fds->events & POLLIN) != 0) arrives();
    return answer;
  }
  int send(int fd, const void* from, std::size_t size, int flags) noexcept override {
    const int answer = syscalls::send(fd, from, size, flags);
    if (answer == -EAGAIN && drained >= 0) drain(std::exchange(drained, -1));
    return answer;
  }
  int peer = -1;
  int drained = -1;

 private:
  void arrives() noexcept {
    if (peer >= 0) static_cast<void>(!::write(std::exchange(peer, -1), "hello", 5));
  }
};

}  // namespace

TEST_CASE("what arrives between EAGAIN and the wait is not missed") {
  arriving_late calls;  // io_uring asks and waits in one step
  coax::epoll_reactor epoll(calls);
  run_clean(epoll, [&]() -> coax::task<> {
    std::array<std::byte, 5> some;  // never short, so that the next call is tried
    for (const bool tcp : {true, false}) {
      fd_pair p = tcp ? tcp_pair() : unix_pair();
      const taken_over socket(std::move(p.ours), tcp);
      for (int i = 0; i < 100; ++i) {
        calls.peer = p.theirs.get();
        auto n = co_await receive(socket.get(), some);
        REQUIRE(n);
        CHECK(*n == 5);
        CHECK(calls.peer == -1);
      }
      const std::size_t filled = fill(socket.get());
      CHECK(filled > 0);
      calls.drained = p.theirs.get();
      auto sent = co_await send_all(socket.get(), "all");
      CHECK(sent);
      CHECK(calls.drained == -1);
    }
    const fd_pair pipe = pipe_to_us();
    for (int i = 0; i < 100; ++i) {
      calls.peer = pipe.theirs.get();
      auto n = co_await coax::read(pipe.ours.get(), some);
      REQUIRE(n);
      CHECK(*n == 5);
      CHECK(calls.peer == -1);
    }
  });
}

namespace {

/// At urgent data recv(2) answers EAGAIN while a signal is pending, whatever has come behind that.
class signalled_at_urgent_data final : public coax::syscalls {
 public:
  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    if (signals > 0 && ::sockatmark(fd) == 1) return --signals, -EAGAIN;
    return syscalls::recv(fd, into, size, flags);
  }
  int signals = 0;
};

}  // namespace

TEST_CASE("what came behind urgent data is read, though a signal was pending at the first try") {
  signalled_at_urgent_data calls;
  on_each_backend_with(calls, [&]() -> coax::task<> {
    for (const bool more : {true, false}) {
      CAPTURE(more);
      fd_pair p = tcp_pair();
      const taken_over socket(std::move(p.ours), true);
      std::string got;
      std::error_code why;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          std::array<std::byte, 100> some;
          while (true) {
            auto n = co_await receive(socket.get(), some);
            why = n ? std::error_code() : n.error();
            if (!n) break;
            got += text_of(std::span(some).first(*n));
          }
        });
        co_await turns();
        REQUIRE(::send(p.theirs.get(), "!", 1, MSG_OOB) == 1);
        co_await turns();
        calls.signals = 1;
        if (more) {
          put(p.theirs, "behind it");
          co_await turns(20);
          CHECK(got == "behind it");
        }
        p.theirs.reset();
        co_await turns(20);
        s.cancel();
      };
      co_await coax::with_scope(body);
      CHECK(got == (more ? "behind it" : ""));
      CHECK(why == coax::errc::end_of_stream);
      calls.signals = 0;
    }
  });
}

namespace {

/// Receives and sends one byte at a time.
class byte_by_byte final : public coax::syscalls {
 public:
  int recv(int fd, void* into, std::size_t, int flags) noexcept override {
    return syscalls::recv(fd, into, 1, flags);
  }
  int send(int fd, const void* from, std::size_t, int flags) noexcept override {
    ++sends;
    return syscalls::send(fd, from, 1, flags);
  }
  int sends = 0;
};

coax::task<> receive_all(int fd, std::size_t size, std::string& into) {
  std::vector<std::byte> buffer(size);
  auto n = co_await receive_full(fd, buffer);
  REQUIRE(n);
  into = text_of(buffer);
}

}  // namespace

TEST_CASE("a transfer of one byte at a time is whole, and events that come meanwhile do no harm") {
  byte_by_byte calls;
  on_each_backend_with(calls, []() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    std::string expected;
    std::string got;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn(receive_all, socket.get(), std::size_t{2000}, std::ref(got));
      co_await turns();
      // More than is read in one go, so that it is still in line when the next event comes.
      for (int i = 0; i < 20; ++i) {
        const std::string part(100, static_cast<char>('a' + i));
        expected += part;
        put(p.theirs, part);
        co_await coax::yield();
      }
    };
    co_await coax::with_scope(body);
    CHECK(got == expected);
    const std::string all(2000, 'x');
    std::string drained;
    auto sending = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto sent = co_await send_all(socket.get(), all);
        REQUIRE(sent);
        CHECK(*sent == all.size());
      });
      while (drained.size() < all.size()) {
        drained += drain(p.theirs.get());
        co_await coax::yield();
      }
    };
    co_await coax::with_scope(sending);
    CHECK(drained == all);
  });
}

TEST_CASE("a transfer that is in line can be cancelled, and closed under") {
  byte_by_byte calls;
  on_each_backend_with(calls, []() -> coax::task<> {
    for (const bool closes : {false, true}) {
      fd_pair p = unix_pair();
      taken_over socket(std::move(p.ours));
      std::error_code why;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          std::array<std::byte, 1000> buffer;
          auto n = co_await receive_full(socket.get(), buffer);
          why = n.error();
        });
        co_await turns();
        put(p.theirs, std::string(400, 'x'));
        co_await turns(2);
        if (closes)
          socket.close();
        else
          s.cancel();
      };
      co_await coax::with_scope(body);
      CHECK((why == std::errc::operation_canceled) == closes);
    }
  });
}

TEST_CASE("a long transfer that never has to wait lets others run in between") {
  byte_by_byte calls;
  const auto reactor = reactor_of(coax::backend::epoll, calls);
  run_clean(*reactor, []() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    put(p.theirs, std::string(50'000, 'x'));
    int yields = 0;
    bool done = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        std::string got;
        co_await receive_all(socket.get(), 50'000, got);
        done = true;
      });
      while (!done) {
        co_await coax::yield();
        ++yields;
      }
    };
    co_await coax::with_scope(body);
    CHECK(yields > 1000);
  });
}

TEST_CASE("a peer that has always more to send lets others run after 64 KB") {
  class flooding final : public coax::syscalls {
   public:
    int recv(int, void*, std::size_t size, int) noexcept override { return static_cast<int>(size); }
  } calls;
  const auto reactor = reactor_of(coax::backend::epoll, calls);
  run_clean(*reactor, []() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    std::size_t at_once = 0;
    std::size_t most = 0;
    bool done = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        std::vector<std::byte> some(16 * 1024);
        for (int i = 0; i < 100; ++i) {
          auto n = co_await receive(socket.get(), some);
          at_once += n.value();
          most = std::max(most, at_once);
        }
        done = true;
      });
      while (!done) {
        at_once = 0;
        co_await coax::yield();
      }
    };
    co_await coax::with_scope(body);
    CHECK(most <= 64 * 1024);
  });
}

namespace {

/// What the handler below does while the thread waits: a byte comes, and then the time is up.
struct interruption {
  static inline int into = -1;
  static inline coax::clock::duration came;  // since when the clock began, as `until`
  static inline coax::clock::duration until;

  static coax::clock::duration now() { return std::chrono::steady_clock::now().time_since_epoch(); }
  static void happens(int) {
    static_cast<void>(!::write(into, "x", 1));
    came = now();
    while (now() < until) {
    }
  }
};

}  // namespace

TEST_CASE("what came while a wait was interrupted for longer than its timeout beats that") {
  struct sigaction before{};
  struct sigaction action{};
  action.sa_handler = &interruption::happens;
  REQUIRE(::sigaction(SIGALRM, &action, &before) == 0);
  on_each_backend([]() -> coax::task<> {
    bool came_in_time = false;
    while (!came_in_time) {  // a busy machine may run the handler only when the time is up
      fd_pair p = tcp_pair();
      const taken_over socket(std::move(p.ours), true);
      std::array<std::byte, 4> some;
      const coax::clock::duration began = interruption::now();
      interruption::into = p.theirs.get();
      interruption::until = began + 40ms;
      interruption::came = coax::clock::duration::max();
      const itimerval soon{{0, 0}, {0, 5'000}};
      REQUIRE(::setitimer(ITIMER_REAL, &soon, nullptr) == 0);
      auto got = co_await coax::within(20ms, receive(socket.get(), some));
      const itimerval none{};
      ::setitimer(ITIMER_REAL, &none, nullptr);
      came_in_time = interruption::came < began + 20ms;
      if (came_in_time) CHECK(got.value() == 1);
    }
  });
  ::sigaction(SIGALRM, &before, nullptr);
}
