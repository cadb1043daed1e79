#pragma once

#include <coax/config.hpp>

#include <cstddef>

namespace coax::inline COAX_ABI::detail {

/// Those who wait for one thing, in the order they came: the first is served, or the last. Allocates
/// nothing, since each brings its place along.
template <class Wait>
class wait_queue {
 public:
  /// A base of `Wait`.
  class place {
   protected:
    place() = default;
    place(const place&) noexcept {}  // standing in a queue is not copied
    place& operator=(const place&) = delete;
    ~place() = default;

   private:
    friend class wait_queue;
    Wait* previous_ = nullptr;
    Wait* next_ = nullptr;
  };

  wait_queue() = default;
  wait_queue(const wait_queue&) = delete;
  wait_queue& operator=(const wait_queue&) = delete;

  bool empty() const noexcept { return first_ == nullptr; }
  std::size_t size() const noexcept { return size_; }

  /// To look at each in turn; null at the end.
  Wait* first() const noexcept { return first_; }
  static Wait* behind(Wait& wait) noexcept { return of(wait).next_; }

  void push(Wait& last) noexcept {
    of(last).previous_ = last_;
    of(last).next_ = nullptr;
    (last_ == nullptr ? first_ : of(*last_).next_) = &last;
    last_ = &last;
    ++size_;
  }

  /// Null when nobody waits.
  Wait* pop() noexcept {
    Wait* const first = first_;
    if (first != nullptr) remove(*first);
    return first;
  }
  /// The same of the one who came last.
  Wait* pop_last() noexcept {
    Wait* const last = last_;
    if (last != nullptr) remove(*last);
    return last;
  }

  /// Takes out one that stands in the queue, wherever.
  void remove(Wait& gone) noexcept {
    place& its = of(gone);
    (its.previous_ == nullptr ? first_ : of(*its.previous_).next_) = its.next_;
    (its.next_ == nullptr ? last_ : of(*its.next_).previous_) = its.previous_;
    --size_;
  }

 private:
  static place& of(Wait& wait) noexcept { return wait; }

  Wait* first_ = nullptr;
  Wait* last_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace coax::inline COAX_ABI::detail
