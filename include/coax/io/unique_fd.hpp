#pragma once

#include <coax/config.hpp>
#include <coax/io/syscalls.hpp>

#include <utility>

namespace coax::inline COAX_ABI {

/// Owns a file descriptor and closes it, through the reactor that runs; -1 is none. See close(2).
class unique_fd {
 public:
  unique_fd() = default;
  explicit unique_fd(int fd) noexcept : fd_(fd) {}
  unique_fd(unique_fd&& other) noexcept : fd_(other.release()) {}
  unique_fd& operator=(unique_fd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  ~unique_fd() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  void reset(int fd = -1) noexcept {
    // Linux has freed the number even when close fails: never a second try.
    if (fd_ >= 0) syscalls::current().close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace coax::inline COAX_ABI
