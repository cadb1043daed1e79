#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include <array>
#include <chrono>
#include <string>

// options::spin: looking for something to do instead of sleeping.

using namespace std::chrono_literals;

namespace {

/// Counts how often the ring is entered to sleep.
class sleeps final : public coax::syscalls {
 public:
  int count = 0;

#if !defined(COAX_WITHOUT_URING)
  int ring_submit_and_wait(io_uring& ring) noexcept override {
    ++count;
    return syscalls::ring_submit_and_wait(ring);
  }
#endif
};

coax::task<> exchange() {
  fd_pair p = unix_pair();
  const taken_over socket(std::move(p.ours));
  for (int i = 0; i < 100; ++i) {
    const std::string text = std::to_string(i);
    put(p.theirs, text);
    std::array<std::byte, 16> some;
    auto n = co_await receive(socket.get(), some);
    REQUIRE(n);
    REQUIRE(text_of(std::span(some).first(*n)) == text);
    auto sent = co_await send_all(socket.get(), text);
    REQUIRE(sent);
    REQUIRE(drain(p.theirs.get()) == text);
  }
}

}  // namespace

TEST_CASE("a reactor that spins finds what there is without sleeping") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    sleeps calls;
    const auto reactor = reactor_of(b, calls);
    reactor->set_spin(1h);
    run_clean(*reactor, exchange);
    CHECK(calls.count == 0);
  }
}

TEST_CASE("spinning lets timers and timeouts end in time, and stops when its time is over") {
  for (const coax::backend b : backends_here()) {
    for (const coax::clock::duration how_long :
         {coax::clock::duration(1us), coax::clock::duration(1h), coax::clock::duration(-1)}) {
      INFO("on " << name_of(b));
      const auto reactor = reactor_of(b);
      reactor->set_spin(how_long);
      run_clean(*reactor, []() -> coax::task<> {
        const fd_pair p = unix_pair();
        std::array<std::byte, 16> some;
        auto late = co_await coax::within(1ms, coax::read(p.ours.get(), some));
        CHECK(late.error() == std::errc::timed_out);
        co_await coax::sleep_for(1ms);
      });
    }
  }
}

TEST_CASE("options set how long a reactor spins") {
  for (const coax::backend b : backends_here()) {
    coax::options spinning;
    spinning.backend = b;
    spinning.spin = 50us;
    CHECK(coax::make_reactor(spinning)->spins_for().value() == 50us);
    coax::run(spinning, exchange);
  }
}
