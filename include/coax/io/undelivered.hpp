#pragma once

#include <coax/config.hpp>
#include <coax/io/inbox.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/task/fatal.hpp>

#include <sys/socket.h>

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
    made->next = std::exchange(first_, made);
    ++count_;
  }

  /// Gives what is kept for `fd`, once. What was kept for a number that stands for another
  /// connection now is to be taken too, and dropped.
  static kept_of_stream take(int fd) noexcept {
    if (count_.load(std::memory_order_acquire) == 0) return {};
    const std::lock_guard lock(mutex_);
    for (entry** at = &first_; *at != nullptr; at = &(*at)->next) {
      if ((*at)->fd != fd) continue;
      const std::unique_ptr<entry> found(*at);
      *at = found->next;
      --count_;
      return std::move(found->kept);
    }
    return {};
  }

  /// Has the connection reset when it is closed, as the kernel does where it has the bytes that nobody
  /// read. (Of TCP. A Unix socket cannot be asked to.)
  static void reset_on_close(syscalls& calls, int fd) noexcept {
    const linger at_once{1, 0};
    calls.setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  }
  /// The same though something in the kernel, of another thread's, keeps the socket from being closed.
  static void reset_at_once(syscalls& calls, int fd) noexcept {
    sockaddr nobody{};
    nobody.sa_family = AF_UNSPEC;
    // As connect(2) has it, that dissolves the association of TCP. Others cannot be reset.
    if (calls.connect(fd, &nobody, sizeof(nobody)) < 0) calls.shutdown(fd, SHUT_RDWR);
  }

 private:
  struct entry {
    int fd;
    kept_of_stream kept;
    entry* next;
  };

  static inline std::mutex mutex_;
  static inline entry* first_ = nullptr;
  static inline std::atomic<std::size_t> count_{0};
};

}  // namespace coax::inline COAX_ABI::detail
