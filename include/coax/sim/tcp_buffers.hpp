#pragma once

#include <coax/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace coax::inline COAX_ABI::sim {

/// What one side of a TCP connection sends: the bytes the program has written, until the peer has
/// acknowledged them.
class tcp_sending {
 public:
  void size_max(std::size_t bytes) noexcept { size_max_ = std::max<std::size_t>(bytes, 1); }
  std::size_t size_max() const noexcept { return size_max_; }
  std::size_t room() const noexcept { return size_max_ - std::min(size_max_, bytes_.size()); }
  /// As much as makes a socket writable.
  bool has_room() const noexcept { return room() >= std::max<std::size_t>(size_max_ / 3, 1); }
  /// The same for a program that asks. Where there is not it is told once there is, as after a poll(2).
  bool has_room_for_program() noexcept {
    if (!has_room()) wants_room_ = true;
    return has_room();
  }

  /// Takes what there is room for. Result: how many bytes.
  std::size_t take(const void* from, std::size_t size) {
    const std::size_t taken = std::min(room(), size);
    wants_room_ = taken < size;
    bytes_.append(static_cast<const char*>(from), taken);
    return taken;
  }

  /// The peer may be sent so many bytes in all.
  void allow(std::uint64_t limit) noexcept { limit_ = std::max(limit_, limit); }
  /// The next bytes that it has room for; empty when there are none.
  std::string next_segment() {
    const std::uint64_t until = std::min(written(), limit_);
    if (sent_ >= until) return {};
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(segment_max, until - sent_));
    const auto from = static_cast<std::size_t>(sent_ - acknowledged_);
    sent_ += size;
    return bytes_.substr(from, size);
  }
  bool all_sent() const noexcept { return sent_ == written(); }
  bool all_acknowledged() const noexcept { return bytes_.empty(); }

  /// The peer has received so many bytes in all. True when a program that wants room is to be told that
  /// there is some.
  bool acknowledge(std::uint64_t received) {
    if (received <= acknowledged_) return false;
    bytes_.erase(0, static_cast<std::size_t>(received - acknowledged_));
    acknowledged_ = received;
    return wants_room_ && has_room();
  }
  void told_of_room() noexcept { wants_room_ = false; }

  void drop() noexcept { bytes_.clear(); }

 private:
  static constexpr std::size_t segment_max = 16 * 1024;

  std::uint64_t written() const noexcept { return acknowledged_ + bytes_.size(); }

  std::size_t size_max_ = 0;
  std::string bytes_;  // from the first that is not acknowledged
  std::uint64_t acknowledged_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t limit_ = 0;  // what the peer lets us send, in all
  bool wants_room_ = false;  // it did not take everything, or was asked and had too little
};

/// What one side of a TCP connection receives: the bytes that came, until the program has read them.
class tcp_receiving {
 public:
  void size_max(std::size_t bytes) noexcept { size_max_ = std::max<std::size_t>(bytes, 1); }
  std::size_t size_max() const noexcept { return size_max_; }

  void take(std::string_view bytes) {
    received_ += bytes.size();
    bytes_ += bytes;
  }
  /// Bytes that came in all.
  std::uint64_t received() const noexcept { return received_; }

  std::size_t unread() const noexcept { return bytes_.size() - read_; }
  /// Copies what is unread, up to `size` bytes. Result: how many.
  std::size_t peek(void* into, std::size_t size) const {
    const std::size_t there = std::min(size, unread());
    if (there > 0) std::memcpy(into, bytes_.data() + read_, there);
    return there;
  }
  void consume(std::size_t size) {
    read_ += size;
    if (read_ != bytes_.size() && read_ <= size_max_) return;
    bytes_.erase(0, read_);
    read_ = 0;
  }

  /// What the peer is told that it may send, in all. It never becomes less.
  std::uint64_t offer() noexcept { return offered_ = std::max(offered_, limit()); }
  /// Whether the window has opened so far since then that it is worth telling.
  bool worth_offering() const noexcept {
    const std::uint64_t gained = limit() - std::min(offered_, limit());
    return gained > 0 && (offered_ <= received_ || gained >= size_max_ / 4);
  }

 private:
  std::uint64_t limit() const noexcept {
    return received_ + (size_max_ - std::min(size_max_, unread()));
  }

  std::size_t size_max_ = 0;
  std::string bytes_;
  std::size_t read_ = 0;  // of these
  std::uint64_t received_ = 0;
  std::uint64_t offered_ = 0;
};

}  // namespace coax::inline COAX_ABI::sim
