#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdlib>

// Descriptors that are no sockets: files, devices, and pipes in blocking mode.

using namespace std::chrono_literals;

namespace {

coax::unique_fd temporary_file() {
  char name[] = "/tmp/coax-test-XXXXXX";
  coax::unique_fd made(::mkostemp(name, O_CLOEXEC));
  REQUIRE(made);
  ::unlink(name);
  return made;
}

}  // namespace

TEST_CASE("a regular file is read and written at its offset, and is always ready") {
  on_each_backend([]() -> coax::task<> {
    const coax::unique_fd file = temporary_file();
    auto events = co_await coax::poll(file.get(), POLLIN | POLLOUT);
    REQUIRE(events);
    CHECK(*events == (POLLIN | POLLOUT));
    for (const std::string_view part : {"hello ", "world"}) {
      auto written = co_await coax::write(file.get(), part);
      REQUIRE(written);
      CHECK(*written == part.size());
    }
    REQUIRE(::lseek(file.get(), 0, SEEK_SET) == 0);
    std::array<std::byte, 6> some;
    auto first = co_await coax::read(file.get(), some);
    REQUIRE(first);
    CHECK(text_of(std::span(some).first(*first)) == "hello ");
    auto second = co_await coax::read(file.get(), some);
    REQUIRE(second);
    CHECK(text_of(std::span(some).first(*second)) == "world");
    auto at_end = co_await coax::read(file.get(), some);
    CHECK(at_end.error() == coax::errc::end_of_stream);
  });
}

TEST_CASE("a large write to a regular file is written whole") {
  on_each_backend([]() -> coax::task<> {
    const coax::unique_fd file = temporary_file();
    const std::string all(3'000'000, 'x');
    auto written = co_await coax::write(file.get(), all);
    REQUIRE(written);
    CHECK(*written == all.size());
    CHECK(::lseek(file.get(), 0, SEEK_END) == static_cast<off_t>(all.size()));
  });
}

TEST_CASE("devices are read and written") {
  on_each_backend([]() -> coax::task<> {
    const coax::unique_fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    const coax::unique_fd zero(::open("/dev/zero", O_RDWR | O_CLOEXEC));
    std::array<std::byte, 100> some;
    some.fill(std::byte{1});
    auto events = co_await coax::poll(null.get(), POLLIN | POLLOUT);
    REQUIRE(events);
    CHECK(*events == (POLLIN | POLLOUT));
    auto written = co_await coax::write(null.get(), std::string_view("swallowed"));
    REQUIRE(written);
    CHECK(*written == 9);
    auto nothing = co_await coax::read(null.get(), some);
    CHECK(nothing.error() == coax::errc::end_of_stream);
    auto zeros = co_await coax::read(zero.get(), some);
    REQUIRE(zeros);
    CHECK(*zeros == 100);
    CHECK(some[99] == std::byte{0});
  });
}

TEST_CASE("reading a directory and writing to a full device say why they fail") {
  on_each_backend([]() -> coax::task<> {
    const coax::unique_fd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    const coax::unique_fd full(::open("/dev/full", O_RDWR | O_CLOEXEC));
    std::array<std::byte, 10> some;
    auto read = co_await coax::read(directory.get(), some);
    CHECK(read.error() == std::errc::is_a_directory);
    auto written = co_await coax::write(full.get(), std::string_view("x"));
    CHECK(written.error() == std::errc::no_space_on_device);
  });
}

TEST_CASE("reading where one can only write, and the reverse, fails at once") {
  on_each_backend([]() -> coax::task<> {
    const fd_pair pipe = pipe_to_us();
    std::array<std::byte, 10> some;
    auto read = co_await coax::within(100ms, coax::read(pipe.theirs.get(), some));
    CHECK(read.error() == std::errc::bad_file_descriptor);
    auto written =
        co_await coax::within(100ms, coax::write(pipe.ours.get(), std::string_view("x")));
    CHECK(written.error() == std::errc::bad_file_descriptor);
  });
}

TEST_CASE("accepting from what does not listen fails at once") {
  on_each_backend([]() -> coax::task<> {
    const fd_pair pipe = pipe_to_us();
    auto from_pipe = co_await coax::within(100ms, coax::accept(pipe.ours.get()));
    CHECK(from_pipe.error() == std::errc::not_a_socket);
    const fd_pair sockets = tcp_pair();
    auto from_connection = co_await coax::within(100ms, coax::accept(sockets.ours.get()));
    CHECK(from_connection.error() == std::errc::invalid_argument);
  });
}

TEST_CASE("a large write to a pipe in blocking mode lets its reader run on the same thread") {
  on_each_backend([]() -> coax::task<> {
    fd_pair pipe = pipe_from_us();
    const std::string all(1'000'000, 'x');
    std::size_t got = 0;
    bool written = false;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto n = co_await coax::write(pipe.ours.get(), all);
        REQUIRE(n);
        CHECK(*n == all.size());
        written = true;
        pipe.ours.reset();
      });
      co_await turns();
      CHECK_FALSE(written);
      std::array<std::byte, 5000> some;
      while (auto n = co_await coax::read(pipe.theirs.get(), some)) {
        got += *n;
        co_await coax::yield();  // slowly
      }
    };
    co_await coax::with_scope(body);
    CHECK(written);
    CHECK(got == all.size());
  });
}

TEST_CASE("a large write to a socket in blocking mode lets its reader run on the same thread") {
  on_each_backend([]() -> coax::task<> {
    for (fd_pair (*const make)() : {unix_pair, tcp_pair}) {
      fd_pair sockets = make();
      const std::string all(8'000'000, 'x');
      std::size_t got = 0;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          auto n = co_await coax::write(sockets.ours.get(), all);
          REQUIRE(n);
          CHECK(*n == all.size());
          sockets.ours.reset();
        });
        std::array<std::byte, 60'000> some;
        while (auto n = co_await coax::read(sockets.theirs.get(), some)) got += *n;
      };
      co_await coax::with_scope(body);
      CHECK(got == all.size());
    }
  });
}

TEST_CASE("a message to a socket in blocking mode is written whole") {
  on_each_backend([]() -> coax::task<> {
    for (const int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
      int ends[2];
      REQUIRE(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends) == 0);
      const coax::unique_fd ours(ends[0]);
      const coax::unique_fd theirs(ends[1]);
      const std::string message(10'000, 'x');
      auto sent = co_await coax::write(ours.get(), message);
      REQUIRE(sent);
      CHECK(*sent == message.size());
      std::string got(2 * message.size(), '\0');
      CHECK(::recv(theirs.get(), got.data(), got.size(), MSG_DONTWAIT) == 10'000);
    }
  });
}

TEST_CASE("writing to a pipe or a socket whose reader has gone is broken_pipe, and no signal") {
  on_each_backend([]() -> coax::task<> {
    coax::detail::ignore_sigpipe();  // as `run` does
    for (const bool waits : {false, true}) {
      fd_pair pipe = pipe_from_us();
      if (waits) fill(pipe.ours.get());
      std::error_code why;
      auto body = [&](coax::scope& s) -> coax::task<> {
        if (!waits) pipe.theirs.reset();
        s.spawn([&]() -> coax::task<> {
          auto n = co_await coax::write(pipe.ours.get(), std::string_view("x"));
          why = n.error();
        });
        co_await turns();
        pipe.theirs.reset();
      };
      co_await coax::with_scope(body);
      CHECK(why == std::errc::broken_pipe);
    }
  });
}

TEST_CASE("a pipe whose writer has gone is at its end, after what it held") {
  on_each_backend([]() -> coax::task<> {
    fd_pair pipe = pipe_to_us();
    std::array<std::byte, 100> some;
    put(pipe.theirs, "rest");
    pipe.theirs.reset();
    auto rest = co_await coax::read(pipe.ours.get(), some);
    REQUIRE(rest);
    CHECK(*rest == 4);
    auto end = co_await coax::read(pipe.ours.get(), some);
    CHECK(end.error() == coax::errc::end_of_stream);
    fd_pair other = pipe_to_us();
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        auto n = co_await coax::read(other.ours.get(), some);
        CHECK(n.error() == coax::errc::end_of_stream);
      });
      co_await turns();
      other.theirs.reset();
    };
    co_await coax::with_scope(body);
  });
}

TEST_CASE("a write of more than one call can take is written whole") {
  /// Takes all it is asked to. That is where epoll writes; io_uring writes to /dev/null.
  class swallowing final : public coax::syscalls {
   public:
    int write(int, const void*, std::size_t size) noexcept override {
      largest = std::max(largest, size);
      return static_cast<int>(std::min(size, std::size_t{INT_MAX}));
    }
    std::size_t largest = 0;
  } calls;
  constexpr std::size_t size = std::size_t{1} << 32;  // 0 where 32 bits are to hold it
  void* const zeros =
      ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(zeros != MAP_FAILED);
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, [&]() -> coax::task<> {
      const coax::unique_fd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
      const std::span all(static_cast<const std::byte*>(zeros), size);
      auto written = co_await coax::write(null.get(), all);
      REQUIRE(written);
      CHECK(*written == size);
    });
  }
  CHECK(calls.largest <= std::size_t{INT_MAX});
  ::munmap(zeros, size);
}
