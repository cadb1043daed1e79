#pragma once

#include <coax/config.hpp>

#include <poll.h>
#include <unistd.h>

#include <string>

namespace coax::inline COAX_ABI::detail {

/// Writes a line to stderr, unless that would have to wait: then nobody reads it, and the processes, which
/// are to go on, matter more.
inline void log_line(const std::string& text) {
  const std::string line = "coax: " + text + '\n';
  pollfd out{STDERR_FILENO, POLLOUT, 0};
  if (::poll(&out, 1, 0) != 0) static_cast<void>(!::write(out.fd, line.data(), line.size()));
}

}  // namespace coax::inline COAX_ABI::detail
