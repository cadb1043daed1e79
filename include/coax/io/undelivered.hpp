#pragma once

#include <coax/config.hpp>
#include <coax/io/inbox.hpp>
#include <coax/task/fatal.hpp>

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// What was received ahead for streams that outlive their run: nobody else has these bytes any
/// more, and the next run that reads such a stream gets them.
///
/// Thread    any.
class undelivered {
 public:
  static void keep(int fd, inbox&& received) noexcept {
    auto* made = new (std::nothrow) entry{fd, std::move(received), nullptr};
    if (made == nullptr)
      fatal("no memory to keep what a stream that outlives its run has received");
    const std::lock_guard lock(mutex_);
    made->next = std::exchange(first_, made);
    ++count_;
  }

  /// Gives what is kept for `fd`, once. What was kept for a number that stands for another
  /// connection now is to be taken too, and dropped.
  static inbox take(int fd) noexcept {
    if (count_.load(std::memory_order_acquire) == 0) return {};
    const std::lock_guard lock(mutex_);
    for (entry** at = &first_; *at != nullptr; at = &(*at)->next) {
      if ((*at)->fd != fd) continue;
      const std::unique_ptr<entry> found(*at);
      *at = found->next;
      --count_;
      return std::move(found->received);
    }
    return {};
  }

 private:
  struct entry {
    int fd;
    inbox received;
    entry* next;
  };

  static inline std::mutex mutex_;
  static inline entry* first_ = nullptr;
  static inline std::atomic<std::size_t> count_{0};
};

}  // namespace coax::inline COAX_ABI::detail
