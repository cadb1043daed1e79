#include <coax/io/statistics.hpp>

#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "each_backend.hpp"
#include "sockets.hpp"

#include <array>
#include <chrono>

using namespace std::chrono_literals;

namespace {

coax::reactor_statistics now_here() { return coax::statistics(coax::reactor::current()); }

}  // namespace

TEST_CASE("statistics count operations by how they ended, and what they cost") {
  on_each_backend([]() -> coax::task<> {
    fd_pair pipe = pipe_to_us();
    std::array<std::byte, 8> buffer{};
    const auto before = now_here();
    for (int i = 0; i < 10; ++i) {
      put(pipe.theirs, "x");
      auto got = co_await coax::read(pipe.ours.get(), buffer);
      CHECK(got);
    }
    auto late = co_await coax::within(0ns, coax::read(pipe.ours.get(), buffer));
    CHECK(late.error() == std::errc::timed_out);
    const auto after = now_here();
    CHECK(after.operations_submitted == before.operations_submitted + 11);
    CHECK(after.operations_completed == before.operations_completed + 10);
    CHECK(after.operations_cancelled == before.operations_cancelled + 1);
    CHECK(after.system_calls >= before.system_calls + 10);
    CHECK(after.turns > before.turns);
  });
}

TEST_CASE("statistics tell what is alive") {
  on_each_backend([]() -> coax::task<> {
    const auto before = now_here();
    coax::reactor_statistics during{};
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      for (int i = 0; i < 50; ++i) s.spawn([]() -> coax::task<> { co_await coax::sleep_for(1h); });
      co_await turns();
      during = now_here();
      s.cancel();
    });
    CHECK(during.tasks == before.tasks + 51);  // and the body of the scope
    CHECK(during.timers == before.timers + 50);
    CHECK(during.frames >= before.frames + 51);
    CHECK(during.frame_bytes >= before.frame_bytes + std::size_t{51} * 64);
    CHECK(during.ready_high_water >= 50);
    const auto after = now_here();
    CHECK(after.tasks == before.tasks);
    CHECK(after.timers == before.timers);
    CHECK(after.frames == before.frames);
    CHECK(after.frame_bytes == before.frame_bytes);
  });
}
