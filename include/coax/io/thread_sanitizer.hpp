#pragma once

#include <coax/config.hpp>

#if !defined(COAX_WITHOUT_URING)
#include <liburing.h>
#endif
#include <poll.h>

#include <atomic>

#if defined(__SANITIZE_THREAD__)
#define COAX_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define COAX_THREAD_SANITIZER 1
#endif
#endif

/// ThreadSanitizer knows the calls of the C library, but not those that liburing and coax make of
/// the kernel by themselves. What it has to be told is here; in other builds there is nothing to
/// tell.
namespace coax::inline COAX_ABI::detail {

#if defined(COAX_THREAD_SANITIZER)
inline constexpr bool under_thread_sanitizer = true;
#else
inline constexpr bool under_thread_sanitizer = false;
#endif

#if !defined(COAX_WITHOUT_URING)

/// All accesses to the memory of one ring, before it is unmapped, come before those to another that
/// the kernel maps at the same place.
class ring_memory {
 public:
  static void mapped() noexcept {
    if constexpr (under_thread_sanitizer)
      static_cast<void>(unmapped_.load(std::memory_order_acquire));
  }
  static void about_to_be_unmapped() noexcept {
    if constexpr (under_thread_sanitizer) unmapped_.fetch_add(1, std::memory_order_release);
  }

 private:
  static inline std::atomic<unsigned> unmapped_{0};
};

/// It keeps a signal from its handler until the next call it knows, and io_uring_enter(2) is none:
/// here is such a call, and how long the wait for a completion may be before it comes here again; null
/// for ever.
inline __kernel_timespec* let_signals_in() noexcept {
  if constexpr (!under_thread_sanitizer) return nullptr;
  static __kernel_timespec soon{0, 10'000'000};
  ::poll(nullptr, 0, 0);
  return &soon;
}

#endif

}  // namespace coax::inline COAX_ABI::detail
