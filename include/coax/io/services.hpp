#pragma once

#include <coax/config.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <memory>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::detail {

/// The tasks a reactor runs for itself, such as waiting for its own wake-up. They never return;
/// they are cancelled when the run ends.
class services {
 public:
  void spawn(task<> t) {
    running_.reserve(running_.size() + 1);  // one that has begun must not be destroyed
    running_.push_back(std::make_unique<service>(std::move(t), roots_));
  }

  void cancel() noexcept {
    for (const auto& each : running_) each->cancel();
  }
  bool all_ended() const noexcept {
    for (const auto& each : running_)
      if (!each->has_ended()) return false;
    return true;
  }

 private:
  class service final : public root {
   public:
    service(task<> t, root_list& list) noexcept {
      adopt(std::move(t).release(), list);
      start_later();
    }
    ~service() { destroy_first(); }
    bool has_ended() const noexcept { return ended_; }

   private:
    void ended(outcome) noexcept override { ended_ = true; }
    bool ended_ = false;
  };

  root_list roots_;  // apart from those of the loop: a dump shows the user's tasks
  std::vector<std::unique_ptr<service>> running_;
};

}  // namespace coax::inline COAX_ABI::detail
