#pragma once

#include "fail.hpp"
#include "time.hpp"

#include <dirent.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <ctime>
#include <fstream>
#include <string>

/// A server as it is seen from outside.
class watched_process {
 public:
  explicit watched_process(pid_t pid) : pid_(pid) {
    if (::clock_getcpuclockid(pid, &cpu_clock_) != 0)
      fail("there is no process " + std::to_string(pid));
  }

  pid_t pid() const { return pid_; }

  /// CPU time all its threads have used, in nanoseconds.
  std::int64_t cpu() const {
    timespec used{};
    if (::clock_gettime(cpu_clock_, &used) < 0) fail("the server has ended");
    return nanoseconds_of(used);
  }

  /// Bytes of memory that are in RAM, counted page by page.
  std::int64_t resident() const {
    const std::string what = "Rss:";
    std::ifstream file("/proc/" + std::to_string(pid_) + "/smaps_rollup");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with(what)) return std::stoll(line.substr(what.size())) * 1024;
    fail("the server's memory cannot be read");
  }

  std::size_t descriptors() const {
    DIR* listing = ::opendir(("/proc/" + std::to_string(pid_) + "/fd").c_str());
    if (listing == nullptr) fail("the server's descriptors cannot be read");
    std::size_t count = 0;
    while (const dirent* entry = ::readdir(listing))
      if (entry->d_name[0] != '.') ++count;
    ::closedir(listing);
    return count;
  }

 private:
  pid_t pid_;
  clockid_t cpu_clock_{};
};
