#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

// poll of one descriptor and of several. What every operation has in common is in operations_test.cpp.

using namespace std::chrono_literals;

namespace {

coax::unique_fd regular_file() {
  coax::unique_fd made(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  REQUIRE(made);
  return made;
}

/// Polls `fds`; `wake`, called while it waits, makes one of them ready.
template <class Wake>
coax::task<> poll_woken_by(std::span<pollfd> fds, Wake wake) {
  auto body = [&](coax::scope& s) -> coax::task<> {
    s.spawn([&]() -> coax::task<> {
      auto ready = co_await coax::poll(fds);
      REQUIRE(ready);
      CHECK(*ready == 1);
    });
    co_await turns();
    wake();
  };
  co_await coax::with_scope(body);
}

}  // namespace

TEST_CASE("poll gives the events that are true, of those asked for") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    auto both = co_await coax::poll(p.ours.get(), POLLIN | POLLOUT);
    REQUIRE(both);
    CHECK(*both == POLLOUT);
    put(p.theirs, "x");
    both = co_await coax::poll(p.ours.get(), POLLIN | POLLOUT);
    REQUIRE(both);
    CHECK(*both == (POLLIN | POLLOUT));
    auto one = co_await coax::poll(p.ours.get(), POLLIN);
    REQUIRE(one);
    CHECK(*one == POLLIN);
  });
}

TEST_CASE("poll for nothing waits for the hang-up") {
  on_each_backend([]() -> coax::task<> {
    fd_pair p = unix_pair();
    put(p.theirs, "x");
    auto early = co_await coax::within(1ms, coax::poll(p.ours.get(), 0));
    CHECK(early.error() == std::errc::timed_out);
    short seen = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto events = co_await coax::poll(p.ours.get(), 0);
        REQUIRE(events);
        seen = *events;
      });
      co_await turns();
      CHECK(seen == 0);
      p.theirs.reset();
    };
    co_await coax::with_scope(body);
    CHECK(seen == POLLHUP);
  });
}

TEST_CASE("poll for urgent data and for the peer's half-close reports them") {
  on_each_backend([]() -> coax::task<> {
    for (const short wanted : {short{POLLPRI}, short{POLLRDHUP}}) {
      fd_pair p = tcp_pair();
      short seen = 0;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          auto events = co_await coax::poll(p.ours.get(), wanted);
          REQUIRE(events);
          seen = *events;
        });
        co_await turns();
        put(p.theirs, "ordinary");
        co_await turns();
        CHECK(seen == 0);
        if (wanted == POLLPRI)
          REQUIRE(::send(p.theirs.get(), "!", 1, MSG_OOB) == 1);
        else
          REQUIRE(::shutdown(p.theirs.get(), SHUT_WR) == 0);
      };
      co_await coax::with_scope(body);
      CHECK(seen == wanted);
    }
  });
}

TEST_CASE(
    "a poll for reading and one for writing may wait at a time, and one for both takes both places") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    const std::size_t filled = fill(p.ours.get());
    std::string log;
    const auto waits = [&](short events, char name) -> coax::task<> {
      auto seen = co_await coax::poll(p.ours.get(), events);
      REQUIRE(seen);
      CHECK((*seen & events) == *seen);
      log += name;
    };
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn(std::ref(waits), short{POLLIN}, 'r');
      s.spawn(std::ref(waits), short{POLLOUT}, 'w');
      co_await turns();
      auto third = co_await coax::poll(p.ours.get(), POLLIN | POLLOUT);
      CHECK(third.error() == std::errc::device_or_resource_busy);
      CHECK(drain(p.theirs.get()).size() == filled);
      co_await turns(6);
      CHECK(log == "w");
      put(p.theirs, "x");
    };
    co_await coax::with_scope(body);
    CHECK(log == "wr");
    REQUIRE(drain(p.ours.get()) == "x");
    fill(p.ours.get());
    auto both = [&](coax::scope& s) -> coax::task<> {
      s.spawn(std::ref(waits), static_cast<short>(POLLIN | POLLOUT), 'b');
      co_await turns();
      for (const short events : {short{POLLIN}, short{POLLOUT}}) {
        auto busy = co_await coax::poll(p.ours.get(), events);
        CHECK(busy.error() == std::errc::device_or_resource_busy);
      }
      put(p.theirs, "x");
    };
    co_await coax::with_scope(both);
    CHECK(log == "wrb");
  });
}

TEST_CASE("poll of several reports all that are ready, and passes over negative descriptors") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    const fd_pair a = pipe_to_us();
    const fd_pair b = unix_pair();
    const fd_pair c = pipe_to_us();
    put(a.theirs, "x");
    put(b.theirs, "x");
    std::vector<pollfd> fds{{a.ours.get(), POLLIN, 0},           {-1, POLLIN, 99},
                            {b.ours.get(), POLLIN | POLLOUT, 0}, {c.ours.get(), POLLIN, 0},
                            {b.ours.get(), POLLOUT, 0},          {-7, 0, 0}};
    auto ready = co_await coax::poll(fds);
    REQUIRE(ready);
    CHECK(*ready == 3);
    CHECK(fds[0].revents == POLLIN);
    CHECK(fds[1].revents == 0);
    CHECK(fds[2].revents == (POLLIN | POLLOUT));
    CHECK(fds[3].revents == 0);
    CHECK(fds[4].revents == POLLOUT);
    CHECK(fds[5].revents == 0);
  });
}

TEST_CASE("poll of several waits on a descriptor that stands in it twice for all of its events") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const bool reads : {true, false}) {
      fd_pair p = unix_pair();
      const std::size_t filled = fill(p.ours.get());
      std::array<pollfd, 2> fds{{{p.ours.get(), POLLOUT, 0}, {p.ours.get(), POLLIN, 0}}};
      co_await poll_woken_by(fds, [&] {
        if (reads)
          put(p.theirs, "x");
        else
          CHECK(drain(p.theirs.get()).size() == filled);
      });
      CHECK(fds[0].revents == (reads ? 0 : POLLOUT));
      CHECK(fds[1].revents == (reads ? POLLIN : 0));
    }
  });
}

TEST_CASE("poll of several waits for each of them, in whatever order they stand") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (std::size_t wakes = 0; wakes < 3; ++wakes) {
      fd_pair pairs[] = {unix_pair(), unix_pair(), unix_pair()};
      const auto fd = [&](std::size_t i) { return pairs[i].ours.get(); };
      std::array<pollfd, 9> fds{{{fd(2), POLLPRI, 0},
                                 {-1, POLLIN, 0},
                                 {fd(0), POLLIN, 0},
                                 {fd(2), POLLIN, 0},
                                 {-1, POLLIN, 0},
                                 {-7, POLLIN, 0},
                                 {fd(1), POLLIN, 0},
                                 {fd(0), POLLPRI, 0},
                                 {fd(2), 0, 0}}};
      co_await poll_woken_by(fds, [&] { put(pairs[wakes].theirs, "x"); });
      for (const pollfd& each : fds)
        CHECK(each.revents == (each.fd == fd(wakes) && each.events == POLLIN ? POLLIN : 0));
    }
  });
}

TEST_CASE("poll of several reports a closed descriptor as POLLNVAL at once") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = pipe_to_us();
    const int closed = p.theirs.get();
    p.theirs.reset();
    fd_pair quiet = pipe_to_us();
    // `quiet` has taken the number over; one far beyond is certainly closed
    std::array<pollfd, 2> fds{{{quiet.ours.get(), POLLIN, 0}, {closed + 500, POLLIN, 0}}};
    auto ready = co_await coax::poll(fds);
    REQUIRE(ready);
    CHECK(*ready == 1);
    CHECK(fds[0].revents == 0);
    CHECK(fds[1].revents == POLLNVAL);
  });
}

TEST_CASE(
    "poll of several with a regular file is ready at once; asked for nothing, the file is passed over") {
  on_each_backend([]() -> coax::task<> {
    const fd_pair pipe = pipe_to_us();
    const coax::unique_fd file = regular_file();
    std::array<pollfd, 2> fds{{{pipe.ours.get(), POLLIN, 0}, {file.get(), POLLIN, 0}}};
    auto ready = co_await coax::poll(fds);
    REQUIRE(ready);
    CHECK(*ready == 1);
    CHECK(fds[1].revents == POLLIN);
    fds[1].events = 0;
    auto late = co_await coax::within(1ms, coax::poll(fds));
    CHECK(late.error() == std::errc::timed_out);
    put(pipe.theirs, "x");
    ready = co_await coax::poll(fds);
    REQUIRE(ready);
    CHECK(fds[0].revents == POLLIN);
  });
}

TEST_CASE("poll of nothing waits until it is cancelled") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    auto of_nothing = co_await coax::within(1ms, coax::poll(std::span<pollfd>()));
    CHECK(of_nothing.error() == std::errc::timed_out);
    std::array<pollfd, 2> ignored{{{-1, POLLIN, 0}, {-1, POLLOUT, 0}}};
    auto of_ignored = co_await coax::within(1ms, coax::poll(ignored));
    CHECK(of_ignored.error() == std::errc::timed_out);
  });
}

TEST_CASE("poll of several sees a hang-up it was not asked for") {
  on_each_backend([]() -> coax::task<> {
    fd_pair p = unix_pair();
    std::array<pollfd, 1> fds{{{p.ours.get(), 0, 0}}};
    co_await poll_woken_by(fds, [&] { p.theirs.reset(); });
    CHECK(fds[0].revents == POLLHUP);
  });
}

TEST_CASE("poll for room to write is not ended by the peer's half-close, which nobody asked for") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = unix_pair();
    const std::size_t filled = fill(p.ours.get());
    short seen = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto events = co_await coax::poll(p.ours.get(), POLLOUT);
        REQUIRE(events);
        seen = *events;
      });
      co_await turns();
      REQUIRE(here().shutdown(p.theirs.get(), SHUT_WR) == 0);
      co_await turns(10);
      CHECK(seen == 0);
      CHECK(drain(p.theirs.get()).size() == filled);
    };
    co_await coax::with_scope(body);
    CHECK(seen == POLLOUT);
  });
}

TEST_CASE(
    "io_uring: poll for room to write says so when nothing can be had that keeps a half-close from ending it") {
  class without_epoll final : public coax::syscalls {
   public:
    int epoll_create() noexcept override { return -EMFILE; }
  } calls;
  for (const coax::backend b : backends_here()) {
    if (b != coax::backend::io_uring) continue;
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, []() -> coax::task<> {
      const fd_pair p = unix_pair();
      fill(p.ours.get());
      REQUIRE(::shutdown(p.theirs.get(), SHUT_WR) == 0);
      auto none = co_await coax::poll(p.ours.get(), POLLOUT);
      CHECK(none.error() == std::errc::too_many_files_open);
    });
  }
}

TEST_CASE("poll of several that is interrupted looks again") {
  class interrupted final : public coax::syscalls {
   public:
    int poll(pollfd* fds, std::size_t count) noexcept override {
      return std::exchange(now, false) ? -EINTR : syscalls::poll(fds, count);
    }
    bool now = false;
  } calls;
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, [&]() -> coax::task<> {
      const fd_pair p = pipe_to_us();
      put(p.theirs, "x");
      std::array<pollfd, 1> fds{{{p.ours.get(), POLLIN, 0}}};
      calls.now = true;
      auto ready = co_await coax::poll(fds);
      REQUIRE(ready);
      CHECK(*ready == 1);
    });
    CHECK_FALSE(calls.now);
  }
}

TEST_CASE("poll of a socket that is closed under it is cancelled, not ready") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (const short events :
         {short{POLLIN}, short{POLLPRI}, short{POLLIN | POLLRDHUP}, short{POLLIN | POLLOUT}}) {
      fd_pair p = tcp_pair();
      taken_over socket(std::move(p.ours), true);
      const bool for_room = (events & POLLOUT) != 0;
      while (for_room && fill(socket.get()) != 0) co_await coax::sleep_for(1ms);
      bool ended = false;
      co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          auto polled = co_await coax::poll(socket.get(), events);
          CHECK(polled.error() == std::errc::operation_canceled);
          ended = true;
        });
        co_await turns(5);
        socket.close();
      });
      CHECK(ended);
    }
  });
}
