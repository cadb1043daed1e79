#pragma once

#include <coax/config.hpp>
#include <coax/task/root.hpp>
#include <coax/task/wait_queue.hpp>

namespace coax::inline COAX_ABI::detail {

/// A wait that stands in a queue, `Wait::line()`, until it is served; where `ready_now` gets what it is for,
/// it does not begin.
template <class Wait, class Place = typename wait_queue<Wait>::place>
class queued_wait : public waiter, public Place {
 protected:
  queued_wait() = default;
  queued_wait(const queued_wait&) = default;
  queued_wait& operator=(const queued_wait&) = delete;
  ~queued_wait() = default;

  bool ready_now() noexcept override = 0;

 private:
  bool start() noexcept final {
    if (ready_now()) return true;
    self().line().push(self());
    return false;
  }
  void stop() noexcept final {
    self().line().remove(self());
    stopped();
  }
  Wait& self() noexcept { return static_cast<Wait&>(*this); }
};

}  // namespace coax::inline COAX_ABI::detail
