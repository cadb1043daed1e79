// The size of coroutine frames in bytes, as the free lists round them, as one line of JSON. Every frame comes
// from the heap here, where its size can be seen.

#define COAX_FRAMES_FROM_HEAP 1
#include "allocations.hpp"

#include <coax/coax.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <span>

using namespace std::chrono_literals;

namespace {

constexpr auto patience = 60s;

using idle_workers = coax::worker_stack<coax::stream>;

// Not inlined: where it can see all of a task, clang takes no memory from the heap for it.

[[gnu::noinline]] coax::task<> nothing() { co_return; }

/// The worker of examples/echo_buffered.cpp, but for its buffer.
[[gnu::noinline]] coax::task<> worker(idle_workers& g_readwrite, std::span<std::byte> buf) {
  while (auto conn = co_await g_readwrite.park()) {
    while (auto n = co_await coax::within(patience, conn->read(buf))) {
      auto sent = co_await coax::within(patience, conn->write(buf.first(*n)));
      if (!sent) break;
    }
  }
}

/// The one of examples/echo.cpp, where streams can `receive`.
template <class Stream>
[[gnu::noinline]] coax::task<> receiving_worker(coax::worker_stack<Stream>& g_readwrite) {
  while (auto conn = co_await g_readwrite.park()) {
    while (const auto lease = co_await coax::within(patience, conn->receive())) {
      auto sent = co_await coax::within(patience, conn->write(lease->bytes()));
      if (!sent) break;
    }
  }
}

/// Of the task `make` gives, which has not run yet.
template <class Make>
std::size_t frame_bytes(Make&& make) {
  [[maybe_unused]] const auto task = make();
  return allocations_of_this_program().last_bytes;
}

template <class Stream>
std::size_t receiving_worker_bytes(coax::worker_stack<Stream>& idle) {
  if constexpr (requires(Stream& s) { s.receive(); })
    return frame_bytes([&] { return receiving_worker(idle); });
  else
    return 0;
}

}  // namespace

int main() {
  idle_workers idle;
  std::printf("{\"trivial\": %zu, \"worker\": %zu, \"receiving_worker\": %zu}\n",
              frame_bytes([] { return nothing(); }), frame_bytes([&] { return worker(idle, {}); }),
              receiving_worker_bytes(idle));
}
