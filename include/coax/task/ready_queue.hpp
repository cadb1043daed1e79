#pragma once

#include <coax/config.hpp>

#include <cstddef>

namespace coax::inline COAX_ABI {

class loop;

/// Something that waits in a loop's ready queue for its turn to run.
class ready_node {
 protected:
  ready_node() = default;
  ready_node(const ready_node&) noexcept {}  // being queued is not copied
  ready_node& operator=(const ready_node&) = delete;
  ~ready_node() = default;

  virtual void run() noexcept = 0;
  /// Instead of `run`, when the loop ends before its turn has come.
  virtual void dropped() noexcept {}

 private:
  friend class loop;
  friend class ready_queue;
  ready_node* next_ = nullptr;
};

/// An intrusive first-in, first-out queue.
class ready_queue {
 public:
  bool empty() const noexcept { return first_ == nullptr; }
  std::size_t size() const noexcept { return size_; }

  void push(ready_node& node) noexcept {
    node.next_ = nullptr;
    (first_ == nullptr ? first_ : last_->next_) = &node;
    last_ = &node;
    ++size_;
  }

  ready_node* front() const noexcept { return first_; }

  /// Moves all of `others` behind what is here, in constant time.
  void append(ready_queue& others) noexcept {
    if (others.empty()) return;
    (first_ == nullptr ? first_ : last_->next_) = others.first_;
    last_ = others.last_;
    size_ += others.size_;
    others = {};
  }

  ready_node* pop() noexcept {
    ready_node* node = first_;
    if (node != nullptr) {
      first_ = node->next_;
      --size_;
    }
    return node;
  }

  /// Empties the queue; nothing in it is going to run.
  void drop_all() noexcept {
    while (ready_node* node = pop()) node->dropped();
  }

  /// Takes `node` out wherever it is; false when it is not in the queue. Linear.
  bool remove(ready_node& node) noexcept {
    ready_node* before = nullptr;
    for (ready_node* at = first_; at != nullptr; before = at, at = at->next_) {
      if (at != &node) continue;
      (before == nullptr ? first_ : before->next_) = at->next_;
      if (last_ == at) last_ = before;
      --size_;
      return true;
    }
    return false;
  }

 private:
  ready_node* first_ = nullptr;
  ready_node* last_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace coax::inline COAX_ABI
