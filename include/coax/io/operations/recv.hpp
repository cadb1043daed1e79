#pragma once

#include <coax/config.hpp>
#include <coax/io/descriptors.hpp>
#include <coax/io/inbox.hpp>
#include <coax/io/operation.hpp>

#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace coax::inline COAX_ABI::operations {

/// Receives from a stream socket: what there is, or exactly as much as the buffer holds.
///
/// Result    bytes stored.
/// Errors    coax::errc::end_of_stream when the peer has ended the stream; else as recv(2).
/// Lifetime  borrows the buffer until completion.
/// See       recv(2), io_uring_prep_recv(3).
class recv final : public basic_operation<recv, std::size_t> {
 public:
  static constexpr short waits_for = interest::readable;
  enum class until { some, full };

  recv(int fd, std::span<std::byte> into, until enough) noexcept
      : basic_operation(fd, watching::stream), into_(into), enough_(enough) {
    asks_nothing_ = into_.empty();
  }

  const char* name() const noexcept override { return "recv"; }
  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_recv(&sqe, fd(), rest().data(), rest().size(), 0);
#endif
  }
  int perform(syscalls& calls) noexcept override {
    const int got = calls.recv(fd(), rest().data(), rest().size(), MSG_DONTWAIT);
    drained_ = got > 0 && static_cast<std::size_t>(got) < rest().size();
    return got;
  }
  bool take(int answer) noexcept override {
    result_ = answer;
    if (answer > 0) got_ += static_cast<std::size_t>(answer);
    // By which error the connection was lost, later reads are to say.
    if (answer < 0 && enough_ == until::full && at_->lost == 0) cut_off();
    return enough_ == until::some || answer <= 0 || got_ == into_.size();
  }
  bool take_received(inbox& from) noexcept override {
    while (from.has_bytes()) {
      detail::buffer& first = from.front();
      const std::size_t count = std::min<std::size_t>(first.size, rest().size());
      std::memcpy(rest().data(), first.data() + first.begin, count);
      first.skip(static_cast<std::uint32_t>(count));
      if (first.size == 0) from.pop().release();
      if (take(static_cast<int>(count))) return true;
    }
    return !from.empty() && take(from.take_end());
  }
  void cut_off() noexcept override {
    if (got_ > 0) at_->read_cut = true;
  }

  result<std::size_t> value(int) const noexcept {
    if (got_ == into_.size() || (got_ > 0 && enough_ == until::some)) return got_;
    return errc::end_of_stream;
  }

 private:
  std::span<std::byte> rest() const noexcept {
    return into_.subspan(got_, std::min(into_.size() - got_, bytes_max));
  }

  std::span<std::byte> into_;
  std::size_t got_ = 0;
  until enough_;
};

}  // namespace coax::inline COAX_ABI::operations
