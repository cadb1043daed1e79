#pragma once

/// Tests of run_threads on every backend.

#include "../io/each_backend.hpp"

#include <cstdlib>
#include <string>

/// Runs `body` once for each backend, by COAX_BACKEND, and checks that no descriptor is left.
template <class Body>
void by_environment(Body&& body) {
  const char* const before = std::getenv("COAX_BACKEND");
  const std::string kept = before == nullptr ? "" : before;
  coax::detail::signal_hub::instance();  // opens its descriptor once, for good
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    ::setenv("COAX_BACKEND", name_of(b), 1);
    const int descriptors = open_descriptors();
    body(name_of(b));
    CHECK(open_descriptors() == descriptors);
  }
  ::setenv("COAX_BACKEND", kept.c_str(), 1);
}
