#pragma once

#include <coax/config.hpp>

#if !defined(COAX_WITHOUT_URING)

#include <coax/io/buffer_pool.hpp>

#include <liburing.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace coax::inline COAX_ABI::detail {

inline constexpr std::uint16_t provided_group = 0;

/// Fills a submission: receive again and again, into provided buffers.
inline void prepare_multishot_recv(io_uring_sqe& sqe, int fd) noexcept {
  io_uring_prep_recv(&sqe, fd, nullptr, 0, 0);
  sqe.ioprio |= IORING_RECV_MULTISHOT;
  sqe.flags |= IOSQE_BUFFER_SELECT;
  sqe.buf_group = provided_group;
}

/// The ring through which the kernel is provided with buffers of a pool, for multishot receives.
///
/// As few are provided as turn out to be enough: those in the ring are used in turn, and each is
/// memory that does not stay in the cache.
class provided_buffers {
 public:
  static constexpr std::uint32_t entries = buffer_pool::count_max;

  provided_buffers() = default;
  provided_buffers(const provided_buffers&) = delete;
  provided_buffers& operator=(const provided_buffers&) = delete;
  /// The io_uring must be gone.
  ~provided_buffers() {
    if (pool_ != nullptr) pool_->write_off(in_ring_);
    unmap();
  }

  /// Registers with `ring`. Result: 0 or -errno.
  int open(io_uring& ring, buffer_pool& pool) noexcept {
    void* memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return -ENOMEM;
    entries_ = static_cast<io_uring_buf*>(memory);
    io_uring_buf_reg registration{};
    registration.ring_addr = reinterpret_cast<std::uintptr_t>(memory);
    registration.ring_entries = entries;
    registration.bgid = provided_group;
    const int failed = io_uring_register_buf_ring(&ring, &registration, 0);
    if (failed < 0) {
      unmap();
      return failed;
    }
    pool_ = &pool;
    return 0;
  }
  bool is_open() const noexcept { return pool_ != nullptr; }

  /// Provides what the pool has, up to the number that was found to be enough.
  void top_up() noexcept {
    if (in_ring_ >= enough_) return;
    const std::uint16_t before = tail_;
    while (in_ring_ < enough_) {
      buffer* b = pool_->take();
      if (b == nullptr) break;
      io_uring_buf& entry = entries_[tail_ % entries];
      entry.addr = reinterpret_cast<std::uintptr_t>(b->data());
      entry.len = buffer::bytes_max;
      entry.bid = b->number;
      ++tail_;
      ++in_ring_;
    }
    // The tail lies over the last field of the first entry.
    if (tail_ != before) __atomic_store_n(&entries_[0].resv, tail_, __ATOMIC_RELEASE);
  }

  /// The ring was found empty: one more may be enough.
  void ran_dry() noexcept {
    if (enough_ < entries) ++enough_;
    top_up();
  }
  bool is_dry() const noexcept { return in_ring_ == 0; }

  /// The kernel has taken buffer `number`.
  buffer& taken(std::uint16_t number) noexcept {
    --in_ring_;
    return pool_->at(number);
  }

 private:
  static constexpr std::size_t bytes = entries * sizeof(io_uring_buf);
  static constexpr std::size_t enough_first = 32;
  static_assert((entries & (entries - 1)) == 0);

  void unmap() noexcept {
    if (entries_ != nullptr) ::munmap(entries_, bytes);
    entries_ = nullptr;
  }

  io_uring_buf* entries_ = nullptr;
  buffer_pool* pool_ = nullptr;
  std::size_t in_ring_ = 0;
  std::size_t enough_ = enough_first;
  std::uint16_t tail_ = 0;
};

}  // namespace coax::inline COAX_ABI::detail

#endif
