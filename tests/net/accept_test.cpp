#include <coax/io/fd.hpp>
#include <coax/net/listener.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <sys/resource.h>

#include <cerrno>
#include <chrono>
#include <deque>
#include <functional>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

// What accepting rides out, what it waits for, and what it gives up at.

namespace {

using namespace std::chrono_literals;
using coax::listener;
using coax::stream;
using coax::task;

using accepted = std::optional<coax::result<stream>>;

task<> accept_one(listener& from, accepted& into) {
  auto got = co_await from.accept();
  into.emplace(std::move(got));
}

/// A kernel whose accept fails as the test says; counts how often it is asked. No connection is
/// used up by that.
///
/// On io_uring an accept that is to fail is submitted as a request for nothing, and its completion
/// is rewritten.
class failing_accepts final : public coax::syscalls {
 public:
  std::deque<int> errors;
  int always = 0;  // after those
  int asked = 0;
  int counters = 0;  // that it was asked for: a reactor keeps a spare one while it accepts

  int eventfd() noexcept override {
    ++counters;
    return syscalls::eventfd();
  }
  int accept(int fd, int flags) noexcept override {
    ++asked;
    const int error = next();
    return error != 0 ? -error : syscalls::accept(fd, flags);
  }
#if !defined(COAX_WITHOUT_URING)
  int ring_submit(io_uring& ring) noexcept override {
    disarm(ring);
    const int submitted = syscalls::ring_submit(ring);
    rewrite(ring);
    return submitted;
  }
  int ring_submit_and_wait(io_uring& ring) noexcept override {
    disarm(ring);
    const int submitted = syscalls::ring_submit_and_wait(ring);
    rewrite(ring);
    return submitted;
  }
#endif

 private:
  int next() noexcept {
    if (errors.empty()) return always;
    const int error = errors.front();
    errors.pop_front();
    return error;
  }
#if !defined(COAX_WITHOUT_URING)
  void disarm(io_uring& ring) noexcept {
    for (unsigned at = ring.sq.sqe_head; at != ring.sq.sqe_tail; ++at) {
      io_uring_sqe& sqe = ring.sq.sqes[at & ring.sq.ring_mask];
      if (sqe.opcode != IORING_OP_ACCEPT) continue;
      ++asked;
      const int error = next();
      if (error == 0) continue;
      pending_.push_back({sqe.user_data, error});
      const auto whose = sqe.user_data;
      io_uring_prep_nop(&sqe);
      sqe.user_data = whose;
    }
  }
  void rewrite(io_uring& ring) noexcept {
    unsigned head = 0;
    io_uring_cqe* cqe = nullptr;
    io_uring_for_each_cqe(&ring, head, cqe) {
      if (pending_.empty() || cqe->user_data != pending_.front().whose) continue;
      cqe->res = -pending_.front().error;
      pending_.pop_front();
    }
  }
  struct failure {
    decltype(io_uring_sqe::user_data) whose;
    int error;
  };
  std::deque<failure> pending_;
#endif
};

/// Runs `body(listener, kernel)` on every backend.
template <class Body>
void with_failing(Body&& body) {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    failing_accepts kernel;
    const auto reactor = reactor_of(b, kernel);
    run_clean(*reactor, [&]() -> task<> {
      auto from = listener::bind("127.0.0.1:0");
      REQUIRE(from);
      co_await body(*from, kernel);
    });
  }
}

/// No more descriptors for this process than it has now, and `spare`.
class few_descriptors {
 public:
  few_descriptors() {
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    spare.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    // the lowest numbers are taken, so that the limit is one above the spare
    while (true) {
      coax::unique_fd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (next.get() > spare.get()) break;
      fillers_.push_back(std::move(next));
    }
    rlimit now = before_;
    now.rlim_cur = static_cast<rlim_t>(spare.get()) + 1;
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &now) == 0);
  }
  few_descriptors(const few_descriptors&) = delete;
  few_descriptors& operator=(const few_descriptors&) = delete;
  ~few_descriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }

  coax::unique_fd spare;

 private:
  std::vector<coax::unique_fd> fillers_;
  rlimit before_{};
};

}  // namespace

TEST_CASE("errors of single connections are passed over") {
  for (const int error : {ECONNABORTED, EPROTO, EINTR, EPERM, ENETDOWN, ENOPROTOOPT, EHOSTDOWN,
                          ENONET, EHOSTUNREACH, ENETUNREACH}) {
    INFO("errno " << error);
    with_failing([&](listener& from, failing_accepts& kernel) -> task<> {
      kernel.errors = {error, error, error};
      accepted got;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(accept_one, std::ref(from), std::ref(got));
        while (!kernel.errors.empty()) co_await coax::yield();
        CHECK(!got);
        const coax::unique_fd client = raw_client_of(from.native_handle());
        while (!got) co_await coax::yield();
      });
      CHECK(*got);
      CHECK(kernel.asked >= 4);
      CHECK(kernel.asked <= 6);
    });
  }
}

TEST_CASE("shortages are waited out") {
  for (const int error : {EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC}) {
    INFO("errno " << error);
    with_failing([&](listener& from, failing_accepts& kernel) -> task<> {
      kernel.errors = {error, error};
      accepted got;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(accept_one, std::ref(from), std::ref(got));
        while (!kernel.errors.empty()) co_await coax::sleep_for(1ms);
        const coax::unique_fd client = raw_client_of(from.native_handle());
        while (!got) co_await coax::sleep_for(1ms);
      });
      CHECK(*got);
    });
  }
}

TEST_CASE("an error that never ends is tried again with pauses") {
  for (const int error : {ECONNABORTED, EMFILE}) {
    INFO("errno " << error);
    with_failing([&](listener& from, failing_accepts& kernel) -> task<> {
      kernel.always = error;
      auto none = co_await coax::within(120ms, from.accept());
      CHECK(none.error() == std::errc::timed_out);
      // Pauses of 5, 10, 20, 40, 80 ms; the first shortage is met twice, as a descriptor is given up for it.
      CHECK(kernel.asked <= (error == EMFILE ? 12 : 22));
      kernel.always = 0;
      const coax::unique_fd client = raw_client_of(from.native_handle());
      auto served = co_await from.accept();
      CHECK(served);
    });
  }
}

TEST_CASE("an error of the listener itself is returned at once") {
  for (const int error : {EINVAL, ENOTSOCK, EOPNOTSUPP, EFAULT}) {
    INFO("errno " << error);
    with_failing([&](listener& from, failing_accepts& kernel) -> task<> {
      kernel.always = error;
      auto none = co_await from.accept();
      CHECK(none.error() == std::error_code(error, std::system_category()));
      CHECK(kernel.asked == 1);
    });
  }
}

TEST_CASE("a listener that was shut down fails accept, before and while a task waits") {
  with_failing([](listener& from, failing_accepts& kernel) -> task<> {
    accepted got;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(from), std::ref(got));
      co_await turns(3);
      CHECK(!got);
      REQUIRE(::shutdown(from.native_handle(), SHUT_RDWR) == 0);
    });
    CHECK(got->error() == std::errc::invalid_argument);
    auto again = co_await from.accept();
    CHECK(again.error() == std::errc::invalid_argument);
    CHECK(kernel.asked <= 3);
  });
}

TEST_CASE("a process without descriptors leaves connections in the backlog until it has some") {
  with_failing([](listener& from, failing_accepts& kernel) -> task<> {
    coax::unique_fd raw = raw_client_of(from.native_handle());
    REQUIRE(::send(raw.get(), "x", 1, 0) == 1);
    accepted got;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      few_descriptors limit;
      const int before = kernel.counters;
      s.spawn(accept_one, std::ref(from), std::ref(got));
      while (kernel.counters < before + 3) co_await coax::sleep_for(1ms);
      CHECK(!got);
      CHECK(kernel.asked == 0);  // who could not take it shows no interest
      limit.spare.reset();
      while (!got) co_await coax::sleep_for(1ms);
    });
    REQUIRE(*got);
    const std::string heard = co_await read_text(**got);
    CHECK(heard == "x");
  });
}

TEST_CASE("who waits for descriptors keeps the place of the one that accepts") {
  with_failing([](listener& from, failing_accepts& kernel) -> task<> {
    kernel.always = EMFILE;
    accepted got;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(from), std::ref(got));
      while (kernel.asked < 2) co_await coax::sleep_for(1ms);
      auto second = co_await from.accept();
      CHECK(second.error() == std::errc::device_or_resource_busy);
      CHECK(!got);
      kernel.always = 0;
      const coax::unique_fd client = raw_client_of(from.native_handle());
      while (!got) co_await coax::sleep_for(1ms);
    });
    CHECK(*got);
    const coax::unique_fd client = raw_client_of(from.native_handle());
    auto next = co_await from.accept();
    CHECK(next);
  });
}

TEST_CASE("with one descriptor left, accept waits for a connection, and not for descriptors") {
  with_failing([](listener& from, failing_accepts& kernel) -> task<> {
    few_descriptors limit;
    limit.spare.reset();
    auto none = co_await coax::within(120ms, from.accept());
    CHECK(none.error() == std::errc::timed_out);
    CHECK(kernel.asked <= 6);
  });
}

TEST_CASE("for each listener that is accepted from there is a spare descriptor") {
  with_failing([](listener& one, failing_accepts&) -> task<> {
    auto other = listener::bind("127.0.0.1:0");
    REQUIRE(other);
    std::vector<coax::unique_fd> clients;
    for (int i = 0; i < 2; ++i)
      clients.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    accepted first;
    accepted second;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(one), std::ref(first));
      s.spawn(accept_one, std::ref(*other), std::ref(second));
      co_await turns(3);
      const few_descriptors limit;
      for (const listener* to : {&one, &*other}) {
        const coax::endpoint at = to->local_endpoint().value();
        const int client = clients[to == &one ? 0 : 1].get();
        REQUIRE(::connect(client, at.data(), at.size()) == 0);
      }
      co_await s.join_within(10s);
    });
    CHECK((first && *first));
    CHECK((second && *second));
  });
}

TEST_CASE("who accepts again and again takes no more spare descriptors than once") {
  with_failing([](listener& from, failing_accepts& calls) -> task<> {
    const coax::endpoint at = from.local_endpoint().value();
    int after_the_first = 0;
    for (int i = 0; i < 5; ++i) {
      const coax::unique_fd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      REQUIRE(::connect(client.get(), at.data(), at.size()) == 0);
      auto got = co_await from.accept();
      CHECK(got);
      if (i == 0) after_the_first = calls.counters;
    }
    CHECK(calls.counters == after_the_first);
  });
}

TEST_CASE("an accept that has failed takes no connection of the next listener with its number") {
  for (const int yields : {0, 1, 2, 3, 4}) {
    INFO("after " << yields << " turns");
    with_failing([&](listener& from, failing_accepts& kernel) -> task<> {
      accepted got;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(accept_one, std::ref(from), std::ref(got));
        co_await turns(3);
        kernel.errors = {EMFILE};
        const coax::unique_fd client = raw_client_of(from.native_handle());
        co_await turns(yields);
        from.close();
        kernel.errors.clear();
        auto next = listener::bind("127.0.0.1:0");
        REQUIRE(next);
        const coax::unique_fd another = raw_client_of(next->native_handle());
        auto served = co_await coax::within(10s, next->accept());
        CHECK(served);
      });
      CHECK(got);
    });
  }
}

TEST_CASE("accepting can be cancelled while it waits for descriptors") {
  with_failing([](listener& from, failing_accepts& kernel) -> task<> {
    kernel.always = EMFILE;
    accepted got;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(from), std::ref(got));
      while (kernel.asked < 2) co_await coax::sleep_for(1ms);
      const bool by_itself = co_await s.join_within(0ms);
      CHECK(!by_itself);
    });
    CHECK(!got);
  });
}

TEST_CASE("a listener closed while its task pauses fails the accept") {
  with_failing([](listener& from, failing_accepts& kernel) -> task<> {
    kernel.always = EMFILE;
    accepted got;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(from), std::ref(got));
      while (kernel.asked < 2) co_await coax::sleep_for(1ms);
      kernel.always = 0;
      from.close();
      // the number may belong to somebody else by now
      const coax::unique_fd somebody = raw_listener();
      const coax::unique_fd client = raw_client_of(somebody.get());
      auto none = co_await coax::within(50ms, turns(1));
      CHECK(none);
      while (!got) co_await coax::sleep_for(1ms);
    });
    CHECK(!*got);
  });
}

#if !defined(COAX_WITHOUT_URING)
TEST_CASE("io_uring: a connection accepted at the moment of the cancellation is closed") {
  /// Lets what was armed complete before the cancellation is submitted.
  class completes_first final : public coax::syscalls {
   public:
    bool now = false;
    int ring_submit(io_uring& ring) noexcept override {
      if (now) io_uring_get_events(&ring);
      return syscalls::ring_submit(ring);
    }
    int ring_submit_and_wait(io_uring& ring) noexcept override {
      if (now) io_uring_get_events(&ring);
      return syscalls::ring_submit_and_wait(ring);
    }
  };
  if (backends_here().size() < 2) {
    WARN("io_uring cannot run here: not tested");
    return;
  }
  for (const bool cancelled : {false, true}) {
    completes_first kernel;
    const auto reactor = reactor_of(coax::backend::io_uring, kernel);
    run_clean(*reactor, [&]() -> task<> {
      const coax::unique_fd from = raw_listener();  // in blocking mode: the ring itself accepts
      coax::unique_fd raw;
      int got = 0;
      const auto accept_and_wait = [&]() -> task<> {
        auto taken = co_await coax::accept(from.get());
        REQUIRE(taken);
        ++got;
        stream s = adopted(std::move(*taken));
        const std::string unheard = co_await read_text(s);
        CHECK(unheard == "x");
      };
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(std::ref(accept_and_wait));
        co_await turns(3);
        raw = raw_client_of(from.get());
        kernel.now = cancelled;
        if (!cancelled) {
          REQUIRE(::send(raw.get(), "x", 1, 0) == 1);
          co_return;
        }
        co_await s.join_within(0ms);
        kernel.now = false;
      });
      CHECK(got == 1);  // what has completed is delivered, even under cancellation
      stream peer = adopted(std::move(raw));
      std::string nothing;
      const std::error_code why = co_await read_to_end(peer, nothing);
      CHECK(why == coax::errc::end_of_stream);
    });
  }
}
#endif
