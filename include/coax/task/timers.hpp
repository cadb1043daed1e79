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
  /// Links all of the list `others`, in their order, before this one.
  void link_all_before(timer_link& others) noexcept {
    if (others.alone()) return;
    others.next->previous = previous;
    previous->next = others.next;
    others.previous->next = this;
    previous = others.previous;
    others.previous = others.next = &others;
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
  void limit(timeout d) noexcept {
    when_ = static_cast<std::uint64_t>(std::max(d.value(), clock::duration(0)).count());
  }
  timeout limit() const noexcept { return clock::duration(static_cast<clock::rep>(when_)); }

  /// The deadline has passed; the timer is no longer set. Runs in the loop and resumes nobody
  /// itself.
  virtual void expired() noexcept = 0;

 private:
  friend class timers;
  // Its limit, until `timers::set` or `count_from`. Then its deadline, or the time it was set at where that
  // is later.
  std::uint64_t when_ = 0;
};

/// All timers of a loop: set and dropped in O(1), fired in order of deadline, ties in order of
/// setting.
///
/// Most are dropped long before they are due. So a timer first goes to the end of a list, and only that the
/// first deadline is not before `first_` is known of it. When the time comes to that, those of the list that
/// are left are sorted into a wheel, each once.
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
    t.when_ = std::max(ticks(deadline), now_);
    first_ = std::min(first_, t.when_);
    t.link_before(unsorted_);
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
    const std::uint64_t from = std::max(ticks(now), now_);
    std::uint64_t first = first_;
    for (detail::timer_link* link = uncounted_.next; link != &uncounted_; link = link->next) {
      timer& t = static_cast<timer&>(*link);
      t.when_ = std::min(from + t.when_, ticks_max);
      first = std::min(first, t.when_);
    }
    first_ = first;
    unsorted_.link_all_before(uncounted_);
  }

  /// Takes `t` out if it is set.
  void drop(timer& t) noexcept {
    if (t.alone()) return;
    t.unlink();  // its slot may be empty now, which is found out when its time comes
    --count_;
  }

  std::size_t size() const noexcept { return count_; }

  /// False when `expire(now)` would fire none.
  bool may_be_due(clock::time_point now) const noexcept { return first_ <= ticks(now); }

  /// Fires all timers whose deadline is not after `now`.
  void expire(clock::time_point now) noexcept {
    const std::uint64_t until = std::max(ticks(now), now_);
    if (first_ <= until) turn_to(until);
    now_ = until;
  }

  /// When to look again at the latest: never after the first deadline. It may be long before that, as the
  /// deadline of one that was dropped, and is cheap. Limits that do not count yet are left out.
  std::optional<clock::time_point> look_by() const noexcept {
    if (count_ == 0) return std::nullopt;
    return point(first_);
  }

  /// The same, as late as possible: the first deadline, or a point before it where many are set.
  std::optional<clock::time_point> next() noexcept {
    first_ = UINT64_MAX;
    const auto first = first_slot();
    if (!first) return std::nullopt;
    first_ = first_in(*first);
    return point(first_);
  }

 private:
  static constexpr unsigned digit_bits = 6;
  static constexpr std::size_t slot_count = 64;
  static constexpr std::size_t level_count = 11;  // 11 x 6 bits cover 64
  static constexpr std::uint64_t ticks_max = INT64_MAX;
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
    const std::uint64_t differing = when ^ turned_to_;
    return differing == 0 ? 0
                          : (static_cast<std::size_t>(std::bit_width(differing)) - 1) / digit_bits;
  }
  static std::size_t index_in(std::size_t level, std::uint64_t when) noexcept {
    return (when >> (digit_bits * level)) % slot_count;
  }

  void insert(timer& t) noexcept {
    const std::size_t level = level_of(t.when_);
    const std::size_t index = index_in(level, t.when_);
    t.link_before(slots_[level][index]);
    occupied_[level] |= std::uint64_t{1} << index;
    levels_ |= 1U << level;
  }

  [[gnu::noinline]] void turn_to(std::uint64_t until) noexcept {
    while (const auto first = first_slot()) {
      if (first->start > until) break;
      turned_to_ = first->start;
      detail::timer_link& slot = slots_[first->level][first->index];
      if (first->level == 0) {
        now_ = turned_to_;
        timer& t = static_cast<timer&>(*slot.next);
        drop(t);
        t.expired();
      } else {
        sort_in(slot);  // spreads it over the levels below
      }
    }
    turned_to_ = until;
    next();
  }

  /// From the front, so that ties stay in the order of setting.
  void sort_in(detail::timer_link& list) noexcept {
    while (!list.alone()) {
      timer& t = static_cast<timer&>(*list.next);
      t.unlink();
      insert(t);
    }
  }

  std::optional<place> first_slot() noexcept {
    sort_in(unsorted_);
    for (; levels_ != 0; levels_ &= levels_ - 1) {
      const auto level = static_cast<std::size_t>(std::countr_zero(levels_));
      for (; occupied_[level] != 0; occupied_[level] &= occupied_[level] - 1) {
        const auto index = static_cast<std::size_t>(std::countr_zero(occupied_[level]));
        if (slots_[level][index].alone()) continue;  // all of it was dropped meanwhile
        const unsigned shift = static_cast<unsigned>(digit_bits * level);
        const unsigned above = shift + digit_bits;
        const std::uint64_t high = above >= 64 ? 0 : (turned_to_ >> above) << above;
        return place{level, index, high | (std::uint64_t{index} << shift)};
      }
    }
    return std::nullopt;
  }

  /// The first slot holds the first deadline. Where few share the slot, it is said exactly: waking at the
  /// slot's start would only be a step on the way.
  std::uint64_t first_in(const place& where) const noexcept {
    const detail::timer_link& slot = slots_[where.level][where.index];
    std::uint64_t earliest = UINT64_MAX;
    int looked_at = 0;
    for (const detail::timer_link* link = slot.next; link != &slot; link = link->next) {
      if (++looked_at > exact_up_to) return where.start;
      earliest = std::min(earliest, static_cast<const timer*>(link)->when_);
    }
    return earliest;
  }

  std::uint64_t now_;
  std::uint64_t first_ = UINT64_MAX;  // the first deadline that counts is not before that
  std::size_t count_ = 0;
  detail::timer_link uncounted_;
  detail::timer_link unsorted_;
  std::uint64_t turned_to_ = now_;                     // the wheel's time
  std::array<std::uint64_t, level_count> occupied_{};  // slots that may have timers
  std::uint32_t levels_ = 0;                           // levels that may have such slots
  std::array<std::array<detail::timer_link, slot_count>, level_count> slots_;
};

}  // namespace coax::inline COAX_ABI
