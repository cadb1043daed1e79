#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

/// A load that cannot be had as it was asked for gives no figures.
[[noreturn]] inline void fail(const std::string& why) {
  std::fprintf(stderr, "load: %s\n", why.c_str());
  std::exit(1);
}

[[noreturn]] inline void fail_errno(const std::string& what) {
  fail(what + ": " + std::strerror(errno));
}
