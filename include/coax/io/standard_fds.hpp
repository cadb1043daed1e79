#pragma once

#include <coax/config.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <initializer_list>

namespace coax::inline COAX_ABI::detail {

/// Opens /dev/null where a program was started without its standard input, output or error, as the C library
/// does for programs that are given rights. Else what is opened next took such a number: a connection would
/// be sent what is written to stderr.
///
/// See       stdin(3).
inline void hold_standard_fds() noexcept {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR) != fd) return;  // none is to be had
}

}  // namespace coax::inline COAX_ABI::detail
