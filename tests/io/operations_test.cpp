#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <chrono>
#include <tuple>

// What holds for every operation. Each `case_of_...` is one of them: something to wait on, the wait, and what ends it.

using namespace std::chrono_literals;

namespace {

struct case_of_accept {
  loopback_listener listener;
  coax::unique_fd client;

  auto begin() { return coax::accept(listener.fd.get()); }
  void make_ready() { client = listener.client(); }
  void check(const coax::unique_fd& accepted) {
    put(client, "x");
    CHECK(drain(accepted.get()) == "x");
  }
};

struct case_of_accept_on_nonblocking : case_of_accept {
  case_of_accept_on_nonblocking() { set_nonblocking(listener.fd.get()); }
};

struct case_of_read {
  fd_pair pipe = pipe_to_us();
  std::array<std::byte, 16> buffer{};

  auto begin() { return coax::read(pipe.ours.get(), buffer); }
  void make_ready() { put(pipe.theirs, "hello"); }
  void check(std::size_t n) { CHECK(text_of(std::span(buffer).first(n)) == "hello"); }
};

struct case_of_read_on_nonblocking : case_of_read {
  case_of_read_on_nonblocking() { set_nonblocking(pipe.ours.get()); }
};

struct case_of_write {
  fd_pair pipe = pipe_from_us();
  std::size_t filled = fill(pipe.ours.get());

  auto begin() { return coax::write(pipe.ours.get(), "hello"); }
  void make_ready() { CHECK(drain(pipe.theirs.get()).size() == filled); }
  void check(std::size_t n) {
    CHECK(n == 5);
    CHECK(drain(pipe.theirs.get()) == "hello");
  }
};

struct case_of_write_on_nonblocking : case_of_write {
  case_of_write_on_nonblocking() { set_nonblocking(pipe.ours.get()); }
};

struct case_of_poll {
  fd_pair pipe = pipe_to_us();

  auto begin() { return coax::poll(pipe.ours.get(), POLLIN); }
  void make_ready() { put(pipe.theirs, "hello"); }
  void check(short events) { CHECK(events == POLLIN); }
};

struct case_of_poll_of_several {
  fd_pair one = pipe_to_us();
  fd_pair two = unix_pair();
  std::array<pollfd, 2> fds{{{one.ours.get(), POLLIN, 0}, {two.ours.get(), POLLIN, 0}}};

  auto begin() { return coax::poll(fds); }
  void make_ready() { put(two.theirs, "hello"); }
  void check(std::size_t n) {
    CHECK(n == 1);
    CHECK(fds[0].revents == 0);
    CHECK(fds[1].revents == POLLIN);
  }
};

template <fd_pair (*Pair)(), bool Tcp>
struct case_of_recv {
  case_of_recv() : case_of_recv(Pair()) {}
  explicit case_of_recv(fd_pair p) : socket(std::move(p.ours), Tcp), peer(std::move(p.theirs)) {}
  taken_over socket;
  coax::unique_fd peer;
  std::array<std::byte, 16> buffer{};

  auto begin() { return receive(socket.get(), buffer); }
  void make_ready() { put(peer, "hello"); }
  void check(std::size_t n) { CHECK(text_of(std::span(buffer).first(n)) == "hello"); }
};
using case_of_tcp_recv = case_of_recv<tcp_pair, true>;
using case_of_unix_recv = case_of_recv<unix_pair, false>;

struct case_of_full_recv : case_of_tcp_recv {
  auto begin() { return receive_full(socket.get(), std::span(buffer).first(5)); }
};

struct case_of_send {
  explicit case_of_send(fd_pair p = unix_pair())
      : socket(std::move(p.ours)), peer(std::move(p.theirs)) {
    filled = fill(socket.get());
  }
  taken_over socket;
  coax::unique_fd peer;
  std::size_t filled = 0;

  auto begin() { return send_all(socket.get(), "hello"); }
  void make_ready() { CHECK(drain(peer.get()).size() == filled); }
  void check(std::size_t n) {
    CHECK(n == 5);
    CHECK(drain(peer.get()) == "hello");
  }
};

using every_operation =
    std::tuple<case_of_accept, case_of_accept_on_nonblocking, case_of_read,
               case_of_read_on_nonblocking, case_of_write, case_of_write_on_nonblocking,
               case_of_poll, case_of_poll_of_several, case_of_tcp_recv, case_of_unix_recv,
               case_of_full_recv, case_of_send>;

template <class Case>
coax::task<> wait_once(Case& it, int& ended) {
  auto answer = co_await it.begin();
  ++ended;
  REQUIRE(answer);
  it.check(*answer);
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("an operation that is ready completes", "", every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType it;
    it.make_ready();
    int ended = 0;
    co_await wait_once(it, ended);
    CHECK(ended == 1);
  });
}

TEMPLATE_LIST_TEST_CASE("an operation waits until it can complete", "", every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType it;
    int ended = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> { return wait_once(it, ended); });
      co_await turns();
      CHECK(ended == 0);
      it.make_ready();
    };
    co_await coax::with_scope(body);
    CHECK(ended == 1);
  });
}

TEMPLATE_LIST_TEST_CASE(
    "cancelling an operation that waits unwinds it, and leaves nothing in flight", "",
    every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType it;
    int ended = 0;
    const std::size_t in_flight = coax::reactor::current().in_flight();
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> { return wait_once(it, ended); });
      co_await turns();
      CHECK(coax::reactor::current().in_flight() == in_flight + 1);
      s.cancel();
    };
    co_await coax::with_scope(body);
    CHECK(ended == 0);
    CHECK(coax::reactor::current().in_flight() == in_flight);
    it.make_ready();  // nobody has taken what comes now
    co_await wait_once(it, ended);
    CHECK(ended == 1);
  });
}

TEMPLATE_LIST_TEST_CASE("cancelling an operation in the turn that began it unwinds it", "",
                        every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType it;
    int ended = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> { return wait_once(it, ended); });
      co_await coax::yield();
      s.cancel();
    };
    co_await coax::with_scope(body);
    CHECK(ended == 0);
    it.make_ready();
    co_await wait_once(it, ended);
    CHECK(ended == 1);
  });
}

TEMPLATE_LIST_TEST_CASE("an operation under within times out, and the descriptor still works", "",
                        every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType it;
    for (const coax::timeout limit : {coax::timeout(0ns), coax::timeout(1ms)}) {
      auto late = co_await coax::within(limit, it.begin());
      CHECK(late.error() == std::errc::timed_out);
    }
    it.make_ready();
    auto in_time = co_await coax::within(1h, it.begin());
    REQUIRE(in_time);
    it.check(*in_time);
  });
}

TEMPLATE_LIST_TEST_CASE("what is ready beats a timeout of nothing", "", every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType it;
    it.make_ready();
    // io_uring is asked only when the turn is over, after the timer: trying again must find what was not taken.
    auto answer = co_await coax::within(0ns, it.begin());
    if (!answer) {
      CHECK(answer.error() == std::errc::timed_out);
      answer = co_await it.begin();
    }
    REQUIRE(answer);
    it.check(*answer);
  });
}

TEMPLATE_LIST_TEST_CASE("the loser of a race between two operations is cancelled", "",
                        every_operation) {
  on_each_backend_and_simulation([]() -> coax::task<> {
    TestType loser;
    case_of_read winner;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        co_await turns();
        winner.make_ready();
      });
      auto ends = co_await coax::race(loser.begin(), winner.begin());
      CHECK_FALSE(std::get<0>(ends).has_value());
      REQUIRE(std::get<1>(ends).has_value());
      REQUIRE(*std::get<1>(ends));
      winner.check(**std::get<1>(ends));
    };
    co_await coax::with_scope(body);
    int ended = 0;
    loser.make_ready();
    co_await wait_once(loser, ended);
    CHECK(ended == 1);
  });
}

TEST_CASE("two reads that are ready at once lose nothing in a race") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 50; ++round) {
      case_of_read one;
      case_of_tcp_recv two;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          co_await turns();
          one.make_ready();
          two.make_ready();
        });
        auto ends = co_await coax::race(one.begin(), two.begin());
        // What a branch has not delivered is still there.
        if (std::get<0>(ends))
          one.check(**std::get<0>(ends));
        else
          CHECK(drain(one.pipe.ours.get()) == "hello");
        if (std::get<1>(ends))
          two.check(**std::get<1>(ends));
        else
          CHECK(drain(two.socket.get()) == "hello");
        CHECK((std::get<0>(ends) || std::get<1>(ends)));
      };
      co_await coax::with_scope(body);
    }
  });
}
