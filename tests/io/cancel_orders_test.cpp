#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/within.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

// An operation is asked to stop, by its root or by its timer, while the kernel answers: every order of these, played to
// the backends by a kernel that does as it is told. Only the operation's own final answer ends it.

using namespace std::chrono_literals;

namespace {

/// A reactor whose kernel is the test. It knows of one operation; the reactor's own wait for its wake-up stops at once.
class scripted_reactor final : public coax::reactor {
 public:
  std::string_view backend() const noexcept override { return "scripted"; }
  bool has_operation() const { return op_ != nullptr; }
  void answer(int with) { answers_.push_back(with); }
  int cancels() const { return cancels_; }

 private:
  bool submit(coax::operation& op) noexcept override {
    if (op.waits_for() == POLLIN && op.tries_first() != coax::operation::first_try::always &&
        wake_ == nullptr)
      wake_ = &op;
    else
      op_ = &op;
    return false;
  }
  void cancel(coax::operation& op) noexcept override {
    if (&op == wake_) return given_up(op);
    ++cancels_;
  }
  void poll(std::optional<coax::clock::time_point>) noexcept override {
    for (const int with : std::exchange(answers_, {})) {
      if (with == -ECANCELED && op_->stop_requested())
        given_up(*std::exchange(op_, nullptr));
      else if (take(*op_, with))
        ended(*std::exchange(op_, nullptr));
    }
  }

  coax::operation* wake_ = nullptr;
  coax::operation* op_ = nullptr;
  std::vector<int> answers_;
  int cancels_ = 0;
};

#if !defined(COAX_WITHOUT_URING)
/// Stands between an io_uring and the kernel: takes what is submitted, and answers reads when the test says so.
class scripted_ring final : public coax::syscalls {
 public:
  bool has_operation() const { return read_ != 0; }
  void answer(int with) { answer(std::exchange(read_, 0), with); }
  void answer(__u64 read, int with) { complete(*ring_, read, with); }
  __u64 newest() const { return read_; }
  int cancels() const { return cancels_; }
  bool refuses = false;  // takes nothing that is submitted
  __u64 watched = 0;     // the read whose cancellations are counted; 0: the newest

  int ring_submit(io_uring& ring) noexcept override { return take_submissions(ring); }
  int ring_submit_and_wait(io_uring& ring) noexcept override { return take_submissions(ring); }

 private:
  int take_submissions(io_uring& ring) noexcept {
    ring_ = &ring;
    if (refuses) return -EBUSY;
    io_uring_sq& sq = ring.sq;
    int taken = 0;
    for (; sq.sqe_head != sq.sqe_tail; ++sq.sqe_head, ++taken) {
      const io_uring_sqe& sqe = sq.sqes[sq.sqe_head & *sq.kring_mask];
      if (sqe.opcode == IORING_OP_READ) {
        read_ = sqe.user_data;
        last_read_ = sqe.user_data;
      } else if (sqe.opcode == IORING_OP_ASYNC_CANCEL) {
        if (sqe.addr == (watched != 0 ? watched : last_read_))
          ++cancels_;
        else
          complete(ring, sqe.addr, -ECANCELED);
        complete(ring, sqe.user_data, 0);
      }
    }
    *sq.ktail = sq.sqe_tail;
    *sq.khead = sq.sqe_tail;
    return taken;
  }
  static void complete(io_uring& ring, __u64 user_data, int result) noexcept {
    io_uring_cq& cq = ring.cq;
    io_uring_cqe& cqe = cq.cqes[*cq.ktail & *cq.kring_mask];
    cqe.user_data = user_data;
    cqe.res = result;
    cqe.flags = 0;
    ++*cq.ktail;
  }

  io_uring* ring_ = nullptr;
  __u64 read_ = 0;
  __u64 last_read_ = 0;
  int cancels_ = 0;
};
#endif

/// 'v': the kernel answers with a value; 'c': with ECANCELED; 's': the root is cancelled; 't': the timer expires.
struct order {
  std::string events;
  int gap;  // turns between the events; 0: all before the reactor looks at the kernel's answer

  std::size_t answered() const { return events.find_first_of("vc"); }
  bool asked_before_answer(char who) const {
    const std::size_t at = events.find(who);
    return at != std::string::npos && (gap == 0 || at < answered());
  }
  std::string expected() const {
    if (events[answered()] == 'v') return "value";
    if (asked_before_answer('s')) return "unwound";
    return asked_before_answer('t') ? "timed out" : "operation canceled";
  }
};

std::vector<order> all_orders() {
  std::vector<order> all;
  for (std::string events : {"c", "v", "cs", "sv", "ct", "tv", "cst", "stv"}) {
    std::sort(events.begin(), events.end());
    do
      for (const int gap : {0, 3}) all.push_back({events, gap});
    while (std::next_permutation(events.begin(), events.end()));
  }
  return all;
}

coax::task<> waits(int fd, std::string& outcome) {
  std::array<std::byte, 16> some;
  auto n = co_await coax::within(1h, coax::read(fd, some));
  if (n)
    outcome = *n == 5 ? "value" : "another value";
  else if (n.error() == std::errc::timed_out)
    outcome = "timed out";
  else
    outcome =
        n.error() == std::errc::operation_canceled ? "operation canceled" : n.error().message();
}

template <class Kernel>
coax::task<> play(Kernel& kernel, const order& o) {
  coax::reactor& here = coax::reactor::current();
  const fd_pair pipe = pipe_to_us();
  std::string outcome = "unwound";
  cancellable root(waits(pipe.ours.get(), outcome));
  co_await turns();
  REQUIRE(kernel.has_operation());
  const std::size_t in_flight = here.in_flight();
  bool answered = false;
  for (const char event : o.events) {
    if (event == 'v') kernel.answer(5);
    if (event == 'c') kernel.answer(-ECANCELED);
    if (event == 's') root.cancel();
    if (event == 't') here.deadlines().expire(coax::now() + 2h);
    answered = answered || event == 'v' || event == 'c';
    co_await turns(o.gap);
    if (o.gap != 0) CHECK(root.has_ended() == answered);
    if (o.gap != 0) CHECK(here.in_flight() == in_flight - (answered ? 1 : 0));
  }
  co_await end_of(root);
  CHECK(outcome == o.expected());
  CHECK(here.in_flight() == in_flight - 1);
  CHECK(kernel.cancels() <= 1);  // asking twice is asking once
}

}  // namespace

TEST_CASE(
    "a stop and an answer in every order: only the answer ends an operation, and no value is lost") {
  for (const order& o : all_orders()) {
    INFO(o.events << ", " << o.gap << " turns apart");
    scripted_reactor reactor;
    run_clean(reactor, [&] { return play(reactor, o); });
  }
}

#if !defined(COAX_WITHOUT_URING)

TEST_CASE("io_uring: a stop and an answer in every order") {
  if (backends_here().size() < 2) return;
  for (const order& o : all_orders()) {
    INFO(o.events << ", " << o.gap << " turns apart");
    scripted_ring kernel;
    const auto reactor = reactor_of(coax::backend::io_uring, kernel);
    run_clean(*reactor, [&] { return play(kernel, o); });
  }
}

TEST_CASE(
    "io_uring: an operation that was to be done again and is asked to stop is not done again") {
  if (backends_here().size() < 2) return;
  for (const int again : {EINTR, EAGAIN}) {
    scripted_ring kernel;
    const auto reactor = reactor_of(coax::backend::io_uring, kernel);
    run_clean(*reactor, [&]() -> coax::task<> {
      const fd_pair pipe = pipe_to_us();
      std::string outcome = "unwound";
      cancellable root(waits(pipe.ours.get(), outcome));
      co_await turns();
      root.cancel();
      co_await turns();
      CHECK_FALSE(root.has_ended());
      kernel.answer(-again);
      co_await end_of(root);
      CHECK(outcome == "unwound");
      CHECK_FALSE(kernel.has_operation());
    });
  }
}

TEST_CASE("io_uring: an interrupted operation is submitted again") {
  if (backends_here().size() < 2) return;
  scripted_ring kernel;
  const auto reactor = reactor_of(coax::backend::io_uring, kernel);
  run_clean(*reactor, [&]() -> coax::task<> {
    const fd_pair pipe = pipe_to_us();
    std::string outcome;
    const cancellable root(waits(pipe.ours.get(), outcome));
    for (int i = 0; i < 5; ++i) {
      co_await turns();
      REQUIRE(kernel.has_operation());
      kernel.answer(-EINTR);
    }
    co_await turns();
    kernel.answer(5);
    co_await end_of(root);
    CHECK(outcome == "value");
  });
}

TEST_CASE("io_uring: a cancellation that has no room yet is dropped when its operation completes") {
  if (backends_here().size() < 2) return;
  scripted_ring kernel;
  const auto reactor = reactor_of(coax::backend::io_uring, kernel, 2);
  run_clean(*reactor, [&]() -> coax::task<> {
    const std::array<fd_pair, 4> pipes{pipe_to_us(), pipe_to_us(), pipe_to_us(), pipe_to_us()};
    std::array<std::string, 4> outcomes{"unwound", "unwound", "unwound", "unwound"};
    std::array<std::optional<cancellable>, 4> roots;
    roots[0].emplace(waits(pipes[0].ours.get(), outcomes[0]));
    co_await turns();
    kernel.watched = kernel.newest();
    kernel.refuses = true;
    // Two fill the ring, one goes to the backlog, and there is no room for a cancellation.
    for (std::size_t i = 1; i < 4; ++i) roots[i].emplace(waits(pipes[i].ours.get(), outcomes[i]));
    co_await turns();
    roots[0]->cancel();
    roots[3]->cancel();  // the kernel has not seen this one
    co_await end_of(*roots[3]);
    CHECK_FALSE(roots[0]->has_ended());
    kernel.answer(kernel.watched, 5);
    co_await end_of(*roots[0]);
    CHECK(outcomes[0] == "value");
    CHECK(outcomes[3] == "unwound");
    kernel.refuses = false;
    co_await turns();
    CHECK(kernel.cancels() == 0);
    for (const std::size_t i : {std::size_t{1}, std::size_t{2}}) {
      CHECK_FALSE(roots[i]->has_ended());
      roots[i]->cancel();
      co_await end_of(*roots[i]);  // every cancellation but the watched one is answered
      CHECK(outcomes[i] == "unwound");
    }
  });
}

#endif
