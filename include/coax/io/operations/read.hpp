#pragma once

#include <coax/config.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/task/result.hpp>

#include <poll.h>

#include <algorithm>
#include <cstddef>
#include <span>

namespace coax::inline COAX_ABI::operations {

/// Reads once from any descriptor, at its file offset.
///
/// Result    bytes stored.
/// Errors    coax::errc::end_of_stream at the end; else as read(2).
/// Lifetime  borrows the buffer until completion.
/// See       read(2), io_uring_prep_read(3).
class read final : public basic_operation<read, std::size_t> {
 public:
  static constexpr short waits_for = interest::readable;

  read(int fd, std::span<std::byte> into) noexcept
      : basic_operation(fd, watching::borrowed),
        into_(into.first(std::min(into.size(), bytes_max))) {
    asks_nothing_ = into_.empty();
  }

  const char* name() const noexcept override { return "read"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_read(&sqe, fd(), into_.data(), static_cast<unsigned>(into_.size()),
                       at_file_offset);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    const int ready = calls.ready_for(fd(), POLLIN);
    return ready < 0 ? ready : calls.read(fd(), into_.data(), into_.size());
  }

  result<std::size_t> value(int answer) const noexcept {
    if (answer == 0 && !into_.empty()) return errc::end_of_stream;
    return static_cast<std::size_t>(answer);
  }

 private:
  std::span<std::byte> into_;
};

}  // namespace coax::inline COAX_ABI::operations
