#pragma once

#include <coax/config.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/returned.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <cstddef>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::detail {

/// A wait for several roots at once: the branches of a race, the body and children of a scope.
///
/// It ends after the last of them, in one of three ways: an exception is delivered, even while
/// being cancelled; else, if the awaiting root is being cancelled and there is no result for it, that
/// root unwinds too; else it resumes. No branch outlives it.
class composite : public waiter {
 public:
  composite() noexcept : waiter(starts_always{}) {}
  composite(composite&& other) noexcept : waiter(other) {}  // before it is awaited

  /// Called by each branch when it has ended.
  void branch_ended(const std::exception_ptr& failure, bool unwound) noexcept {
    (unwound ? any_unwound_ : any_finished_) = true;
    --live_;
    if (failure && !failure_) {
      failure_ = failure;
      cut_short();
    }
    one_ended();
    if (live_ == 0 && !starting_) settle();
  }
  void branch_begun() noexcept { ++live_; }
  bool is_cut_short() const noexcept { return cut_short_; }

  const root_list* branches() const noexcept final { return &list_; }
  root_list& list() noexcept { return list_; }

  /// True when the root that awaits this is being cancelled, which nested roots inherit.
  bool outer_stopping() const noexcept { return root() != nullptr && root()->stopping(); }

 protected:
  ~composite() {
    if (live_ != 0) fatal("a coroutine was destroyed while tasks it awaits were still running");
  }

  /// Starts all branches, each after `branch_begun`.
  virtual void begin() noexcept = 0;
  virtual void cancel_branches() noexcept {
    for (coax::root* each = list_.first(); each != nullptr; each = each->next()) each->cancel();
  }
  virtual void one_ended() noexcept {}
  /// Cancels the branches; those that have not begun never do.
  void cut_short() noexcept {
    if (!std::exchange(cut_short_, true)) cancel_branches();
  }

  /// Whether there is a result, now that all have ended: unless a part of it is missing.
  virtual bool has_result() const noexcept { return !any_unwound_; }
  bool any_finished() const noexcept { return any_finished_; }

  std::size_t live() const noexcept { return live_; }
  void rethrow_failure() const {
    if (failure_) rethrow(failure_);
  }

 private:
  bool start() noexcept final {
    starting_ = true;
    begin();
    starting_ = false;
    return live_ == 0;  // none was unwound, which takes a turn
  }
  /// Those nested in it are stopped after it, not inside of this call: however deep they are nested,
  /// the stack is not.
  void stop() noexcept final {
    ready_queue& line = loop::current().stop_line();
    const bool outermost = line.empty();
    line.push(*this);
    if (!outermost) return;
    for (; !line.empty(); line.pop()) static_cast<composite*>(line.front())->cancel_branches();
  }

  void settle() noexcept {
    if (failure_ || has_result())
      complete();
    else
      stopped();
  }

  root_list list_{*this};
  std::size_t live_ = 0;
  std::exception_ptr failure_;
  bool any_unwound_ = false;
  bool any_finished_ = false;
  bool starting_ = false;
  bool cut_short_ = false;
};

/// One branch of a composite: a task that runs as a root of its own and leaves its result here. Its frame, and
/// what it was given with that, is gone once it has ended, whatever the others do.
template <class T>
class branch final : public root {
 public:
  explicit branch(task<T> t) noexcept : task_(std::move(t)) {}
  branch(branch&& other) noexcept : branch(std::move(other.task_)) {}  // before it has begun
  ~branch() { this->destroy_first(); }

  /// Runs the task up to its first wait, unless `owner` was cut short; where the awaiting root is being
  /// cancelled, so is this.
  void begin(composite& owner) noexcept {
    if (owner.is_cut_short()) return;
    take_up(owner);
    if (owner.outer_stopping()) cancel();
    if (start_now()) ended(outcome::finished);
  }

  /// Has it run from the next turn on, whether or not the awaiting root is being cancelled.
  void begin_later(composite& owner) noexcept {
    take_up(owner);
    start_later();
  }

  bool finished() const noexcept { return finished_; }

  /// The result, when the task has returned one.
  std::optional<T> take() {
    if (!finished_) return std::nullopt;
    return take_finished();
  }
  /// The result of a task that has returned one for sure.
  T take_finished() { return returned_.take(); }

 private:
  void take_up(composite& owner) noexcept {
    owner_ = &owner;
    const auto frame = std::move(task_).release();
    if (!frame) fatal("a task was awaited twice, or after it had been moved from");
    adopt(frame, owner.list());
    owner.branch_begun();
  }

  void ended(outcome how) noexcept override {
    if (how == outcome::finished) {
      returned_.take_over(
          this->template first<typename task<T>::promise_type>().promise().outcome());
      finished_ = returned_.exception() == nullptr;
      this->destroy_first();
    }
    owner_->branch_ended(returned_.exception(), how == outcome::unwound);
  }

  task<T> task_;
  returned<T> returned_;
  composite* owner_ = nullptr;
  bool finished_ = false;
};

/// A branch for each of `awaitables`.
template <class T, class A>
std::vector<branch<T>> branches_of(std::vector<A> awaitables) {
  std::vector<branch<T>> made;
  made.reserve(awaitables.size());
  for (A& each : awaitables) made.emplace_back(as_task(std::move(each)));
  return made;
}

}  // namespace coax::inline COAX_ABI::detail
