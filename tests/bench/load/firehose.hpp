#pragma once

#include "connection.hpp"
#include "options.hpp"
#include "pattern.hpp"
#include "sockets.hpp"
#include "time.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <new>
#include <vector>

/// A connection, in a process of its own, that sends as much as the server takes and receives, and
/// checks, what comes back. It is there only when `o.firehose` says so.
class firehose {
 public:
  firehose(const options& o, const pattern& bytes) {
    if (!o.firehose) return;
    void* shared = ::mmap(nullptr, sizeof(*echoed_), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) fail_errno("mmap");
    echoed_ = ::new (shared) std::atomic<std::uint64_t>(0);
    child_ = ::fork();
    if (child_ < 0) fail_errno("fork");
    if (child_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    run(o, bytes);
  }
  firehose(const firehose&) = delete;
  firehose& operator=(const firehose&) = delete;
  ~firehose() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    ::munmap(echoed_, sizeof(*echoed_));
  }

  void begin() {
    if (echoed_ == nullptr) return;
    before_ = *echoed_;
    begun_ = clock_now();
  }
  /// Since `begin`.
  double megabytes_per_second() const {
    int status = 0;
    if (::waitpid(child_, &status, WNOHANG) != 0) fail("the firehose has broken");
    return static_cast<double>(*echoed_ - before_) * 1e3 /
           static_cast<double>(clock_now() - begun_);
  }

 private:
  [[noreturn]] void run(const options& o, const pattern& bytes) {
    connection out(connect_to(o.server), o.connections);
    if (::fcntl(out.fd(), F_SETFL, O_NONBLOCK) < 0) fail_errno("fcntl");
    std::vector<char> scratch(64 * 1024);
    while (true) {
      if (out.all_sent())
        out.send(bytes, scratch.size());
      else
        out.send_wanted(bytes);
      const std::size_t got = out.receive(bytes, scratch);
      *echoed_ += got;
      if (got > 0 || out.all_sent()) continue;
      pollfd either{.fd = out.fd(), .events = POLLIN | POLLOUT, .revents = 0};
      ::poll(&either, 1, -1);
    }
  }

  std::atomic<std::uint64_t>* echoed_ = nullptr;
  pid_t child_ = 0;
  std::uint64_t before_ = 0;
  std::int64_t begun_ = 0;
};
