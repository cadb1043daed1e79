#pragma once

#include <coax/config.hpp>

#include <array>
#include <cstddef>
#include <new>
#include <utility>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COAX_FRAMES_FROM_HEAP 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define COAX_FRAMES_FROM_HEAP 1
#endif

namespace coax::inline COAX_ABI::detail {

/// Recycles coroutine frames, and what lives like them, in free lists of the thread.
///
/// A frame is freed by the thread that ran it, nearly always soon before the next one of its size
/// is asked for, so a list per size class answers without the heap. What they keep is capped: when
/// they are full, others go back to the heap for each that comes. Under AddressSanitizer every frame
/// comes from the heap, so that the use of a dead one is seen.
///
/// Errors    std::bad_alloc from `allocate`.
/// Thread    any; a block freed on another thread joins that thread's lists.
class frames {
 public:
  static void* allocate(std::size_t size) {
    if (void* recycled = take(size)) return recycled;
    void* fresh = ::operator new(rounded(size));
    count_fresh(size);
    return fresh;
  }

  /// Null when there is no memory.
  static void* try_allocate(std::size_t size) noexcept {
    if (void* recycled = take(size)) return recycled;
    void* fresh = ::operator new(rounded(size), std::nothrow);
    if (fresh != nullptr) count_fresh(size);
    return fresh;
  }

  static void deallocate(void* memory, std::size_t size) noexcept {
    lists& own = lists_;
    const std::size_t index = class_of(size);
    if (index >= class_count || own.kept_bytes >= own.allowed) return give_up(memory, size);
    size_class& list = own.classes[index];
    list.free = ::new (memory) block{list.free};
    --list.live;
    own.kept_bytes += bytes_of(index);
  }

  /// Frames allocated and not yet freed by this thread.
  static std::ptrdiff_t live() noexcept {
    std::ptrdiff_t sum = lists_.large;
    for (const size_class& each : lists_.classes) sum += each.live;
    return sum;
  }
  /// The memory they take, in bytes.
  static std::ptrdiff_t live_bytes() noexcept {
    std::ptrdiff_t sum = lists_.large_bytes;
    for (std::size_t index = 0; index < class_count; ++index)
      sum += lists_.classes[index].live * static_cast<std::ptrdiff_t>(bytes_of(index));
    return sum;
  }

 private:
  // 24, 40, 56, ...: with the 8 bytes that malloc keeps in front, these fill its chunks.
  static constexpr std::size_t class_bytes = 16;
  static constexpr std::size_t class_slack = 8;
  static constexpr std::size_t kept_bytes_max = std::size_t{1024} * 1024;  // in all classes
#if defined(COAX_FRAMES_FROM_HEAP)
  static constexpr std::size_t class_count = 0;
#else
  static constexpr std::size_t class_count = 128;
#endif

  struct block {
    block* next;
  };
  struct size_class {
    block* free;
    std::ptrdiff_t live;
  };
  // Trivial, so that reaching it costs no guard; `returner` gives its blocks back when the thread
  // ends.
  struct lists {
    std::array<size_class, class_count> classes;
    std::size_t kept_bytes;
    std::size_t allowed;   // 0 until `returner` is there, and when it is gone
    std::ptrdiff_t large;  // live ones beyond all classes
    std::ptrdiff_t large_bytes;
    std::size_t shrinking;  // the class that gives way to others
    bool had_returner;
  };
  struct returner {
    returner() = default;
    returner(const returner&) = delete;
    returner& operator=(const returner&) = delete;
    ~returner() {
      lists_.allowed = 0;
      for (size_class& each : lists_.classes)
        while (each.free != nullptr) ::operator delete(std::exchange(each.free, each.free->next));
    }
  };

  static std::size_t class_of(std::size_t size) noexcept {
    return (size + class_slack - 1) / class_bytes;
  }
  static std::size_t bytes_of(std::size_t index) noexcept {
    return index * class_bytes + class_slack;
  }

  static std::size_t rounded(std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    return index < class_count ? bytes_of(index) : size;
  }

  static void count_fresh(std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    if (index < class_count) {
      ++lists_.classes[index].live;
    } else {
      ++lists_.large;
      lists_.large_bytes += static_cast<std::ptrdiff_t>(size);
    }
  }

  /// A block of the class of `size`, if there is one.
  static void* take(std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    if (index >= class_count) return nullptr;
    lists& own = lists_;
    size_class& list = own.classes[index];
    block* head = list.free;
    if (head == nullptr) return nullptr;
    list.free = head->next;
    ++list.live;
    own.kept_bytes -= bytes_of(index);
    return head;
  }

  /// Frees one that no list has room for, or makes room for it.
  [[gnu::noinline, gnu::cold]] static void give_up(void* memory, std::size_t size) noexcept {
    lists& own = lists_;
    const std::size_t index = class_of(size);
    if (index >= class_count) {
      --own.large;
      own.large_bytes -= static_cast<std::ptrdiff_t>(size);
    } else if (make_room()) {
      return deallocate(memory, size);
    } else {
      --own.classes[index].live;
    }
    ::operator delete(memory);
  }

  /// Gives blocks back to the heap, so that a size that was needed once does not keep others from
  /// being recycled. False when the thread has ended.
  static bool make_room() noexcept {
    lists& own = lists_;
    if (!std::exchange(own.had_returner, true)) {
      static thread_local returner at_thread_end;
      static_cast<void>(at_thread_end);
      own.allowed = kept_bytes_max;
    }
    if (own.allowed == 0) return false;
    while (own.kept_bytes >= own.allowed) {
      block*& head = own.classes[own.shrinking].free;
      if (head == nullptr) {
        if (++own.shrinking == class_count) own.shrinking = 0;
        continue;
      }
      ::operator delete(std::exchange(head, head->next));
      own.kept_bytes -= bytes_of(own.shrinking);
    }
    return true;
  }

  static inline constinit thread_local lists lists_{};
};

/// Gives a class, or a promise and so its coroutine frames, memory from `frames`.
struct framed {
  static void* operator new(std::size_t size) { return frames::allocate(size); }
  static void operator delete(void* memory, std::size_t size) noexcept {
    frames::deallocate(memory, size);
  }
  static void* operator new(std::size_t size, std::align_val_t alignment) {
    return ::operator new(size, alignment);
  }
  static void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
    ::operator delete(memory, alignment);
  }
};

}  // namespace coax::inline COAX_ABI::detail
