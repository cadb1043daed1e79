#include <coax/io/fd.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/process/run.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>

#include "../catch.hpp"
#include "../io/each_backend.hpp"
#include "../task/death.hpp"
#include "../task/foreign.hpp"

#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>

namespace {

using namespace std::chrono_literals;
using coax::task;

task<int> answer() {
  co_await coax::yield();
  co_return 42;
}

task<std::unique_ptr<int>> move_only(std::unique_ptr<int> in) {
  co_await coax::yield();
  ++*in;
  co_return in;
}

task<> add(int& to, int what) {
  co_await coax::yield();
  to += what;
}

task<> throws() {
  co_await coax::yield();
  throw std::out_of_range("from the task");
}

/// One connection of a thread with itself.
task<int> talk_to_oneself(int rounds) {
  auto from = coax::listener::bind("127.0.0.1:0");
  auto near = co_await coax::connect(from.value().local_endpoint().value());
  auto far = co_await from->accept();
  std::array<std::byte, 5> got;
  int done = 0;
  for (int i = 0; i < rounds; ++i) {
    auto sent = co_await near.value().write("hello");
    auto read = co_await far.value().read_exactly(got);
    done += sent && read ? 1 : 0;
  }
  co_return done;
}

}  // namespace

TEST_CASE("run gives what its task gives") {
  CHECK(coax::run(answer) == 42);
  auto in = std::make_unique<int>(1);
  const int* const where = in.get();
  const std::unique_ptr<int> out = coax::run(move_only, std::move(in));
  CHECK(out.get() == where);
  CHECK(*out == 2);
  int sum = 0;
  coax::run(add, sum, 3);
  CHECK(sum == 3);
  static_assert(std::is_void_v<decltype(coax::run(add, sum, 3))>);
  static_assert(std::is_same_v<decltype(coax::run(answer)), int>);
}

TEST_CASE("run takes arguments by reference, by std::ref and as they are") {
  int sum = 0;
  coax::run(add, std::ref(sum), 3);
  coax::run(add, sum, 4);
  CHECK(sum == 7);
  const auto closure = [&](const std::string& text) -> task<std::size_t> {
    co_await coax::yield();
    co_return text.size() + static_cast<std::size_t>(sum);
  };
  CHECK(coax::run(closure, std::string("a temporary that lives on")) == 32);
}

TEST_CASE("run calls what it is given as its caller would") {
  class server {
   public:
    task<int> serve(int by) {
      co_await coax::yield();
      co_return served_ += by;
    }

   private:
    int served_ = 1;
  };
  server s;
  CHECK(coax::run(&server::serve, s, 2) == 3);
  CHECK(coax::run(&server::serve, &s, 2) == 5);
}

TEST_CASE("run throws what its task throws, and can run again") {
  CHECK_THROWS_AS(coax::run(throws), std::out_of_range);
  const auto throws_at_once = []() -> task<> { throw std::domain_error("before there is a task"); };
  CHECK_THROWS_AS(coax::run(throws_at_once), std::domain_error);
  const auto is_no_coroutine = [](bool fails) -> task<int> {
    if (fails) throw std::length_error("thrown by the call");
    return answer();
  };
  CHECK_THROWS_AS(coax::run(is_no_coroutine, true), std::length_error);
  CHECK(coax::run(is_no_coroutine, false) == 42);
}

TEST_CASE("one run after the other leaves nothing behind") {
  const int descriptors = open_descriptors();
  const auto frames = coax::detail::frames::live();
  for (int i = 0; i < 10; ++i) CHECK(coax::run(talk_to_oneself, 3) == 3);
  CHECK(open_descriptors() == descriptors);
  CHECK(coax::detail::frames::live() == frames);
}

TEST_CASE("run inside run is a logic error, and the outer one goes on") {
  const auto nested = []() -> task<bool> {
    co_await coax::yield();
    bool refused = false;
    try {
      coax::run(answer);
    } catch (const std::logic_error&) {
      refused = true;
    }
    co_await coax::yield();
    co_return refused;
  };
  CHECK(coax::run(nested));
}

TEST_CASE("two threads run at once") {
  int first = 0;
  int second = 0;
  std::thread one([&] { first = coax::run(talk_to_oneself, 200); });
  std::thread other([&] { second = coax::run(talk_to_oneself, 200); });
  one.join();
  other.join();
  CHECK(first == 200);
  CHECK(second == 200);
}

TEST_CASE("a foreign coroutine may wait in a run, and must have ended before it") {
  on_each_backend([]() -> task<> {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const coax::unique_fd out(ends[0]);
    const coax::unique_fd in(ends[1]);
    std::size_t got = 0;
    const auto read_one = [&]() -> foreign {
      std::array<std::byte, 4> some;
      auto n = co_await coax::read(out.get(), some);
      if (n) got = *n;
    };
    const foreign reads = read_one();
    auto sent = co_await coax::write(in.get(), "abc");
    CHECK(sent);
    while (got == 0) co_await coax::yield();
    CHECK(got == 3);
  });

  for (const coax::backend b : backends_here()) {
    const ending how = ending_of([&] {
      coax::options o;
      o.backend = b;
      int ends[2];
      if (::pipe2(ends, O_CLOEXEC) != 0) ::_exit(3);
      const auto read_for_ever = [&]() -> foreign {
        std::array<std::byte, 4> some;
        auto n = co_await coax::read(ends[0], some);
        static_cast<void>(n);
      };
      std::optional<foreign> reads;
      ::unsetenv("COAX_BACKEND");
      coax::run(o, [&]() -> task<> {
        reads.emplace(read_for_ever());
        co_return;
      });
    });
    INFO(how.words);
    CHECK(how.aborted_saying("still waited in the kernel"));
  }
}

TEST_CASE("what a run spawned and cancelled is unwound before it returns") {
  on_each_backend([]() -> task<> {
    bool unwound = false;
    struct on_exit {
      bool& flag;
      ~on_exit() { flag = true; }
    };
    const auto sleeps = [&]() -> task<> {
      const on_exit noted{unwound};
      co_await coax::sleep_for(1h);
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(std::ref(sleeps));
      co_await coax::yield();
      s.cancel();
    });
    CHECK(unwound);
  });
}

TEST_CASE("a run that is given a task that was moved from aborts with a message") {
  CHECK(ending_of([] {
          auto t = []() -> coax::task<> { co_return; }();
          coax::run([&] { return std::move(t); });
          coax::run([&] { return std::move(t); });
        }).aborted_saying("a task that had been moved from"));
}

#if !defined(NDEBUG)
TEST_CASE("spawning into the scope of another thread's reactor aborts with a message") {
  CHECK(ending_of([] {
          coax::run([]() -> coax::task<> {
            co_await coax::with_scope([](coax::scope& s) -> coax::task<> {
              std::thread([&s] {
                coax::run([&s]() -> coax::task<> {
                  s.spawn([]() -> coax::task<> { co_return; });
                  co_return;
                });
              }).join();
              co_return;
            });
          });
        }).aborted_saying("from a thread that is not its reactor's"));
}
#endif
