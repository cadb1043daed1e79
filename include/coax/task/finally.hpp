#pragma once

#include <coax/config.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/composite.hpp>
#include <coax/task/task.hpp>

#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

namespace detail {

/// The wait for a body and then for its clean-up, each as a root of its own.
template <class T>
class finally_end final : public composite {
 public:
  finally_end(task<T> body, task<> cleanup) noexcept
      : body_(std::move(body)), cleanup_(std::move(cleanup)) {}

  waiting_for describe() const noexcept override {
    return {cleaning_up_ ? "a clean-up" : "a body with a clean-up"};
  }

  T await_resume() {
    rethrow_failure();
    return body_.take_finished();
  }

 private:
  void begin() noexcept override { body_.begin(*this); }

  /// The clean-up is not cancelled: it is there for when all else is.
  void cancel_branches() noexcept override { body_.cancel(); }

  void one_ended() noexcept override {
    if (std::exchange(cleaning_up_, true)) return;
    cleanup_.begin_later(*this);
  }

  branch<T> body_;
  branch<void> cleanup_;  // made before the body begins: afterwards there may be no memory for it
  bool cleaning_up_ = false;
};

template <class T, class Body>
task<T> run_body(Body& make) {
  co_return co_await make();
}

template <class Cleanup>
task<> run_cleanup(Cleanup& make) {
  co_await make();
}

template <class T, class Body, class Cleanup>
task<T> with_cleanup(Body body, Cleanup cleanup) {
  co_return co_await finally_end<T>(run_body<T>(body), run_cleanup(cleanup));
}

}  // namespace detail

/// Runs `body()`, which gives a task, and then `cleanup()`, which gives a task<>, whichever way the body
/// ended: it returned, it threw, or it was cancelled.
///
/// The clean-up may wait, also when everything around it is being cancelled: requests to cancel wait
/// until it has ended. Give what it waits for a deadline.
///
/// Result    what the body gives.
/// Errors    what the body throws, else what the clean-up throws; std::bad_alloc too, when there is no
///           memory for the task that `cleanup()` gives: it has not run then.
/// Lifetime  both are moved into the task. On g++ 12 closures written into the call must be trivially
///           destructible (capture by reference).
template <class Body, class Cleanup>
[[nodiscard]] auto finally(Body&& body, Cleanup&& cleanup) {
  using body_task = detail::given_t<std::decay_t<Body>&>;
  static_assert(is_task_v<body_task>, "the body of finally is a function that gives a coax::task");
  static_assert(std::is_same_v<detail::given_t<std::decay_t<Cleanup>&>, task<>>,
                "the clean-up of finally is a function that gives a coax::task<>");
  detail::require_safe_closure<Body>();
  detail::require_safe_closure<Cleanup>();
  return detail::with_cleanup<typename body_task::value_type, std::decay_t<Body>,
                              std::decay_t<Cleanup>>(std::forward<Body>(body),
                                                     std::forward<Cleanup>(cleanup));
}

}  // namespace coax::inline COAX_ABI
