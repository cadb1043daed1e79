#pragma once

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <unistd.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>

/// From now on, and for good, this process's system call `number` fails with `error`, as in a container that does not
/// allow it. For child processes.
inline void refuse(long number, int error) {
  const auto statement = [](int code, std::uint32_t k, int jt = 0, int jf = 0) {
    return sock_filter{static_cast<std::uint16_t>(code), static_cast<std::uint8_t>(jt),
                       static_cast<std::uint8_t>(jf), k};
  };
  std::array<sock_filter, 4> filter{
      statement(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      statement(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 1),
      statement(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)),
      statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    std::perror("seccomp");
    ::_exit(2);
  }
}
