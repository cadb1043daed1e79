#pragma once

#include <coax/config.hpp>
#include <coax/task/address_sanitizer.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#if defined(COAX_ADDRESS_SANITIZER) && !defined(COAX_FRAMES_FROM_HEAP)
#define COAX_FRAMES_FROM_HEAP 1
#endif

namespace coax::inline COAX_ABI::detail {

/// Recycles coroutine frames, and what lives like them, in free lists of the thread.
///
/// A frame is freed by the thread that ran it, nearly always soon before the next one of its size
/// is asked for, so a list per size class answers without the heap. What they keep is capped: when
/// they are full, others go back to the heap for those that come. Under AddressSanitizer every frame
/// comes from the heap, so that the use of a dead one is seen.
///
/// Errors    std::bad_alloc from `allocate`.
/// Thread    any; a block freed on another thread joins that thread's lists.
class frames {
 public:
  [[gnu::always_inline]] static void* allocate(std::size_t size) {
    if (void* recycled = take(size)) return recycled;
    return from_heap(size);
  }

  /// Null when there is no memory.
  [[gnu::always_inline]] static void* try_allocate(std::size_t size) noexcept {
    if (void* recycled = take(size)) return recycled;
    return try_from_heap(size);
  }

  [[gnu::always_inline]] static void deallocate(void* memory, std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    if (!recycles || index >= class_count || !keep(memory, lists_.classes[index]))
      give_up(memory, size);
  }

  /// Frames allocated and not yet freed by this thread.
  static std::ptrdiff_t live() noexcept {
    std::ptrdiff_t sum = lists_.large;
    for (const size_class& each : lists_.classes) sum += each.live();
    return sum;
  }
  /// The memory they take, in bytes.
  static std::ptrdiff_t live_bytes() noexcept {
    std::ptrdiff_t sum = lists_.large_bytes;
    for (std::size_t index = 0; index < class_count; ++index)
      sum += lists_.classes[index].live() * static_cast<std::ptrdiff_t>(bytes_of(index));
    return sum;
  }

 private:
  // 24, 40, 56, ...: with the 8 bytes that malloc keeps in front, these fill its chunks.
  static constexpr std::size_t class_bytes = 16;
  static constexpr std::size_t class_slack = 8;
  // What all lists keep is at most so many shares.
  static constexpr std::size_t share_bytes = std::size_t{4} * 1024;
  static constexpr std::size_t shares_max = 256;
  static constexpr std::size_t class_count = 128;
  // Files built either way may be linked: what differs is whether there is ever a block to be had.
#if defined(COAX_FRAMES_FROM_HEAP)
  static constexpr bool recycles = false;
#else
  static constexpr bool recycles = true;
#endif
  static_assert(class_count * class_bytes <= share_bytes && class_count <= shares_max,
                "each class can have a share, and a share has room for a block of each");

  // Each knows how many are kept, from itself to the last: nothing else need be counted when one is
  // taken or kept.
  struct block {
    block* next;
    std::uint32_t kept;
  };
  struct size_class {
    block* free;
    std::uint32_t kept_max;  // the shares it has, in blocks
    std::ptrdiff_t made;     // from the heap, and not given back to it

    std::uint32_t kept() const noexcept { return free == nullptr ? 0 : free->kept; }
    std::ptrdiff_t live() const noexcept { return made - static_cast<std::ptrdiff_t>(kept()); }
  };
  // Trivial, so that reaching it costs no guard; `returner` gives its blocks back when the thread
  // ends.
  struct lists {
    std::array<size_class, class_count> classes;
    std::ptrdiff_t large;  // live ones beyond all classes
    std::ptrdiff_t large_bytes;
    std::size_t shares;     // that no class has
    std::size_t shrinking;  // the class that gave one last
    enum class state : unsigned char { unused, recycling, gone } now;
  };
  struct returner {
    returner() = default;
    returner(const returner&) = delete;
    returner& operator=(const returner&) = delete;
    ~returner() {
      lists_.now = lists::state::gone;
      for (size_class& each : lists_.classes) shrink(each, 0);
    }
  };

  static std::size_t class_of(std::size_t size) noexcept {
    return (std::max(size, sizeof(block)) + class_slack - 1) / class_bytes;
  }
  static std::size_t bytes_of(std::size_t index) noexcept {
    return index * class_bytes + class_slack;
  }
  static std::uint32_t blocks_a_share(std::size_t index) noexcept {
    return static_cast<std::uint32_t>(share_bytes / bytes_of(index));
  }

  static std::size_t rounded(std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    return index < class_count ? bytes_of(index) : size;
  }

  /// Counts one that came from the heap (+1), or goes back to it (-1).
  static void count(std::size_t size, std::ptrdiff_t change) noexcept {
    const std::size_t index = class_of(size);
    if (index < class_count) {
      lists_.classes[index].made += change;
    } else {
      lists_.large += change;
      lists_.large_bytes += change * static_cast<std::ptrdiff_t>(size);
    }
  }

  /// A block of the class of `size`, if there is one.
  [[gnu::always_inline]] static void* take(std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    if (!recycles || index >= class_count) return nullptr;
    size_class& list = lists_.classes[index];
    block* head = list.free;
    if (head == nullptr) return nullptr;
    list.free = head->next;
    return head;
  }
  /// False when there is no room in `list`.
  [[gnu::always_inline]] static bool keep(void* memory, size_class& list) noexcept {
    const std::uint32_t kept = list.kept();
    if (kept == list.kept_max) return false;
    list.free = ::new (memory) block{list.free, kept + 1};
    return true;
  }

  static void* counted(void* fresh, std::size_t size) noexcept {
    count(size, 1);
    COAX_BYTES_OUT_OF_USE(static_cast<std::byte*>(fresh) + size, rounded(size) - size);
    return fresh;
  }
  [[gnu::noinline]] static void* from_heap(std::size_t size) {
    return counted(::operator new(rounded(size)), size);
  }

  [[gnu::noinline]] static void* try_from_heap(std::size_t size) noexcept {
    void* fresh = ::operator new(rounded(size), std::nothrow);
    return fresh == nullptr ? nullptr : counted(fresh, size);
  }

  /// Frees one that its list has no room for, or makes room for it.
  [[gnu::noinline, gnu::cold]] static void give_up(void* memory, std::size_t size) noexcept {
    const std::size_t index = class_of(size);
    if (recycles && index < class_count && may_recycle() && get_share(index) &&
        keep(memory, lists_.classes[index]))
      return;
    count(size, -1);
    COAX_BYTES_IN_USE(memory, rounded(size));
    ::operator delete(memory);
  }

  /// True until the thread ends; the first call sees to it that its blocks are given back then.
  static bool may_recycle() noexcept {
    if (lists_.now == lists::state::unused) {
      static thread_local returner at_thread_end;
      static_cast<void>(at_thread_end);
      lists_.shares = shares_max;
      lists_.now = lists::state::recycling;
    }
    return lists_.now == lists::state::recycling;
  }

  /// One more share for a class. When there is none left, the others give one in turn, and what they
  /// keep there back to the heap, so that a size that was needed once does not keep others from being
  /// recycled. False when this class has them all.
  static bool get_share(std::size_t index) noexcept {
    lists& own = lists_;
    if (own.shares > 0)
      --own.shares;
    else if (!others_give_one(index))
      return false;
    own.classes[index].kept_max += blocks_a_share(index);
    return true;
  }
  static bool others_give_one(std::size_t index) noexcept {
    lists& own = lists_;
    for (std::size_t tried = 0; tried < class_count; ++tried) {
      if (++own.shrinking >= class_count) own.shrinking = 0;
      size_class& giver = own.classes[own.shrinking];
      if (own.shrinking == index || giver.kept_max == 0) continue;
      shrink(giver, giver.kept_max - blocks_a_share(own.shrinking));
      return true;
    }
    return false;
  }
  static void shrink(size_class& list, std::uint32_t kept_max) noexcept {
    list.kept_max = kept_max;
    for (; list.kept() > kept_max; --list.made)
      ::operator delete(std::exchange(list.free, list.free->next));
  }

  static inline constinit thread_local lists lists_{};
};

/// Gives a class, or a promise and so its coroutine frames, memory from `frames`.
struct framed {
  [[gnu::always_inline]] static void* operator new(std::size_t size) {
    return frames::allocate(size);
  }
  [[gnu::always_inline]] static void operator delete(void* memory, std::size_t size) noexcept {
    frames::deallocate(memory, size);
  }
  static void* operator new(std::size_t size, std::align_val_t alignment) {
    return ::operator new(size, alignment);
  }
  static void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
    ::operator delete(memory, alignment);
  }
  // For a constructor that throws.
  static void operator delete(void* memory, std::align_val_t alignment) noexcept {
    ::operator delete(memory, alignment);
  }
};

}  // namespace coax::inline COAX_ABI::detail
