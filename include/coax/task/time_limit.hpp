#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/timers.hpp>

#include <chrono>

namespace coax::inline COAX_ABI::detail {

/// The timer of a wait, as a base of what holds that: asks it to stop when the time is up. What has
/// completed by then stays completed. The end of time is no limit.
class time_limit : public timer {
 public:
  time_limit(const time_limit&) = delete;
  time_limit& operator=(const time_limit&) = delete;

  /// Before it is set.
  timeout limit() const noexcept { return kept(); }
  void limit(timeout of_the_wait) noexcept { keep(of_the_wait.value()); }

 protected:
  explicit time_limit(timeout of_the_wait = clock::duration::max()) noexcept { limit(of_the_wait); }
  ~time_limit() {
    if (is_set()) loop::current().deadlines().drop(*this);
  }

  void set_limit() noexcept {
    if (kept() == clock::duration::max()) return;
    loop& here = loop::current();
    here.deadlines().set(*this,
                         limit().after(kept() < long_enough ? here.now() : here.rough_now()));
  }

 private:
  // Reading the clock exactly costs as much as all else that is done for a timeout.
  static constexpr clock::duration long_enough = std::chrono::seconds(1);
};

}  // namespace coax::inline COAX_ABI::detail
