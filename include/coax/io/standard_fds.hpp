#pragma once

#include <coax/config.hpp>
#include <coax/io/unique_fd.hpp>

#include <sys/eventfd.h>

#include <array>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// For as long as it lives, the numbers 0, 1 and 2 are taken. In a program that was started without one of
/// them, what coax opens for itself must not pass for a standard stream: who reads that would take away
/// a wake-up.
class standard_fds_taken {
 public:
  standard_fds_taken() noexcept {
    for (unique_fd& each : held_) {
      unique_fd lowest(::eventfd(0, EFD_CLOEXEC));
      if (!lowest || lowest.get() > 2) return;
      each = std::move(lowest);
    }
  }

 private:
  std::array<unique_fd, 3> held_;
};

}  // namespace coax::inline COAX_ABI::detail
