#pragma once

#include "lockstep.hpp"

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <vector>

/// Connect, one echo, close: in lockstep too, `o.connections` at a time.
///
/// The client closes first, so its ports stay taken for a minute. The source address changes all
/// the time, so that they do not run out.
class churn {
 public:
  churn(const options& o, const pattern& bytes) : options_(o), bytes_(bytes) {}

  std::size_t round() {
    for (std::size_t i = 0; i < options_.connections; ++i, ++made_) {
      constexpr std::uint32_t first = 2;  // 127.0.0.2
      constexpr std::uint32_t sources = 4096;
      open_.emplace_back(
          connect_to(options_.server, first + static_cast<std::uint32_t>(made_ % sources)), made_);
      open_.back().send(bytes_, options_.batch_bytes());
    }
    for (connection& c : open_) c.receive_all(bytes_, scratch_);
    open_.clear();
    return options_.connections;
  }

 private:
  const options& options_;
  const pattern& bytes_;
  std::size_t made_ = 0;
  std::vector<connection> open_;
  std::vector<char> scratch_ = std::vector<char>(64 * 1024);
};

/// The server's open descriptors, once their number does not change any more.
inline std::size_t settled_descriptors(const watched_process& server) {
  std::size_t before = server.descriptors();
  for (int tries = 0; tries < 100; ++tries) {
    ::usleep(50'000);
    const std::size_t now = server.descriptors();
    if (now == before) break;
    before = now;
  }
  return before;
}

inline report measure_churn(const options& o, const watched_process& server, const pattern& bytes) {
  share_a_core(o, server);
  churn load(o, bytes);
  load.round();  // what the server opens for itself, it has opened by then
  const std::size_t before = settled_descriptors(server);
  report r = measure(o, server, [&] { return load.round(); }, [] {});
  const std::size_t after = settled_descriptors(server);
  r.add("descriptors_left", static_cast<double>(after) - static_cast<double>(before));
  return r;
}
