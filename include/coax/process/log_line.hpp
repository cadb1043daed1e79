#pragma once

#include <coax/config.hpp>

#include <poll.h>
#include <unistd.h>

#include <climits>
#include <string>

namespace coax::inline COAX_ABI::detail {

/// Writes a line to stderr, unless that would have to wait: then nobody reads it, and the processes, which
/// are to go on, matter more. Of a longer line the first PIPE_BUF bytes, for which a pipe that is ready has room.
inline void log_line(const std::string& text) {
  std::string line = ("coax: " + text).substr(0, PIPE_BUF - 1);
  line += '\n';
  pollfd out{STDERR_FILENO, POLLOUT, 0};
  if (::poll(&out, 1, 0) != 0) static_cast<void>(!::write(out.fd, line.data(), line.size()));
}

}  // namespace coax::inline COAX_ABI::detail
