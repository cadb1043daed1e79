#pragma once

#include <coax/config.hpp>

#include <poll.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

class file;

/// Who is told that a file has changed: the kernel of the host that has it open.
class file_owner {
 public:
  /// One of `events` may have become true of `f`.
  virtual void changed(file& f, unsigned events) = 0;

 protected:
  file_owner() = default;
  file_owner(const file_owner&) = default;
  file_owner& operator=(const file_owner&) = default;
  ~file_owner() = default;
};

/// What a descriptor of a simulated host stands for.
class file {
 public:
  file() = default;
  file(const file&) = delete;
  file& operator=(const file&) = delete;
  virtual ~file() = default;

  /// The poll(2) events that are true now. A program that asks is told when others become true.
  virtual unsigned events() = 0;
  /// The descriptor is closed.
  virtual void closed() {}

  /// How a reactor watches it, as epoll(7) would.
  enum class report : std::uint8_t { while_true, at_change, once };
  struct watch {
    unsigned wanted = 0;
    report how = report::while_true;
    bool listed = false;  // waits to be reported
  };

  watch watched;
  file_owner* owner = nullptr;  // null once it is closed
  int fd = -1;

 protected:
  void changed(unsigned now_true) {
    if (owner != nullptr) owner->changed(*this, now_true);
  }
};

/// The counter of eventfd(2), by which a reactor is woken.
class wake_up final : public file {
 public:
  unsigned events() override { return count_ != 0 ? POLLIN | POLLOUT : POLLOUT; }
  void add() {
    ++count_;
    changed(POLLIN);
  }
  std::uint64_t take() noexcept {
    const std::uint64_t count = count_;
    count_ = 0;
    return count;
  }

 private:
  std::uint64_t count_ = 0;
};

/// A descriptor that stands for several others.
class file_set final : public file {
 public:
  unsigned events() override {
    for (const auto& [f, wanted] : members_)
      if (const auto there = f.lock(); there != nullptr && there->owner != nullptr &&
                                       (there->events() & (wanted | POLLERR | POLLHUP)) != 0)
        return POLLIN;
    return 0;
  }
  bool add(const std::shared_ptr<file>& f, unsigned wanted) {
    for (const auto& [known, events] : members_)
      if (known.lock() == f) return false;
    members_.emplace_back(f, wanted);
    return true;
  }
  /// `f` has changed.
  void look_at(const file& f) {
    for (const auto& [known, events] : members_)
      if (known.lock().get() == &f) return look();
  }
  void look() {
    if (events() != 0) changed(POLLIN);
  }

 private:
  std::vector<std::pair<std::weak_ptr<file>, unsigned>> members_;
};

}  // namespace coax::inline COAX_ABI::sim
