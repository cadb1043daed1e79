#pragma once

#include "../catch.hpp"

#include <coax/io/choose.hpp>
#include <coax/process/run.hpp>
#include <coax/process/signals.hpp>
#include <coax/task/frames.hpp>

#include <dirent.h>
#include <sys/utsname.h>

#include <cstdio>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

/// One body, every backend:
///
///     TEST_CASE("reads what was written") {
///       on_each_backend([]() -> coax::task<> { ... });
///     }
///
/// Each run is on a reactor of its own, asserts which backend it is, and that afterwards nothing is in flight and no frame
/// and no descriptor is left.

/// The descriptors this process has open.
inline int open_descriptors() {
  DIR* listing = ::opendir("/proc/self/fd");
  int count = -1;  // the listing itself is one
  while (const dirent* entry = ::readdir(listing))
    if (entry->d_name[0] != '.') ++count;
  ::closedir(listing);
  return count;
}

/// Whether a kernel says so that has no io_uring for us. Anything else is a fault of ours, which testing epoll
/// alone would hide.
inline bool is_refusal(std::error_code why) {
  if (why == std::errc::invalid_argument) {  // before Linux 6.1
    utsname kernel{};
    ::uname(&kernel);
    int major = 0;
    int minor = 0;
    return std::sscanf(kernel.release, "%d.%d", &major, &minor) == 2 &&
           std::pair(major, minor) < std::pair(6, 1);
  }
  return why == std::errc::operation_not_permitted || why == std::errc::permission_denied ||
         why == std::errc::function_not_supported || why == std::errc::not_enough_memory;
}

/// The backends that can run here: io_uring is left out, with a word, where the machine refuses it.
inline const std::vector<coax::backend>& backends_here() {
  static const std::vector<coax::backend> all = [] {
    std::vector<coax::backend> found{coax::backend::epoll};
#if !defined(COAX_WITHOUT_URING)
    const std::error_code refused = coax::detail::try_ring();
    if (!refused)
      found.push_back(coax::backend::io_uring);
    else if (is_refusal(refused))
      std::fprintf(stderr, "io_uring cannot run here (%s): testing epoll alone\n",
                   refused.message().c_str());
    else
      throw std::system_error(refused, "io_uring is not refused, but does not work");
#endif
    return found;
  }();
  return all;
}

inline const char* name_of(coax::backend b) {
  return b == coax::backend::epoll ? "epoll" : "io_uring";
}

/// A reactor of exactly that backend, whatever COAX_BACKEND says.
inline std::unique_ptr<coax::reactor> reactor_of(coax::backend b,
                                                 coax::syscalls& calls = coax::syscalls::kernel(),
                                                 unsigned ring_entries = 256) {
#if !defined(COAX_WITHOUT_URING)
  if (b == coax::backend::io_uring)
    return std::make_unique<coax::uring_reactor>(ring_entries, calls);
#endif
  static_cast<void>(b);
  static_cast<void>(ring_entries);
  return std::make_unique<coax::epoll_reactor>(calls);
}

/// Runs the task `body()` gives on `reactor` and checks that it leaves nothing behind.
template <class Body>
void run_clean(coax::reactor& reactor, Body&& body) {
  coax::detail::signal_hub::instance();  // opens its descriptor once, for good
  const auto frames = coax::detail::frames::live();
  const int descriptors = open_descriptors();
  coax::detail::run_on(reactor, body);
  CHECK(reactor.in_flight() == 0);
  CHECK(coax::detail::frames::live() == frames);
  CHECK(open_descriptors() == descriptors);
}

template <class Body>
void on_each_backend(Body&& body) {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const auto reactor = reactor_of(b);
    REQUIRE(reactor->backend() == name_of(b));
    run_clean(*reactor, body);
  }
}
