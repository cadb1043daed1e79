#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace coax::inline COAX_ABI {

namespace detail {

/// A place in a circular list; alone, it points to itself.
struct timer_link {
  timer_link* previous = this;
  timer_link* next = this;

  timer_link() = default;
  timer_link(const timer_link&) = delete;
  timer_link& operator=(const timer_link&) = delete;

  bool alone() const noexcept { return next == this; }
  void unlink() noexcept {
    previous->next = next;
    next->previous = previous;
    previous = next = this;
  }
  void link_before(timer_link& other) noexcept {
    previous = other.previous;
    next = &other;
    previous->next = other.previous = this;
  }
};

}  // namespace detail

class timers;

/// Something that is told when a deadline has passed. It lives in whoever waits: setting it
/// allocates nothing. It must be dropped before it is destroyed.
class timer : private detail::timer_link {
 protected:
  timer() = default;
  ~timer() = default;

  bool is_set() const noexcept { return !alone(); }

  /// How long `timers::set_later` is to set it for. Before it is set.
  void limit(timeout d) noexcept { when_ = static_cast<std::uint64_t>(d.value().count()); }
  timeout limit() const noexcept { return clock::duration(static_cast<clock::rep>(when_)); }

  /// The deadline has passed; the timer is no longer set. Runs in the loop and resumes nobody
  /// itself.
  virtual void expired() noexcept = 0;

 private:
  friend class timers;
  // Its limit, until `timers::set` or `count_from`. Then its deadline, or the wheel's time where that is
  // later.
  std::uint64_t when_ = 0;
};

/// All timers of a loop: set and dropped in O(1), fired in order of deadline, ties in order of
/// setting.
///
/// A hierarchical wheel over nanoseconds: level L has 64 slots of 64^L ns. A timer sits at the
/// level of the highest digit (base 64) in which its deadline differs from the wheel's time; when
/// the wheel's time reaches a slot of a higher level, the slot is spread over the levels below.
/// Since time within a level only moves forward to the first occupied slot, a timer's place can be
/// computed again from its deadline at any moment, and the wheel never searches.
class timers {
 public:
  explicit timers(clock::time_point start) noexcept : now_(ticks(start)) {}

  void set(timer& t, clock::time_point deadline) noexcept {
    insert_at(t, deadline);
    ++count_;
  }

  /// Sets `t` for as long as its limit says, counted from the next `count_from`. Cheap for those that
  /// are dropped before that.
  void set_later(timer& t) noexcept {
    t.link_before(uncounted_);
    ++count_;
  }
  bool has_uncounted() const noexcept { return !uncounted_.alone(); }
  void count_from(clock::time_point now) noexcept {
    while (has_uncounted()) {
      timer& t = static_cast<timer&>(*uncounted_.next);
      t.unlink();
      insert_at(t, t.limit().after(now));
    }
  }

  /// Takes `t` out if it is set.
  void drop(timer& t) noexcept {
    if (t.alone()) return;
    t.unlink();  // its slot may be empty now, which is found out when its time comes
    --count_;
  }

  bool is_set(const timer& t) const noexcept { return !t.alone(); }
  std::size_t size() const noexcept { return count_; }

  /// False when `expire(now)` would fire none.
  bool may_be_due(clock::time_point now) const noexcept {
    const auto first = first_slot();
    return first && first->start <= ticks(now);
  }

  /// Fires all timers whose deadline is not after `now`.
  void expire(clock::time_point now) noexcept {
    const std::uint64_t until = std::max(ticks(now), now_);
    while (const auto first = first_slot()) {
      if (first->start > until) break;
      now_ = first->start;
      detail::timer_link& slot = slots_[first->level][first->index];
      if (first->level == 0) {
        timer& t = static_cast<timer&>(*slot.next);
        drop(t);
        t.expired();
      } else {
        spread(slot, first->level, first->index);
      }
    }
    now_ = until;
  }

  /// When to look again: the first deadline, or a point before it, never one after. Limits that do not
  /// count yet are left out.
  std::optional<clock::time_point> next() const noexcept {
    const auto first = first_slot();
    if (!first) return std::nullopt;
    // The first slot holds the first deadline. Where few share the slot, say it exactly: waking at
    // the slot's start would only be a step on the way.
    const detail::timer_link& slot = slots_[first->level][first->index];
    std::uint64_t earliest = UINT64_MAX;
    int looked_at = 0;
    for (const detail::timer_link* link = slot.next; link != &slot; link = link->next) {
      if (++looked_at > exact_up_to) return point(first->start);
      earliest = std::min(earliest, static_cast<const timer*>(link)->when_);
    }
    return point(earliest);
  }

 private:
  static constexpr unsigned digit_bits = 6;
  static constexpr std::size_t slot_count = 64;
  static constexpr std::size_t level_count = 11;  // 11 x 6 bits cover 64
  static constexpr int exact_up_to = 16;

  struct place {
    std::size_t level;
    std::size_t index;
    std::uint64_t start;  // the first tick of the slot
  };

  static std::uint64_t ticks(clock::time_point t) noexcept {
    const auto count = t.time_since_epoch().count();
    return count < 0 ? 0 : static_cast<std::uint64_t>(count);
  }
  static clock::time_point point(std::uint64_t t) noexcept {
    return clock::time_point(clock::duration(static_cast<clock::rep>(t)));
  }

  std::size_t level_of(std::uint64_t when) const noexcept {
    const std::uint64_t differing = when ^ now_;
    return differing == 0 ? 0
                          : (static_cast<std::size_t>(std::bit_width(differing)) - 1) / digit_bits;
  }
  static std::size_t index_in(std::size_t level, std::uint64_t when) noexcept {
    return (when >> (digit_bits * level)) % slot_count;
  }

  void insert_at(timer& t, clock::time_point deadline) noexcept {
    t.when_ = std::max(ticks(deadline), now_);
    insert(t);
  }
  void insert(timer& t) noexcept {
    const std::size_t level = level_of(t.when_);
    const std::size_t index = index_in(level, t.when_);
    t.link_before(slots_[level][index]);
    occupied_[level] |= std::uint64_t{1} << index;
    levels_ |= 1U << level;
  }

  std::optional<place> first_slot() const noexcept {
    for (; levels_ != 0; levels_ &= levels_ - 1) {
      const auto level = static_cast<std::size_t>(std::countr_zero(levels_));
      for (; occupied_[level] != 0; occupied_[level] &= occupied_[level] - 1) {
        const auto index = static_cast<std::size_t>(std::countr_zero(occupied_[level]));
        if (slots_[level][index].alone()) continue;  // all of it was dropped meanwhile
        const unsigned shift = static_cast<unsigned>(digit_bits * level);
        const unsigned above = shift + digit_bits;
        const std::uint64_t high = above >= 64 ? 0 : (now_ >> above) << above;
        return place{level, index, high | (std::uint64_t{index} << shift)};
      }
    }
    return std::nullopt;
  }

  void spread(detail::timer_link& slot, std::size_t level, std::size_t index) noexcept {
    occupied_[level] &= ~(std::uint64_t{1} << index);
    while (!slot.alone()) {  // from the front, so that ties stay in the order of setting
      timer& t = static_cast<timer&>(*slot.next);
      t.unlink();
      insert(t);
    }
  }

  std::uint64_t now_;
  std::size_t count_ = 0;
  detail::timer_link uncounted_;
  mutable std::array<std::uint64_t, level_count> occupied_{};  // slots that may have timers
  mutable std::uint32_t levels_ = 0;                           // levels that may have such slots
  std::array<std::array<detail::timer_link, slot_count>, level_count> slots_;
};

}  // namespace coax::inline COAX_ABI
