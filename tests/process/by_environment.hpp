#pragma once

/// Tests of run_threads on every backend.

#include "../io/each_backend.hpp"

#include <cstdlib>
#include <string>

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif

/// Runs `body` once for each backend, by COAX_BACKEND, and checks that no descriptor is left.
template <class Body>
void by_environment(Body&& body) {
  const char* const before = std::getenv("COAX_BACKEND");
  const std::string kept = before == nullptr ? "" : before;
  coax::detail::signal_hub::instance();  // opens its descriptor once, for good
  for (const coax::backend b : backends_here()) {
#if defined(UNDER_TSAN)
    // It does not see liburing unmap a ring, and takes the next thread's, at the same address, for the same memory.
    if (b == coax::backend::io_uring) continue;
#endif
    INFO("on " << name_of(b));
    ::setenv("COAX_BACKEND", name_of(b), 1);
    const int descriptors = open_descriptors();
    body(name_of(b));
    CHECK(open_descriptors() == descriptors);
  }
  ::setenv("COAX_BACKEND", kept.c_str(), 1);
}
