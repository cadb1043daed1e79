#include "../catch.hpp"
#include "sockets.hpp"

#include <coax/io/buffer_pool.hpp>
#include <coax/io/completion_reactor.hpp>
#include <coax/io/operations/receive.hpp>
#include <coax/process/run.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

// When a multishot receive is begun, begun again and stopped, over a kernel that does what the test
// says.

namespace {

/// A completion-based kernel by script. It can have one multishot receive, which a test can end; what
/// else is submitted waits until it is cancelled.
class scripted final : public coax::completion_reactor {
 public:
  std::string_view backend() const noexcept override { return "a script"; }

  int armed = 0;  ///< multishot receives in the kernel
  int begun = 0;
  int stopped = 0;  ///< cancellations asked for
  int submitted_alone = 0;
  bool has_room = true;
  bool ends_when_asked = true;

  void message(std::string_view text, bool last = false) {
    coax::detail::buffer& b = *buffers()->take();
    std::memcpy(b.data(), text.data(), text.size());
    end_if(last);
    delivered(key_, static_cast<int>(text.size()), &b, last);
  }
  void end(int answer) {
    end_if(true);
    delivered(key_, answer, nullptr, true);
  }

 private:
  void end_if(bool last) {
    REQUIRE(armed > 0);
    if (last) --armed;
  }

  bool submit(coax::operation& op) noexcept override {
    if (served_by_multishot(op)) return false;
    const bool tries = op.tries_first() == coax::operation::first_try::always;
    if (tries && call(op) == progress::ended) return true;
    put_into_kernel(op);
    return false;
  }
  void put_into_kernel(coax::operation& op) noexcept override {
    if (op.watched_as() == coax::watching::stream) ++submitted_alone;
  }
  void cancel(coax::operation& op) noexcept override {
    left_multishot(op);
    given_up(op);
  }
  void poll(std::optional<coax::clock::time_point>) noexcept override {
    if (!ends_when_asked) return;
    if (stopped > told_ && armed > 0) end(-ECANCELED);
    told_ = stopped;
  }

  bool arm_multishot(const coax::descriptor& d) noexcept override {
    if (!has_room) return false;
    key_ = key_of(d);
    ++armed;
    ++begun;
    return true;
  }
  void cancel_multishot(std::uint64_t key) noexcept override {
    if (key == key_ && armed > 0) ++stopped;
  }

  std::uint64_t key_ = 0;
  int told_ = 0;
};

/// Runs `body(kernel, fd)`, a coroutine, with a descriptor that is taken over; afterwards no buffer
/// is in use.
template <class Body>
void on_script(Body&& body) {
  scripted kernel;
  coax::detail::run_on(kernel, [&]() -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over ours(std::move(p.ours));
    co_await body(kernel, ours.get());
  });
  CHECK(kernel.armed == 0);
  CHECK(kernel.in_flight() == 0);
  CHECK(kernel.buffers_in_use() == 0);
}

/// Receives once, in a task of its own.
class receiver {
 public:
  explicit receiver(int fd) : task_(run(fd, got)) {}
  std::string got;  ///< what came, or the error in angle brackets
  bool has_ended() const { return task_.has_ended(); }
  void cancel() { task_.cancel(); }

 private:
  static coax::task<> run(int fd, std::string& into) {
    auto lease = co_await coax::operations::receive(fd);
    into = lease ? std::string(text_of(lease->bytes())) : "<" + lease.error().message() + ">";
  }
  cancellable task_;
};

coax::task<> receives(int fd, std::string_view expected) {
  receiver r(fd);
  co_await turns();
  REQUIRE(r.has_ended());
  CHECK(r.got == expected);
}

/// Has a multishot receive begun, for which nobody waits.
coax::task<> receives_first(scripted& kernel, int fd) {
  receiver first(fd);
  co_await turns(1);
  kernel.message("first");
  co_await turns();
  REQUIRE(first.got == "first");
}

}  // namespace

TEST_CASE("a multishot receive is begun again when its last completion has come, and not before") {
  on_script([](scripted& kernel, int fd) -> coax::task<> {
    int begun = 0;
    for (int i = 0; i < 1000; ++i) {
      receiver r(fd);
      co_await turns(1);
      const bool had_ended = i % 3 == 0;  // also the first time
      if (had_ended) ++begun;
      REQUIRE(kernel.begun == begun);
      REQUIRE(kernel.armed == 1);
      kernel.message("x", i % 3 == 2);
      co_await turns();
      REQUIRE(r.got == "x");
      REQUIRE(kernel.begun == begun);  // nobody asks for more
    }
    CHECK(kernel.stopped == 0);
  });
}

TEST_CASE("a multishot receive that ends while somebody waits is begun again for him at once") {
  on_script([](scripted& kernel, int fd) -> coax::task<> {
    receiver r(fd);
    co_await turns(1);
    for (int i = 1; i <= 10; ++i) {
      CHECK(kernel.begun == i);
      kernel.end(-ENOBUFS);
    }
    CHECK(kernel.begun == 11);
    kernel.message("x");
    co_await turns();
    CHECK(r.got == "x");
    CHECK(kernel.submitted_alone == 0);
  });
}

TEST_CASE("without buffers, or after an error that may come again, a receive is submitted alone") {
  for (const int answer : {-ENOBUFS, -EINTR, -EAGAIN, -EINVAL, -EOPNOTSUPP})
    on_script([&](scripted& kernel, int fd) -> coax::task<> {
      receiver r(fd);
      co_await turns(1);
      kernel.has_room = answer != -ENOBUFS;
      kernel.end(answer);
      CHECK(kernel.begun == 1);
      CHECK(kernel.submitted_alone == 1);
      r.cancel();
      co_await turns();
      CHECK(r.has_ended());
      // The next one may try again, unless this kind of socket cannot have one.
      kernel.has_room = true;
      receiver next(fd);
      co_await turns(1);
      CHECK(kernel.begun == (answer == -EINVAL || answer == -EOPNOTSUPP ? 1 : 2));
      next.cancel();
      co_await turns();
    });
}

TEST_CASE("what comes when nobody waits is kept in order, and soon the multishot is stopped") {
  on_script([](scripted& kernel, int fd) -> coax::task<> {
    receiver first(fd);
    co_await turns(1);
    first.cancel();
    co_await turns();
    CHECK(first.has_ended());
    CHECK(kernel.stopped == 0);  // it goes on for the next one
    int count = 0;
    while (kernel.stopped == 0 && count < 100) kernel.message(std::to_string(count++));
    CHECK(count < 20);
    for (int i = 0; i < 5; ++i) kernel.message(std::to_string(count++));  // before it has stopped
    CHECK(kernel.stopped == 1);
    co_await turns();
    CHECK(kernel.armed == 0);
    for (int i = 0; i < count; ++i) co_await receives(fd, std::to_string(i));
    CHECK(kernel.begun == 1);
  });
}

TEST_CASE("nothing is received by a call while a multishot that was stopped may deliver more") {
  on_script([](scripted& kernel, int) -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over ours(std::move(p.ours));
    const int fd = ours.get();
    co_await receives_first(kernel, fd);
    kernel.ends_when_asked = false;
    int count = 0;
    while (kernel.stopped == 0) kernel.message(std::to_string(count++));
    for (int i = 0; i < count; ++i) co_await receives(fd, std::to_string(i));
    REQUIRE(here().send(p.theirs.get(), "after", 5, 0) == 5);
    receiver r(fd);
    co_await turns();
    CHECK(!r.has_ended());
    kernel.message("the last", true);
    co_await turns();
    CHECK(r.got == "the last");
    co_await receives(fd, "after");
  });
}

TEST_CASE(
    "after a multishot was stopped, each buffer is received by a call, until one is not full") {
  on_script([](scripted& kernel, int) -> coax::task<> {
    fd_pair p = unix_pair();
    const taken_over ours(std::move(p.ours));
    const int fd = ours.get();
    co_await receives_first(kernel, fd);
    int count = 0;
    while (kernel.stopped == 0) kernel.message(std::to_string(count++));
    co_await turns();
    for (int i = 0; i < count; ++i) co_await receives(fd, std::to_string(i));

    const std::string full(coax::detail::buffer::bytes_max, 'f');
    for (int i = 0; i < 3; ++i) {
      REQUIRE(here().send(p.theirs.get(), full.data(), full.size(), 0) ==
              static_cast<int>(full.size()));
      co_await receives(fd, full);
    }
    REQUIRE(here().send(p.theirs.get(), "x", 1, 0) == 1);
    co_await receives(fd, "x");
    CHECK(kernel.begun == 1);
    CHECK(kernel.submitted_alone == 0);

    receiver next(fd);
    co_await turns(1);
    CHECK(kernel.begun == 2);
    kernel.message("more");
    co_await turns();
    CHECK(next.got == "more");
  });
}

TEST_CASE("an end or an error that comes when nobody waits is told after the bytes, once") {
  for (const int answer : {0, -ECONNABORTED})
    on_script([&](scripted& kernel, int fd) -> coax::task<> {
      receiver first(fd);
      co_await turns(1);
      kernel.message("a");
      kernel.message("b");
      kernel.end(answer);
      co_await turns();
      CHECK(first.got == "a");
      co_await receives(fd, "b");
      const std::error_code expected = answer == 0
                                           ? std::error_code(coax::errc::end_of_stream)
                                           : std::error_code(-answer, std::system_category());
      co_await receives(fd, "<" + expected.message() + ">");
      CHECK(kernel.begun == 1);
      receiver next(fd);  // the kernel is asked again
      co_await turns(1);
      CHECK(kernel.begun == 2);
      next.cancel();
      co_await turns();
    });
}

TEST_CASE(
    "what comes for a descriptor that was closed goes back, and its number stays taken until the last") {
  on_script([](scripted& kernel, int) -> coax::task<> {
    fd_pair p = unix_pair();
    taken_over ours(std::move(p.ours));
    const int fd = ours.get();
    receiver first(fd);
    co_await turns(1);
    kernel.message("a");
    kernel.message("b");
    co_await turns();
    CHECK(first.got == "a");
    CHECK(kernel.buffers_in_use() == 1);
    ours.close();
    CHECK(kernel.buffers_in_use() == 0);
    CHECK(kernel.stopped == 1);
    kernel.message("late");
    CHECK(kernel.buffers_in_use() == 0);
    CHECK(is_open(fd));
    co_await turns();
    CHECK(!is_open(fd));
  });
}

TEST_CASE("what comes for the connection that had the number before goes back") {
  on_script([](scripted& kernel, int fd) -> coax::task<> {
    receiver first(fd);
    co_await turns(1);
    kernel.message("a");
    co_await turns();
    kernel.own(fd, false);
    CHECK(kernel.stopped == 1);
    kernel.message("late");
    CHECK(kernel.buffers_in_use() == 0);
    co_await turns();
    CHECK(kernel.armed == 0);
    receiver next(fd);
    co_await turns(1);
    kernel.message("new");
    co_await turns();
    CHECK(next.got == "new");
  });
}
