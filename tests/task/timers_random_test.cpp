#include <coax/task/clock.hpp>
#include <coax/task/timers.hpp>

#include "../catch.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <vector>

/// Timers against a std::multimap, which is right and slow.

using point = coax::clock::time_point;

namespace {

constexpr point never = point::max();

class comparison {
 public:
  explicit comparison(std::uint64_t seed) : random_(seed), now_(some_distance()), timers_(now_) {
    for (int i = 0; i < timer_count; ++i) probes_.emplace_back(*this, i);
  }
  comparison(const comparison&) = delete;
  comparison& operator=(const comparison&) = delete;
  ~comparison() {
    for (auto& p : probes_) timers_.drop(p);
  }

  /// One random step; false when the two disagree.
  bool step() {
    switch (random_() % 8) {
      case 0:
        advance(reference_.empty() ? now_ : reference_.begin()->first);
        break;
      case 1:
        advance(random_() % 64 == 0 ? some_deadline()
                                    : now_ + std::min(some_distance(), left() / 64));
        break;
      case 2:
      case 3:
        drop(some_timer());
        break;
      default:
        set(some_timer());
    }
    return agree_ && timers_.size() == reference_.size() && next_agrees();
  }
  int fired() const { return fired_; }
  bool at_the_end_of_time() const { return now_ == never; }

 private:
  static constexpr int timer_count = 40;

  struct member final : coax::timer {
    member(comparison& c, int n) : owner(c), number(n) {}
    member(const member& other) : timer(), owner(other.owner), number(other.number) {}
    void expired() noexcept override { owner.fired(number); }
    comparison& owner;
    int number;
  };

  int some_timer() { return static_cast<int>(random_() % timer_count); }
  /// Each order of magnitude is as likely as any other.
  coax::clock::duration some_distance() {
    const auto bits = 1 + random_() % 63;
    return coax::clock::duration(static_cast<std::int64_t>(random_() >> bits));
  }
  coax::clock::duration left() const { return never - now_; }
  /// Near or far by chance: before now, now, up to the end of time; often equal to another one.
  point some_deadline() {
    if (random_() % 4 == 0 && !reference_.empty()) return reference_.rbegin()->first;
    if (random_() % 64 == 0) return never;
    if (random_() % 16 == 0) return now_ - std::min(some_distance(), now_.time_since_epoch());
    return now_ + std::min(some_distance(), left());
  }

  void set(int number) {
    drop(number);
    const point deadline = some_deadline();
    timers_.set(probe_of(number), deadline);
    reference_.emplace(std::max(deadline, now_), number);
  }
  void drop(int number) {
    timers_.drop(probe_of(number));
    std::erase_if(reference_, [&](const auto& entry) { return entry.second == number; });
  }
  void advance(point to) {
    until_ = std::max(to, now_);
    timers_.expire(to);
    if (!reference_.empty() && reference_.begin()->first <= until_) agree_ = false;
    now_ = until_;
  }
  void fired(int number) {
    const auto first = reference_.begin();
    if (first == reference_.end() || first->second != number || first->first > until_) {
      agree_ = false;
      return;
    }
    ++fired_;
    now_ = first->first;
    reference_.erase(first);
    if (random_() % 4 == 0) drop(some_timer());
    if (random_() % 4 == 0 && now_ < never) set(some_timer());
  }
  bool next_agrees() {
    const std::optional<point> by = timers_.look_by();
    if (reference_.empty()) return !by;
    if (!by || *by < now_ || *by > reference_.begin()->first) return false;
    if (random_() % 4 != 0) return true;  // for `next` leaves nothing to be found out by `expire`
    const std::optional<point> next = timers_.next();
    if (!next || *next < *by || timers_.look_by() != next) return false;
    return reference_.size() <= 16 ? *next == reference_.begin()->first
                                   : *next <= reference_.begin()->first;
  }
  member& probe_of(int number) { return probes_[static_cast<std::size_t>(number)]; }

  std::mt19937_64 random_;
  point now_;
  point until_{};
  coax::timers timers_;
  std::multimap<point, int> reference_;  // equal keys stay in the order of insertion
  std::vector<member> probes_;
  bool agree_ = true;
  int fired_ = 0;
};

}  // namespace

TEST_CASE("timers agree with a sorted list over random histories", "[timers]") {
  int fired = 0;
  int ended = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    comparison c(seed);
    for (int i = 0; i < 400; ++i) {
      if (!c.step()) FAIL("seed " << seed << ", step " << i);
    }
    fired += c.fired();
    ended += c.at_the_end_of_time() ? 1 : 0;
  }
  CHECK(fired > 300 * 100);
  CHECK(ended > 10);   // histories have come to the end of time,
  CHECK(ended < 290);  // and others have not
}
