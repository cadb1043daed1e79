#pragma once

#include <coax/config.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/frames.hpp>

#include <cstddef>
#include <cstdint>

namespace coax::inline COAX_ABI {

/// What a reactor has done since it was made, and what it holds now. For a log or a metrics page.
struct reactor_statistics {
  std::uint64_t turns;                 ///< looks at the kernel, each followed by what was ready
  std::uint64_t operations_submitted;  ///< reads, accepts, ... begun, the reactor's own among them
  std::uint64_t operations_completed;  ///< of these, ended with a result or an error
  std::uint64_t operations_cancelled;  ///< of these, given up before that
  std::uint64_t system_calls;          ///< calls of the kernel
  std::size_t ready_high_water;        ///< the most coroutines that were ready at once
  std::size_t timers;                  ///< set now
  std::size_t tasks;                   ///< alive now: spawned, branches, and the reactor's own
  std::size_t frames;  ///< coroutine frames (and records of spawned tasks) alive on this thread
  std::size_t frame_bytes;  ///< their size, in bytes
};

/// Looks at counters that are kept anyway: cheap enough for every second.
///
/// Thread    the reactor's.
inline reactor_statistics statistics(const reactor& r) noexcept {
  return {
      .turns = r.counted().turns,
      .operations_submitted = r.submitted(),
      .operations_completed = r.submitted() - r.cancelled() - r.in_flight(),
      .operations_cancelled = r.cancelled(),
      .system_calls = r.system().count(),
      .ready_high_water = r.counted().ready_high_water,
      .timers = r.deadlines().size(),
      .tasks = r.counted().roots,
      .frames = static_cast<std::size_t>(detail::frames::live()),
      .frame_bytes = static_cast<std::size_t>(detail::frames::live_bytes()),
  };
}

}  // namespace coax::inline COAX_ABI
