#include "net_scenarios.hpp"

#include <pthread.h>

#include <stdexcept>

/// 100,000 of everything, on reactors, on a stack that does not hold one C++ frame for each of them.

using namespace std::chrono_literals;
using coax::task;
using scenarios::connected;

namespace {

constexpr int many = 100'000;

/// Runs what `body()` gives on each backend, on a thread with a stack of 1 MiB, and checks that nothing is left.
template <class Body>
void on_each_backend_with_a_small_stack(Body body) {
  coax::detail::signal_hub::instance();  // opens its descriptor once, for good
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const int descriptors = open_descriptors();
    std::ptrdiff_t frames = -1;
    std::size_t roots = 1;
    auto action = [&] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, body);
      frames = coax::detail::frames::live();
      roots = reactor->counted().roots;
    };
    pthread_attr_t small{};
    pthread_t thread{};
    REQUIRE(::pthread_attr_init(&small) == 0);
    REQUIRE(::pthread_attr_setstacksize(&small, std::size_t{1} << 20) == 0);
    const auto call = [](void* it) -> void* {
      (*static_cast<decltype(action)*>(it))();
      return nullptr;
    };
    REQUIRE(::pthread_create(&thread, &small, call, &action) == 0);
    ::pthread_join(thread, nullptr);
    ::pthread_attr_destroy(&small);
    CHECK(frames == 0);
    CHECK(roots == 0);
    CHECK(token::alive == 0);
    CHECK(open_descriptors() == descriptors);
  }
}

/// Lets `t` begin and wait, cancels it, and waits until it has unwound.
task<bool> unwinds(task<> t) {
  actor all(std::move(t));
  for (int i = 0; i < 2 * many / 64; ++i) co_await coax::yield();
  all.cancel();
  while (!all.has_ended()) co_await coax::yield();
  co_return all.how() == ending::unwound;
}

task<> descend(coax::stream& conn, int below) {
  const token t;
  if (below > 0) co_return co_await descend(conn, below - 1);
  std::array<std::byte, 8> some;
  auto n = co_await conn.read(some);
  n.value();
}

task<int> nested(coax::stream& conn, int below) {
  const token t;
  if (below > 0) {
    auto in_time = co_await coax::within(1h, nested(conn, below - 1));
    co_return in_time ? *in_time : -1;
  }
  std::array<std::byte, 8> some;
  auto n = co_await conn.read(some);
  co_return n ? 1 : 0;
}
task<> nested_for_nothing(coax::stream& conn) {
  auto one = co_await nested(conn, many);
  static_cast<void>(one);
}

}  // namespace

TEST_CASE("a million reads and waits that complete at once take constant stack", "[promises]") {
  int total = 0;
  on_each_backend_with_a_small_stack([&]() -> task<> {
    connected sockets;
    coax::stream conn = scenarios::adopted(sockets.near);
    coax::event set;
    set.set();
    const auto nothing = [&]() -> task<int> {
      auto n = co_await conn.read({});
      co_return n ? 1 : 0;
    };
    total = 0;
    for (int i = 0; i < 500'000; ++i) {
      const int one = co_await nothing();
      total += one;
      co_await set.wait();
    }
  });
  CHECK(total == 500'000);
}

TEST_CASE("one cancel unwinds a hundred thousand nested awaits with a read at the bottom",
          "[promises]") {
  bool unwound = false;
  on_each_backend_with_a_small_stack([&]() -> task<> {
    connected sockets;
    coax::stream conn = scenarios::adopted(sockets.near);
    unwound = co_await unwinds(descend(conn, many));
  });
  CHECK(unwound);
}

TEST_CASE("one cancel unwinds a hundred thousand timeouts within each other", "[promises]") {
  bool unwound = false;
  on_each_backend_with_a_small_stack([&]() -> task<> {
    connected sockets;
    coax::stream conn = scenarios::adopted(sockets.near);
    unwound = co_await unwinds(nested_for_nothing(conn));
  });
  CHECK(unwound);
}

TEST_CASE("a run ends while a hundred thousand tasks are parked", "[promises]") {
  for (const bool throws : {false, true}) {
    int left_early = 0;
    bool caught = false;
    on_each_backend_with_a_small_stack([&]() -> task<> {
      coax::worker_stack<token> idle;
      coax::channel<token> pipe(1);
      coax::event never;
      const auto parks = [&]() -> task<> {
        const token t;
        auto got = co_await idle.park();
        left_early += got ? 1 : 0;
      };
      const auto receives = [&]() -> task<> {
        const token t;
        auto got = co_await pipe.receive();
        left_early += got ? 1 : 0;
      };
      const auto waits = [&]() -> task<> {
        const token t;
        co_await never.wait();
        ++left_early;
      };
      const auto sleeps = [&]() -> task<> {
        const token t;
        co_await coax::sleep_for(1h);
        ++left_early;
      };
      try {
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          for (int i = 0; i < many / 4; ++i) {
            s.spawn(std::ref(parks));
            s.spawn(std::ref(receives));
            s.spawn(std::ref(waits));
            s.spawn(std::ref(sleeps));
          }
          for (int i = 0; i < 2 * many / 256; ++i) co_await coax::yield();
          if (throws) throw std::runtime_error("the end");
          s.cancel();
        });
      } catch (const std::runtime_error&) {
        caught = true;
      }
    });
    CHECK(left_early == 0);
    CHECK(caught == throws);
  }
}
