#pragma once

#include <coax/config.hpp>
#include <coax/io/inbox.hpp>
#include <coax/io/operation.hpp>
#include <coax/io/syscalls.hpp>

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace coax::inline COAX_ABI {

/// What a reactor knows of one file descriptor.
struct descriptor {
  /// Events that, once seen, stay true for as long as the descriptor is open.
  static constexpr unsigned sticky = POLLRDHUP | POLLHUP | POLLERR | POLLPRI;
  static constexpr unsigned unknown = POLLIN | POLLOUT;  // worth a try

  using flag = std::uint8_t;  // 0 or 1: compilers test several of these at once, but not of bool

  int fd = -1;
  std::uint32_t generation = 0;  // tells the events of a closed descriptor from its successor's
  std::uint32_t life = 0;        // counts what the number has stood for, as far as coax knows
  unsigned ready = unknown;      // epoll: what it may be ready for
  operation* reader = nullptr;   // who waits for it to become readable: one at a time
  operation* writer = nullptr;
  [[no_unique_address]] inbox received;  // what a multishot receive has left for the next reader
  flag owned : 1 = 0;                    // a stream of ours
  flag tcp : 1 = 0;
  flag registered : 1 = 0;  // epoll: the kernel reports its events
  flag closing : 1 = 0;     // closed while an operation was pending: the last one closes it
  flag stays_open : 1 = 0;  // not so: it only ends what is pending
  flag read_cut : 1 = 0;    // a transfer was cut off in the middle: the direction has failed
  flag write_cut : 1 = 0;
  flag multishot : 1 = 0;          // completion: the kernel has a multishot receive of it
  flag multishot_stops : 1 = 0;    // it was asked to end
  flag multishot_refused : 1 = 0;  // this kind of socket cannot have one
  flag floods : 1 = 0;             // one had to be stopped, and there is still much to receive
  flag accepting : 1 = 0;          // a listener: a task has the place of the one that accepts
  std::uint8_t lost : 7 = 0;       // the errno by which the connection was lost

  bool is_awaited_by(const operation& op) const noexcept { return reader == &op || writer == &op; }
  bool idle() const noexcept { return reader == nullptr && writer == nullptr && !multishot; }

  /// A stream of ours of which nothing has to be remembered when an operation begins.
  bool is_plain() const noexcept {
    return owned == 1 && closing == 0 && read_cut == 0 && write_cut == 0 && received.empty();
  }

  /// Begins another life: forgets everything else.
  void renew(bool now_owned, bool is_tcp) noexcept {
    const int same_fd = fd;
    const std::uint32_t next_generation = generation + 1;
    const std::uint32_t next_life = life + 1;
    *this = descriptor{};
    fd = same_fd;
    generation = next_generation;
    life = next_life;
    owned = now_owned;
    tcp = is_tcp;
  }
};

static_assert(sizeof(void*) != 8 || sizeof(descriptor) == 48, "there is one for each connection");

/// The descriptors of a reactor by number. Entries keep their address.
class descriptor_table {
 public:
  /// Errors    std::bad_alloc.
  explicit descriptor_table(syscalls& calls) : calls_(calls), first_(calls.first_descriptor()) {}

  /// The entry of `fd`. Null when `fd` is not open. Errors: std::bad_alloc.
  descriptor* find(int fd) {
    descriptor* d = known(fd);
    return d != nullptr ? d : add(fd);
  }

  /// The entry of `fd` if there is one already.
  descriptor* known(int fd) noexcept {
    if (fd < first_) return nullptr;
    const auto index = static_cast<std::size_t>(fd - first_);
    return index < size_ ? &at(index) : nullptr;
  }

  /// How many entries there are.
  std::size_t size() const noexcept { return size_; }

  /// Calls `f` with each entry.
  template <class F>
  void for_each(F&& f) {
    for (std::size_t index = 0; index < size_; ++index) f(at(index));
  }

 private:
  // A power of two, and not a deque: who waits is looked up here several times for each message.
  static constexpr std::size_t chunk = 256;

  descriptor& at(std::size_t index) noexcept { return chunks_[index / chunk][index % chunk]; }

  descriptor* add(int fd) {
    // That also bounds the table by the limit on open files.
    if (fd < first_ || calls_.is_open(fd) < 0) return nullptr;
    const auto index = static_cast<std::size_t>(fd - first_);
    grow(index + 1);
    return &at(index);
  }

  void grow(std::size_t size) {
    while (size_ < size) {
      if (size_ == chunks_.size() * chunk) chunks_.push_back(std::make_unique<descriptor[]>(chunk));
      at(size_).fd = first_ + static_cast<int>(size_);
      ++size_;
    }
  }

  syscalls& calls_;
  int first_;
  std::vector<std::unique_ptr<descriptor[]>> chunks_;
  std::size_t size_ = 0;
};

}  // namespace coax::inline COAX_ABI
