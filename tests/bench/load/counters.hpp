#pragma once

#include "sockets.hpp"

#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

/// Opens a counter of `pid`'s main thread; -1 where that is not allowed.
inline owned_fd open_counter(perf_event_attr& attr, pid_t pid) {
  attr.size = sizeof(attr);
  attr.disabled = 1;
  return owned_fd(
      static_cast<int>(::syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC)));
}

/// Counts the system calls of a process by the kernel's trace point.
///
/// Counting makes every call dearer, so it is done in a run of its own. It needs tracefs and the
/// right to use it; where there is neither, there is no figure.
class system_call_counter {
 public:
  explicit system_call_counter(pid_t pid) {
    for (const char* tracing : {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}) {
      std::ifstream file(std::string(tracing) + "/events/raw_syscalls/sys_enter/id");
      perf_event_attr attr{};
      attr.type = PERF_TYPE_TRACEPOINT;
      if (!(file >> attr.config)) continue;
      fd_ = open_counter(attr, pid);
      return;
    }
  }

  void start() const {
    if (fd_.get() >= 0) ::ioctl(fd_.get(), PERF_EVENT_IOC_ENABLE, 0);
  }
  std::optional<std::uint64_t> count() const {
    std::uint64_t value = 0;
    if (fd_.get() < 0 || ::read(fd_.get(), &value, sizeof(value)) != sizeof(value))
      return std::nullopt;
    return value;
  }

 private:
  owned_fd fd_;
};

/// Which part of a process's CPU time is spent in its own code, by looking 5,000 times per second of
/// it.
///
/// What /proc says comes from the kernel's tick, 100 to 1,000 times a second: too coarse for a share
/// of one or two per cent. Looking costs time too, but in the same proportion everywhere.
///
/// A look that falls where interrupts are off comes late. At the end of a system call that is when
/// the program already stands at its next instruction, so one that finds it there is the kernel's.
class user_share_sampler {
 public:
  explicit user_share_sampler(pid_t pid) : pid_(pid) {
    perf_event_attr attr{};
    attr.type = PERF_TYPE_SOFTWARE;
    attr.config = PERF_COUNT_SW_CPU_CLOCK;
    attr.sample_period = 200'000;  // ns
    attr.sample_type = PERF_SAMPLE_IP;
    fd_ = open_counter(attr, pid);
    if (fd_.get() < 0) return;
    const std::size_t size = page_bytes() + data_bytes;
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (mapped != MAP_FAILED) page_ = static_cast<perf_event_mmap_page*>(mapped);
  }
  user_share_sampler(const user_share_sampler&) = delete;
  user_share_sampler& operator=(const user_share_sampler&) = delete;
  ~user_share_sampler() {
    if (page_ != nullptr) ::munmap(page_, page_bytes() + data_bytes);
  }

  void start() const { enable(PERF_EVENT_IOC_ENABLE); }
  void stop() const { enable(PERF_EVENT_IOC_DISABLE); }

  /// Takes in what was seen; to be called before the buffer is full, after some 10 s.
  void collect() {
    if (page_ == nullptr) return;
    const std::uint64_t head = __atomic_load_n(&page_->data_head, __ATOMIC_ACQUIRE);
    const char* data = reinterpret_cast<const char*>(page_) + page_bytes();
    std::uint64_t at = page_->data_tail;
    while (at < head) {
      // Of words of 8 bytes, so no word straddles the end of the buffer.
      perf_event_header header{};
      std::uint64_t place = 0;
      std::memcpy(&header, data + at % data_bytes, sizeof(header));
      std::memcpy(&place, data + (at + sizeof(header)) % data_bytes, sizeof(place));
      if (header.type == PERF_RECORD_SAMPLE) {
        ++seen_;
        if ((header.misc & PERF_RECORD_MISC_CPUMODE_MASK) == PERF_RECORD_MISC_USER)
          ++in_user_[place];
      }
      at += header.size;
    }
    __atomic_store_n(&page_->data_tail, at, __ATOMIC_RELEASE);
  }

  std::optional<double> share() const {
    if (seen_ == 0) return std::nullopt;
    std::ifstream memory("/proc/" + std::to_string(pid_) + "/mem", std::ios::binary);
    std::uint64_t own = 0;
    for (const auto& [place, times] : in_user_)
      if (!follows_system_call(memory, place)) own += times;
    return static_cast<double>(own) / static_cast<double>(seen_);
  }

 private:
  static constexpr std::size_t data_bytes = std::size_t{1} << 20;
  static std::size_t page_bytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

  void enable(unsigned long what) const {
    if (fd_.get() >= 0) ::ioctl(fd_.get(), what, 0);
  }

  static bool follows_system_call([[maybe_unused]] std::ifstream& memory,
                                  [[maybe_unused]] std::uint64_t place) {
#if defined(__x86_64__)
    constexpr std::string_view instruction("\x0f\x05", 2);
#elif defined(__aarch64__)
    constexpr std::string_view instruction("\x01\x00\x00\xd4", 4);
#else
    constexpr std::string_view instruction;
#endif
    std::string before(instruction.size(), '\0');
    memory.clear();
    memory.seekg(static_cast<std::streamoff>(place - before.size()));
    memory.read(before.data(), static_cast<std::streamsize>(before.size()));
    return memory && !before.empty() && before == instruction;
  }

  pid_t pid_;
  owned_fd fd_;
  perf_event_mmap_page* page_ = nullptr;
  std::uint64_t seen_ = 0;
  std::unordered_map<std::uint64_t, std::uint64_t> in_user_;  // by place in the program
};
