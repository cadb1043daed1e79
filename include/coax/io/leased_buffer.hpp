#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>

#include <cstddef>
#include <memory>
#include <span>

namespace coax::inline COAX_ABI {

/// Bytes that were received, in a buffer of the reactor's: what `stream::receive` gives.
///
/// It is the holder's until it is destroyed. It can be moved, kept, passed to another task, changed
/// in place, and written out again without a copy: `conn.write(lease.bytes())`. A reactor has 1,024
/// buffers of 32 KB, and fetches what is needed beyond from the heap. However few bytes it holds, a lease takes
/// memory for them in whole pages, 4 KB at least.
///
/// Lifetime  may outlive the stream it is from, and the run.
/// Thread    any, one at a time: it may go to `blocking`, say.
class [[nodiscard]] leased_buffer {
 public:
  /// None; it has no bytes.
  leased_buffer() noexcept = default;

  /// What was received, at least a byte.
  ///
  /// Lifetime  points into the buffer; moving the lease does not move the bytes.
  std::span<std::byte> bytes() noexcept {
    return held_ != nullptr ? held_->bytes() : std::span<std::byte>();
  }
  std::span<const std::byte> bytes() const noexcept {
    return held_ != nullptr ? held_->bytes() : std::span<std::byte>();
  }

  /// Takes over a buffer: for what receives.
  explicit leased_buffer(detail::buffer& filled) noexcept : held_(&filled) {}

 private:
  struct releaser {
    void operator()(detail::buffer* held) const noexcept { held->release(); }
  };

  std::unique_ptr<detail::buffer, releaser> held_;
};

}  // namespace coax::inline COAX_ABI
