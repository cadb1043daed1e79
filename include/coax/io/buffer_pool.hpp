#pragma once

#include <coax/config.hpp>
#include <coax/task/address_sanitizer.hpp>
#include <coax/task/frames.hpp>

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <utility>

namespace coax::inline COAX_ABI::detail {

class buffer_pool;

/// What stands in front of the bytes of a buffer that is received into.
///
/// It is one cache line, so that the beginnings of a pool's buffers, which is all that short
/// messages touch, do not share one set of the cache.
struct alignas(64) buffer {
  static constexpr std::uint32_t bytes_max = 32 * 1024;

  buffer* next = nullptr;       // in the list it is in: free, or received
  buffer_pool* pool = nullptr;  // null: it has its memory from the heap
  std::uint32_t begin = 0;      // what was received, and not yet read
  std::uint32_t size = 0;
  std::uint16_t number = 0;  // in its pool

  std::byte* data() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
  std::span<std::byte> bytes() noexcept { return {data() + begin, size}; }
  void fill(std::uint32_t count) noexcept {
    begin = 0;
    size = count;
  }
  void skip(std::uint32_t count) noexcept {
    begin += count;
    size -= count;
  }

  /// A buffer for when the pool has none: it is nobody else's. Null when there is no memory.
  [[gnu::noinline, gnu::cold]] static buffer* make_private() noexcept {
    void* memory = ::operator new(stride, std::align_val_t(alignof(buffer)), std::nothrow);
    return memory == nullptr ? nullptr : ::new (memory) buffer;
  }

  /// Gives it back to where it is from.
  void release() noexcept;

  static constexpr std::size_t stride = 64 + bytes_max;
};
static_assert(sizeof(buffer) == buffer::stride - buffer::bytes_max);

/// The buffers a reactor receives into. Only what was received is in use: a connection that is idle
/// holds none.
///
/// Memory is taken from the system as it is first used, up to `count_max` buffers, and the one that
/// came back last serves next. Buffers may outlive the reactor, and the pool lives as long as they
/// do.
///
/// Thread    the reactor's; buffers may be given back by any.
class buffer_pool {
 public:
  static constexpr std::uint32_t count_max = 1024;

  struct abandoned {
    void operator()(buffer_pool* pool) const noexcept { pool->abandon(); }
  };
  using owned = std::unique_ptr<buffer_pool, abandoned>;

  /// Null when there is no room.
  static owned make() noexcept {
    void* memory = ::mmap(nullptr, bytes_all, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* const made = new (std::nothrow) buffer_pool(memory);
    if (made == nullptr) ::munmap(memory, bytes_all);
    return owned(made);
  }
  buffer_pool(const buffer_pool&) = delete;
  buffer_pool& operator=(const buffer_pool&) = delete;

  /// The reactor is done with it; whoever gives the last buffer back ends it.
  void abandon() noexcept {
    left_ = in_use_ + 1;  // this call's own, so that nobody ends the pool before it has
    abandoned_ = true;
    std::size_t came_back = 1;
    for (buffer* b = returned_.exchange(closed()); b != nullptr; b = b->next) ++came_back;
    if (left_.fetch_sub(came_back) == came_back) delete this;
  }

  /// Null when all are in use.
  buffer* take() noexcept {
    if (free_ == nullptr && returned_.load(std::memory_order_relaxed) != nullptr) take_back();
    buffer* b = free_;
    if (b != nullptr) {
      free_ = b->next;
    } else {
      if (made_ == count_max) return nullptr;
      b = ::new (memory_ + made_ * buffer::stride) buffer;
      b->pool = this;
      b->number = static_cast<std::uint16_t>(made_);
      ++made_;
    }
    ++in_use_;
    COAX_BYTES_IN_USE(b->data(), buffer::bytes_max);
    return b;
  }

  void give_back(buffer& b) noexcept {
    COAX_BYTES_OUT_OF_USE(b.data(), buffer::bytes_max);
    if (home_ != &here_ || abandoned_.load(std::memory_order_relaxed)) return give_back_late(b);
    b.next = std::exchange(free_, &b);
    --in_use_;
  }

  /// So many that were taken will not be given back one by one.
  void write_off(std::size_t count) noexcept { in_use_ -= count; }

  std::size_t in_use() const noexcept { return in_use_; }

  buffer& at(std::uint16_t number) noexcept {
    return *std::launder(reinterpret_cast<buffer*>(memory_ + number * buffer::stride));
  }

 private:
  /// On another thread, or when the reactor has gone.
  [[gnu::noinline, gnu::cold]] void give_back_late(buffer& b) noexcept {
    buffer* others = returned_.load();
    while (others != closed()) {
      b.next = others;
      if (returned_.compare_exchange_weak(others, &b)) return;
    }
    if (left_.fetch_sub(1) == 1) delete this;
  }
  [[gnu::noinline, gnu::cold]] void take_back() noexcept {
    for (buffer* b = returned_.exchange(nullptr); b != nullptr; --in_use_) {
      buffer* const next = b->next;
      b->next = std::exchange(free_, b);
      b = next;
    }
  }
  /// Stands in `returned_` when the pool is abandoned.
  buffer* closed() noexcept { return reinterpret_cast<buffer*>(this); }

  static constexpr std::size_t bytes_all = count_max * buffer::stride;
  static_assert(count_max <= UINT16_MAX);

  explicit buffer_pool(void* memory) noexcept : memory_(static_cast<std::byte*>(memory)) {}
  ~buffer_pool() {
    COAX_BYTES_IN_USE(memory_, bytes_all);
    ::munmap(memory_, bytes_all);
  }

  std::byte* memory_;
  buffer* free_ = nullptr;
  std::size_t made_ = 0;  // buffers that have been used at all
  std::size_t in_use_ = 0;
  std::atomic<buffer*> returned_{nullptr};  // by other threads
  std::atomic<std::size_t> left_{0};        // in use, once it is abandoned
  std::atomic<bool> abandoned_{false};

  static inline thread_local char here_ = 0;  // its address tells threads apart
  const char* home_ = &here_;
};

inline void buffer::release() noexcept {
  if (pool != nullptr) return pool->give_back(*this);
  this->~buffer();
  ::operator delete(static_cast<void*>(this), std::align_val_t(alignof(buffer)));
}

}  // namespace coax::inline COAX_ABI::detail
