#pragma once

#include <coax/config.hpp>
#include <coax/io/inbox.hpp>
#include <coax/task/fatal.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// What the next run has to know of a stream that outlives its run: what was received ahead, which nobody
/// else has any more, and what has failed.
struct kept_of_stream {
  inbox received{};
  bool read_cut = false;
  bool write_cut = false;
  std::uint8_t lost = 0;
};

/// Of all such streams, until the next run that uses one takes over what is kept of it.
///
/// Thread    any.
class undelivered {
 public:
  static void keep(int fd, kept_of_stream kept) noexcept {
    auto* made = new (std::nothrow) entry{fd, std::move(kept), nullptr};
    if (made == nullptr) fatal("no memory to keep the state of a stream that outlives its run");
    const std::lock_guard lock(mutex_);
    made->next = std::exchange(first_of(fd), made);
    ++count_;
  }

  /// Gives what is kept for `fd`, once. What was kept for a number that stands for another
  /// connection now is to be taken too, and dropped.
  static kept_of_stream take(int fd) noexcept {
    if (count_.load(std::memory_order_acquire) == 0) return {};
    const std::lock_guard lock(mutex_);
    for (entry** at = &first_of(fd); *at != nullptr; at = &(*at)->next) {
      if ((*at)->fd != fd) continue;
      const std::unique_ptr<entry> found(*at);
      *at = found->next;
      --count_;
      return std::move(found->kept);
    }
    return {};
  }

 private:
  struct entry {
    int fd;
    kept_of_stream kept;
    entry* next;
  };

  static constexpr std::size_t lists = 1024;

  /// Of the list that `fd` is kept in.
  static entry*& first_of(int fd) noexcept { return first_[static_cast<unsigned>(fd) % lists]; }

  static inline std::mutex mutex_;
  static inline std::array<entry*, lists> first_{};
  static inline std::atomic<std::size_t> count_{0};
};

}  // namespace coax::inline COAX_ABI::detail
