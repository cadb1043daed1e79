#pragma once

#include <coax/config.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/task/exceptions.hpp>

#include <cstddef>
#include <vector>

namespace coax::inline COAX_ABI::detail {

/// Descriptors that are good for nothing but to be closed, so that a process which has run out of them can
/// still take the connection that woke it.
class spare_fds {
 public:
  explicit spare_fds(syscalls& calls) noexcept : calls_(calls) {}
  spare_fds(const spare_fds&) = delete;
  spare_fds& operator=(const spare_fds&) = delete;
  ~spare_fds() { give_up(); }

  /// Sees to it that there are `count`. False when one is not to be had.
  bool hold(std::size_t count) noexcept {
    while (held_.size() < count) {
      const int made = calls_.eventfd();
      if (made < 0) return false;
      if (!caught([&] { held_.push_back(made); })) continue;
      calls_.close(made);
      return false;
    }
    return true;
  }

  void give_up_one() noexcept {
    if (held_.empty()) return;
    calls_.close(held_.back());
    held_.pop_back();
  }
  void give_up() noexcept {
    while (!held_.empty()) give_up_one();
  }

 private:
  syscalls& calls_;
  std::vector<int> held_;
};

}  // namespace coax::inline COAX_ABI::detail
