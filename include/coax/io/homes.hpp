#pragma once

#include <coax/config.hpp>
#include <coax/io/owner.hpp>
#include <coax/task/fatal.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace coax::inline COAX_ABI::detail {

/// The reactor on which each stream lives while that one runs, by its loop::number. In debug builds it ends the
/// program with a message when a stream is read or written on another.
///
/// Thread    any.
class homes {
 public:
  static void moves_in(int fd, std::uint32_t reactor) noexcept {
    if (is_watched(fd)) home_of(fd) = as_home(reactor);
  }
  /// The run of its reactor ends. False when its number is another's by now.
  static bool moves_out(int fd, std::uint32_t reactor) noexcept {
    std::uint64_t home = as_home(reactor);
    return !is_watched(fd) || home_of(fd).compare_exchange_strong(home, 0);
  }

  static void check([[maybe_unused]] int fd, [[maybe_unused]] std::uint32_t reactor) noexcept {
#ifndef NDEBUG
    if (!is_watched(fd)) return;
    const std::uint64_t home = home_of(fd);
    const bool is_of_this_process = home >> 32 == forks_so_far();
    if (home != 0 && is_of_this_process && home != as_home(reactor))
      fatal(
          "a stream was read or written on another thread than that of its reactor: what was made on a reactor "
          "belongs to its thread, only an open listener may be shared");
#endif
  }

 private:
  static constexpr std::size_t fds_max = std::size_t{1} << 20;  // beyond, nothing is noticed

  static std::uint64_t as_home(std::uint32_t reactor) noexcept {
    return std::uint64_t{forks_so_far()} << 32 | reactor;
  }
  static bool is_watched(int fd) noexcept {
    return fd >= 0 && static_cast<std::size_t>(fd) < fds_max;
  }
  static std::atomic_ref<std::uint64_t> home_of(int fd) noexcept {
    return std::atomic_ref(homes_[static_cast<std::size_t>(fd)]);
  }

  static inline std::uint64_t homes_[fds_max];  // untouched pages take no memory
};

}  // namespace coax::inline COAX_ABI::detail
