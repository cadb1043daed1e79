#include "failing_new.hpp"
#include "net_scenarios.hpp"
#include "task_scenarios.hpp"

#include <coax/process/run.hpp>
#include <coax/process/signals.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/task_local.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <vector>

/// Each allocation fails once, and once more together with those that follow: std::bad_alloc arrives where the task is awaited,
/// or the error that is documented, and nothing is left behind.

void* operator new(std::size_t size) {
  if (memory::refuses()) throw std::bad_alloc();
  if (void* const fresh = std::malloc(size)) return fresh;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return memory::refuses() ? nullptr : std::malloc(size);
}
void operator delete(void* block, const std::nothrow_t&) noexcept { std::free(block); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }

// Those that are aligned beyond what malloc gives.
static long aligned_blocks = 0;
void* operator new(std::size_t size, std::align_val_t alignment) {
  const auto multiple = static_cast<std::size_t>(alignment);
  void* const fresh = std::aligned_alloc(multiple, (size + multiple - 1) / multiple * multiple);
  if (fresh == nullptr) throw std::bad_alloc();
  ++aligned_blocks;
  return fresh;
}
void operator delete(void* block, std::align_val_t) noexcept {
  if (block != nullptr) --aligned_blocks;
  std::free(block);
}
void operator delete(void* block, std::size_t, std::align_val_t alignment) noexcept {
  operator delete(block, alignment);
}

TEST_CASE("whichever allocation fails, tasks, timers and sync primitives leave nothing behind",
          "[promises][memory]") {
  scenarios::for_each_task_scenario([]<class Scenario>(const char* name) {
    fail_every_allocation<Scenario>(name, [] { return std::make_unique<virtual_stage>(); });
  });
}

TEST_CASE("whichever allocation fails, connections leave nothing behind", "[promises][memory]") {
  coax::detail::signal_hub::instance();  // opens its descriptor once, for good
  for (const coax::backend b : backends_here()) {
    scenarios::for_each_net_scenario([b]<class Scenario>(const char* name) {
      fail_every_allocation<Scenario>(name, [b] { return std::make_unique<reactor_stage>(b); });
    });
  }
}

TEST_CASE("whichever allocation fails, a run ends with its result or an error and leaves nothing",
          "[promises][memory]") {
  coax::detail::signal_hub::instance();
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    coax::options how;
    how.backend = b;
    how.ring_entries = 16;
    bool happened = true;
    for (long n = 1; happened; ++n) {
      const int descriptors = open_descriptors();
      const auto frames = coax::detail::frames::live();
      int got = 0;
      bool refused = false;
      {
        const memory::shortage shortage(n, n + 1);
        try {
          got = coax::run(
              how,
              [](int given) -> coax::task<int> {
                co_await coax::yield();
                co_return given;
              },
              7);
        } catch (const std::bad_alloc&) {
          refused = true;
        } catch (const std::system_error& e) {
          if (e.code() != std::errc::not_enough_memory) throw;
          refused = true;
        }
        happened = shortage.happened(n);
      }
      CAPTURE(n);
      CHECK((refused || got == 7));
      CHECK((happened || !refused));
      CHECK(open_descriptors() == descriptors);
      CHECK(coax::detail::frames::live() == frames);
    }
  }
}

namespace {

/// An item that anything may be taken for, too large to lie in a block that was recycled.
struct made_from_codes {
  made_from_codes(std::error_code) noexcept {}
  std::array<std::byte, 1500> room{};
};

}  // namespace

TEST_CASE("to park without memory is std::bad_alloc, not an item made from an error code",
          "[promises][memory]") {
  coax::worker_stack<made_from_codes> idle;
  const memory::shortage shortage(1, 2);
  CHECK_THROWS_AS(static_cast<void>(idle.park()), std::bad_alloc);
}

namespace {

struct alignas(64) wide {
  std::array<std::byte, 64> bytes{};
};
struct thrown_when_copied {
  thrown_when_copied() = default;
  thrown_when_copied(const thrown_when_copied&) { throw std::bad_alloc(); }
};
coax::task<> takes_wide(const wide&, const thrown_when_copied&) { co_return; }

}  // namespace

TEST_CASE("an argument that cannot be copied leaves nothing of a child, however it is aligned",
          "[promises][memory]") {
  const long before = aligned_blocks;
  virtual_stage stage;
  actor body([]() -> coax::task<> {
    co_await coax::with_scope([](coax::scope& s) -> coax::task<> {
      const thrown_when_copied refused;
      CHECK_THROWS_AS(s.spawn(takes_wide, wide(), refused), std::bad_alloc);
      CHECK(s.size() == 0);
      co_return;
    });
  }());
  while (!body.has_ended()) stage.turn();
  CHECK(body.how() == ending::finished);
  CHECK(aligned_blocks == before);
}

TEST_CASE("a descriptor that is adopted without memory stays the caller's", "[promises][memory]") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reactor_stage stage(b);
    actor body([]() -> coax::task<> {
      scenarios::connected sockets;
      // Beyond what the reactor's table has room for.
      const coax::unique_fd far(::fcntl(sockets.near.get(), F_DUPFD_CLOEXEC, 700));
      {
        const memory::shortage shortage(1, 2);
        auto refused = coax::stream::adopt(far.get());
        memory::shortage::end();
        CHECK(refused.error() == std::errc::not_enough_memory);
      }
      CHECK(::fcntl(far.get(), F_GETFD) != -1);
      co_return;
    }());
    while (!body.has_ended()) stage.turn();
    CHECK(body.how() == ending::finished);
  }
}

TEST_CASE("a listener that its reactor does not know yet waits out a shortage of memory",
          "[promises][memory]") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reactor_stage stage(b);
    actor body([]() -> coax::task<> {
      std::vector<coax::unique_fd>
          taken;  // so that it is beyond what the reactor's table has room for
      do taken.emplace_back(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
      while (taken.back().get() < 700);
      auto listener = coax::listener::bind("127.0.0.1:0");
      auto accepting = coax::within(std::chrono::milliseconds(20), listener->accept());
      const memory::shortage shortage(1, 2);
      auto accepted = co_await std::move(accepting);
      memory::shortage::end();
      CHECK(shortage.happened(1));
      CHECK(accepted.error() == std::errc::timed_out);
    }());
    while (!body.has_ended()) stage.turn();
    CHECK(body.how() == ending::finished);
  }
}

TEST_CASE("a connection that there is no memory for is closed: accept goes on, and connect says so",
          "[promises][memory]") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reactor_stage stage(b);
    actor body([]() -> coax::task<> {
      auto tcp = coax::listener::bind("127.0.0.1:0");
      auto local = coax::listener::bind("unix:@coax-memory-" + std::to_string(::getpid()));
      REQUIRE((tcp && local));
      for (coax::listener* each : {&*tcp, &*local}) {
        const coax::endpoint where = each->local_endpoint().value();
        const auto first = co_await coax::when_all(coax::connect(where), each->accept());
        CHECK((std::get<0>(first) && std::get<1>(first)));
        const coax::unique_fd waits(
            ::socket(where.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        ::connect(waits.get(), where.data(), where.size());  // it is under way
        std::vector<coax::unique_fd> taken;  // what follows is beyond the reactor's table
        do taken.emplace_back(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
        while (taken.back().get() < 700);
        auto accepting = coax::within(std::chrono::milliseconds(20), each->accept());
        const memory::shortage shortage(1, 2);
        auto accepted = co_await std::move(accepting);
        memory::shortage::end();
        CHECK(shortage.happened(1));
        CHECK_FALSE(accepted);
        char next = 0;
        CHECK(::recv(waits.get(), &next, 1, 0) == 0);
        auto connecting = coax::connect(where);
        const memory::shortage again(1, 2);
        auto refused = co_await std::move(connecting);
        memory::shortage::end();
        CHECK(refused.error() == std::errc::not_enough_memory);
      }
    }());
    while (!body.has_ended()) stage.turn();
    CHECK(body.how() == ending::finished);
  }
}

TEST_CASE("a task_local that there was no memory to set is what it was, for all who share it",
          "[promises][memory]") {
  static const coax::task_local<int> number;
  virtual_stage stage;
  actor body([]() -> coax::task<> {
    number.set(1);
    co_await coax::with_scope([](coax::scope& s) -> coax::task<> {
      const auto child = []() -> coax::task<> {
        bool happened = true;
        for (long n = 1; happened; ++n) {
          const memory::shortage shortage(n, n + 1);
          try {
            number.set(2);
          } catch (const std::bad_alloc&) {
          }
          happened = shortage.happened(n);
          memory::shortage::end();
          CHECK(*number.get() == (happened ? 1 : 2));
          co_await coax::yield();
        }
      };
      for (int children = 0; children < 3; ++children) s.spawn(child);
      co_await coax::sleep_for(std::chrono::seconds(1));
      CHECK(*number.get() == 1);
    });
    CHECK(*number.get() == 1);
  }());
  while (!body.has_ended()) stage.turn();
  CHECK(body.how() == ending::finished);
}

TEST_CASE("signals and threads that there is no memory for give std::bad_alloc, and leave nothing",
          "[promises][memory]") {
  coax::detail::signal_hub::instance();
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    int failed = 0;
    const auto reactor = reactor_of(b);
    coax::detail::run_on(*reactor, [&]() -> coax::task<> {
      for (long n = 1;; ++n) {
        bool threw = false;
        try {
          const memory::shortage shortage(n, n + 1);
          const auto waits = coax::signals({SIGUSR1});
        } catch (const std::bad_alloc&) {
          threw = true;
        }
        memory::shortage::end();
        if (!threw) break;
        ++failed;
        co_await coax::yield();
      }
    });
    CHECK(failed > 0);
    CHECK(reactor->in_flight() == 0);
  }
}
