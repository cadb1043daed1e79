#pragma once

#include "pattern.hpp"
#include "sockets.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

/// A connection to the server: what was sent on it, and whether the same comes back.
///
/// It serves both in blocking mode, where it waits, and in non-blocking mode, where it does what can
/// be done now.
class connection {
 public:
  connection(owned_fd fd, std::size_t number)
      : fd_(std::move(fd)), begin_(pattern::begin(number)) {}

  int fd() const { return fd_.get(); }

  /// Sends `size` bytes more, now or as soon as `send_wanted` can.
  void send(const pattern& bytes, std::size_t size) {
    wanted_ += size;
    send_wanted(bytes);
  }
  void send_wanted(const pattern& bytes) {
    while (sent_ != wanted_) {
      const std::size_t size = std::min<std::uint64_t>(wanted_ - sent_, pattern::run_max);
      const ssize_t sent = ::send(fd(), bytes.at(begin_ + sent_), size, MSG_NOSIGNAL);
      if (sent < 0 && errno == EAGAIN) return;
      if (sent < 0) fail_errno("send");
      sent_ += static_cast<std::size_t>(sent);
    }
  }

  /// Receives and checks what there is, at most what `scratch` holds; 0 when there is nothing.
  std::size_t receive(const pattern& bytes, std::vector<char>& scratch) {
    const std::size_t got = receive_some(fd(), scratch.data(), scratch.size());
    if (got > sent_ - received_) fail("more came back than was sent");
    bytes.check(begin_ + received_, scratch.data(), got);
    received_ += got;
    return got;
  }

  /// In blocking mode: waits until everything has come back.
  void receive_all(const pattern& bytes, std::vector<char>& scratch) {
    while (!all_in())
      if (receive(bytes, scratch) == 0) fail("there is no reply in 10 s");
  }

  bool all_in() const { return received_ == wanted_; }
  bool all_sent() const { return sent_ == wanted_; }
  /// Bytes that have come back.
  std::uint64_t received() const { return received_; }

 private:
  owned_fd fd_;
  std::uint64_t begin_;  // in the pattern
  std::uint64_t wanted_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
};

/// Connects `count` connections, in blocking mode: 10,000 from 127.0.0.0 + `first_source`, as many
/// from the next address, and so on. An address has some 28,000 ports, but once half of them are
/// taken the kernel searches for a free one ever longer.
///
/// No more than 256 are left in the server's backlog: it is first in, first out, so once a
/// connection is answered, those before it were accepted.
inline std::vector<connection> connect_many(const sockaddr_in& server, const pattern& bytes,
                                            std::size_t count, std::uint32_t first_source) {
  constexpr std::size_t each_source = 10'000;
  constexpr std::size_t at_once = 256;
  std::vector<char> scratch(64);
  std::vector<connection> made;
  made.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto source = first_source + static_cast<std::uint32_t>(i / each_source);
    made.emplace_back(connect_to(server, source), first_source * each_source + i);
    if (i % at_once != at_once - 1 && i != count - 1) continue;
    made.back().send(bytes, 1);
    made.back().receive_all(bytes, scratch);
  }
  return made;
}

/// Has each of `all` send a message of `size` and receive it, some of them at once.
inline void echo_once(std::vector<connection>& all, const pattern& bytes, std::size_t size) {
  constexpr std::size_t at_once = 256;
  std::vector<char> scratch(64 * 1024);
  for (std::size_t i = 0; i < all.size(); i += at_once) {
    const std::size_t end = std::min(i + at_once, all.size());
    for (std::size_t c = i; c < end; ++c) all[c].send(bytes, size);
    for (std::size_t c = i; c < end; ++c) all[c].receive_all(bytes, scratch);
  }
}
