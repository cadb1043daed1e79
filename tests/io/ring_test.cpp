#include "../task/death.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <sys/eventfd.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#if !defined(COAX_WITHOUT_URING)

// A ring that is too small, and one that the kernel does not always let enter.

using namespace std::chrono_literals;

namespace {

/// Fails calls that enter the ring, as the kernel may, without making them.
class failing_ring final : public coax::syscalls {
 public:
  int error = EINTR;
  int first = 0;     // the first call that fails, counting from 0
  int failures = 0;  // how many from then on
  int every = 0;     // else: of so many calls, the last
  int calls = 0;
  int failed = 0;

  int ring_submit(io_uring& ring) noexcept override {
    return fails() ? -error : syscalls::ring_submit(ring);
  }
  int ring_submit_and_wait(io_uring& ring) noexcept override {
    return fails() ? -error : syscalls::ring_submit_and_wait(ring);
  }

 private:
  bool fails() noexcept {
    const int call = calls++;
    const bool now =
        every > 0 ? call % every == every - 1 : call >= first && call < first + failures;
    failed += now;
    return now;
  }
};

bool ring_runs_here() { return backends_here().size() == 2; }

/// Allows so many descriptors for its life.
class descriptors_allowed {
 public:
  explicit descriptors_allowed(rlim_t count) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit more = before_;
    more.rlim_cur = std::max(before_.rlim_cur, std::min(count, before_.rlim_max));
    ::setrlimit(RLIMIT_NOFILE, &more);
    enough_ = more.rlim_cur >= count;
  }
  descriptors_allowed(const descriptors_allowed&) = delete;
  descriptors_allowed& operator=(const descriptors_allowed&) = delete;
  ~descriptors_allowed() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  explicit operator bool() const { return enough_; }

 private:
  rlimit before_{};
  bool enough_ = false;
};

coax::task<> count_one(int fd, int& ended) {
  std::array<std::byte, 8> count;
  auto n = co_await coax::read(fd, count);
  REQUIRE(n);
  ++ended;
}

/// 1,000 reads at once, of which every second one is cancelled after `after` turns; the others then complete.
coax::task<> thousand_reads(int after) {
  constexpr std::size_t all = 1000;
  std::vector<coax::unique_fd> fds;
  for (std::size_t i = 0; i < all; ++i) fds.emplace_back(::eventfd(0, EFD_CLOEXEC));
  REQUIRE(fds.back());
  int ended = 0;
  int cancelled = 0;
  auto outer = [&](coax::scope& kept) -> coax::task<> {
    auto inner = [&](coax::scope& dropped) -> coax::task<> {
      for (std::size_t i = 0; i < all; ++i)
        (i % 2 == 0 ? kept : dropped)
            .spawn(count_one, fds[i].get(), std::ref(i % 2 == 0 ? ended : cancelled));
      co_await turns(after);
      dropped.cancel();
    };
    co_await coax::with_scope(inner);
    CHECK(cancelled == 0);
    CHECK(ended == 0);
    const std::uint64_t one = 1;
    for (const coax::unique_fd& fd : fds)
      REQUIRE(::write(fd.get(), &one, sizeof(one)) == sizeof(one));
  };
  co_await coax::with_scope(outer);
  CHECK(ended == 500);
  CHECK(cancelled == 0);
  // What a cancelled read has not taken is still there.
  for (std::size_t i = 1; i < all; i += 2) co_await count_one(fds[i].get(), cancelled);
  CHECK(cancelled == 500);
}

/// Some of everything: operations that wait in turns, a timer, a timeout, a cancellation.
coax::task<> some_of_everything() {
  fd_pair p = unix_pair();
  fd_pair q = pipe_to_us();
  const taken_over socket(std::move(p.ours));
  int received = 0;
  auto body = [&](coax::scope& s) -> coax::task<> {
    s.spawn([&]() -> coax::task<> {
      std::array<std::byte, 100> some;
      while (received < 20) {
        auto n = co_await receive(socket.get(), some);
        REQUIRE(n);
        received += static_cast<int>(*n);
      }
    });
    s.spawn([&]() -> coax::task<> {
      for (int i = 0; i < 20; ++i) {
        auto n = co_await coax::write(p.theirs.get(), std::string_view("x"));
        REQUIRE(n);
        co_await coax::yield();
      }
    });
    std::array<std::byte, 10> some;
    auto late = co_await coax::within(300us, coax::read(q.ours.get(), some));
    CHECK(late.error() == std::errc::timed_out);
    const auto before = coax::now();
    co_await coax::sleep_for(300us);
    CHECK(coax::now() - before >= 300us);
    put(q.theirs, "x");
    auto in_time = co_await coax::within(1h, coax::read(q.ours.get(), some));
    CHECK(in_time);
  };
  co_await coax::with_scope(body);
  CHECK(received == 20);
  auto given_up = [&](coax::scope& s) -> coax::task<> {
    s.spawn([&]() -> coax::task<> {
      std::array<std::byte, 10> some;
      auto n = co_await receive(socket.get(), some);
      FAIL("nothing was sent: " << n.error());
    });
    co_await turns();
    s.cancel();
  };
  co_await coax::with_scope(given_up);
}

}  // namespace

TEST_CASE("a ring of 2 entries serves 1,000 operations at once, half of them cancelled") {
  const descriptors_allowed allowed(1100);
  if (!ring_runs_here() || !allowed) return;
  const int after = GENERATE(0, 1, 3, 6, 20);
  const auto reactor = reactor_of(coax::backend::io_uring, coax::syscalls::kernel(), 2);
  run_clean(*reactor, [&] { return thousand_reads(after); });
}

TEST_CASE(
    "what a full ring has to leave for later is submitted later, and can be cancelled meanwhile") {
  const descriptors_allowed allowed(1100);
  if (!ring_runs_here() || !allowed) return;
  struct refusal {
    int every, first, failures;
  };
  for (const refusal& r :
       {refusal{2, 0, 0}, {3, 0, 0}, {7, 0, 0}, {0, 0, 2000}, {0, 5, 2000}, {0, 100, 2000}}) {
    for (const int after : {0, 1, 6}) {
      INFO("of " << r.every << " calls, or " << r.failures << " from " << r.first
                 << "; cancelled after " << after);
      failing_ring calls;
      calls.error = after == 0 ? EBUSY : after == 1 ? EAGAIN : EINTR;
      calls.every = r.every;
      calls.first = r.first;
      calls.failures = r.failures;
      const auto reactor = reactor_of(coax::backend::io_uring, calls, 2);
      run_clean(*reactor, [&] { return thousand_reads(after); });
      CHECK(calls.failed > 0);
    }
  }
}

TEST_CASE("what waits outside of a full ring is submitted before the reactor goes to sleep") {
  if (!ring_runs_here()) return;
  failing_ring calls;
  calls.error = EBUSY;
  const auto reactor = reactor_of(coax::backend::io_uring, calls, 2);
  run_clean(*reactor, [&]() -> coax::task<> {
    const fd_pair a = pipe_to_us();
    const fd_pair b = pipe_to_us();
    const fd_pair c = pipe_to_us();
    put(c.theirs, "x");
    int ended = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      const auto reads = [&](int fd) -> coax::task<> {
        std::array<std::byte, 1> some;
        auto n = co_await coax::read(fd, some);
        REQUIRE(n);
        ++ended;
      };
      co_await turns();
      calls.first = calls.calls;  // the one call that would have made room
      calls.failures = 1;
      s.spawn(std::ref(reads), a.ours.get());
      s.spawn(std::ref(reads), b.ours.get());
      s.spawn(std::ref(reads), c.ours.get());
      // Nothing else happens: the third one has to get into the ring on its own.
      while (ended == 0) {
        std::array<pollfd, 1> nothing{{{-1, 0, 0}}};
        auto late = co_await coax::within(20ms, coax::poll(nothing));
        CHECK(late.error() == std::errc::timed_out);
        if (ended == 0) break;
      }
      CHECK(ended == 1);
      s.cancel();
    };
    co_await coax::with_scope(body);
  });
}

TEST_CASE("entering the ring may fail on any call, and everything goes on") {
  if (!ring_runs_here()) return;
  for (const int error : {EINTR, EAGAIN, EBUSY, ETIME}) {
    INFO("errno " << error);
    for (int first = 0; first < 40; ++first) {
      failing_ring calls;
      calls.error = error;
      calls.first = first;
      calls.failures = first % 3 == 0 ? 10 : 1;
      const auto reactor = reactor_of(coax::backend::io_uring, calls);
      run_clean(*reactor, some_of_everything);
      CHECK(calls.failed == calls.failures);
    }
  }
}

TEST_CASE("a ring that has lost completions ends the program with a message") {
  if (!ring_runs_here()) return;
  const ending child = ending_of([] {
    failing_ring calls;
    calls.error = EBADR;
    calls.first = 5;
    calls.failures = 1;
    const auto reactor = reactor_of(coax::backend::io_uring, calls);
    coax::detail::run_on(*reactor, some_of_everything);
  });
  CHECK(child.aborted_saying("lost completions"));
}

namespace {

/// Waits with `wait(fd)` on a full socket whose peer has ended its own side, and checks that this takes few turns.
template <class Wait>
void check_does_not_spin(bool nonblocking, Wait wait) {
  failing_ring calls;  // counts
  const auto reactor = reactor_of(coax::backend::io_uring, calls);
  run_clean(*reactor, [&]() -> coax::task<> {
    fd_pair p = unix_pair();
    if (nonblocking) set_nonblocking(p.ours.get());
    fill(p.ours.get());
    REQUIRE(::shutdown(p.theirs.get(), SHUT_WR) == 0);
    const taken_over socket(std::move(p.ours));
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto operation = wait(socket.get());
        static_cast<void>(co_await operation);
        FAIL("it was full");
      });
      const int before = calls.calls;
      for (int i = 0; i < 20; ++i) co_await coax::sleep_for(1ms);
      CHECK(calls.calls - before < 200);
      s.cancel();
    };
    co_await coax::with_scope(body);
  });
}

}  // namespace

TEST_CASE("waiting to write to a full socket whose peer has ended its own side does not spin") {
  if (!ring_runs_here()) return;
  for (const bool nonblocking : {false, true})
    check_does_not_spin(nonblocking, [](int fd) { return send_all(fd, "x"); });
  for (const bool nonblocking : {false, true})
    check_does_not_spin(nonblocking, [](int fd) { return coax::write(fd, std::string_view("x")); });
  for (const bool nonblocking : {false, true})
    check_does_not_spin(nonblocking, [](int fd) { return coax::poll(fd, POLLOUT); });
}

TEST_CASE("it goes on once its peer has read, whatever mode the socket is in") {
  if (!ring_runs_here()) return;
  for (const bool nonblocking : {false, true}) {
    INFO("non-blocking: " << nonblocking);
    const auto reactor = reactor_of(coax::backend::io_uring);
    run_clean(*reactor, [&]() -> coax::task<> {
      fd_pair p = unix_pair();
      if (nonblocking) set_nonblocking(p.ours.get());
      fill(p.ours.get());
      REQUIRE(::shutdown(p.theirs.get(), SHUT_WR) == 0);
      bool written = false;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          const auto wrote = co_await coax::write(p.ours.get(), std::string_view("x"));
          CHECK(wrote.value() == 1);
          written = true;
        });
        for (int i = 0; i < 20; ++i) co_await coax::sleep_for(1ms);  // it tries, in vain
        CHECK_FALSE(written);
        drain(p.theirs.get());
        co_return;
      };
      co_await coax::with_scope(body);
      CHECK(written);
    });
  }
}

#endif
