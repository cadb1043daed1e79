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

/// Writes everything to any descriptor, at its file offset.
///
/// Result    bytes written.
/// Errors    as write(2).
/// Lifetime  borrows the buffer until completion.
/// See       write(2), io_uring_prep_write(3).
class write final : public basic_operation<write, std::size_t> {
 public:
  static constexpr short waits_for = interest::writable;

  write(int fd, std::span<const std::byte> from) noexcept
      : basic_operation(fd, watching::borrowed), from_(from) {
    asks_nothing_ = from_.empty();
  }

  const char* name() const noexcept override { return "write"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_write(&sqe, fd(), rest().data(), static_cast<unsigned>(rest().size()),
                        at_file_offset);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    const int ready = calls.ready_for(fd(), POLLOUT);
    return ready < 0 ? ready : calls.write(fd(), rest().data(), rest().size());
  }
  bool take(int answer) noexcept override {
    result_ = answer;
    if (answer > 0) written_ += static_cast<std::size_t>(answer);
    return answer <= 0 || written_ == from_.size();
  }

  result<std::size_t> value(int) const noexcept { return written_; }

 private:
  std::span<const std::byte> rest() const noexcept {
    return from_.subspan(written_, std::min(from_.size() - written_, bytes_max));
  }

  std::span<const std::byte> from_;
  std::size_t written_ = 0;
};

}  // namespace coax::inline COAX_ABI::operations
