#pragma once

#include <coax/config.hpp>
#include <coax/io/blocking_pool.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>
#include <coax/task/returned.hpp>
#include <coax/task/root.hpp>

#include <exception>
#include <memory>
#include <optional>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// The wait for a job, whatever it gives.
class blocking_wait : public waiter {
 public:
  waiting_for describe() const noexcept final { return {"blocking work"}; }

 protected:
  explicit blocking_wait(std::unique_ptr<blocking_job> job) noexcept : job_(std::move(job)) {}
  blocking_wait(blocking_wait&&) = default;
  ~blocking_wait() = default;

  std::unique_ptr<blocking_job> job_;
  std::error_code refused_;  // why the pool did not take it

 private:
  friend class blocking_job;

  bool start() noexcept final {
    reactor& here = reactor::current();
    if (here.runs_blocking_inline()) return job_->perform(), true;
    job_->waiting_ = this;
    job_->at_ = &here;
    blocking_pool* const pool = blocking_pool::instance();
    refused_ =
        pool == nullptr ? std::make_error_code(std::errc::not_enough_memory) : pool->submit(*job_);
    if (refused_) return true;
    here.waits_elsewhere();
    return false;
  }

  void stop() noexcept final {
    switch (blocking_pool::instance()->give_up(*job_)) {
      case blocking_pool::given_up::too_late:
        return;
      case blocking_pool::given_up::abandoned:
        static_cast<void>(job_.release());
        break;
      case blocking_pool::given_up::withdrawn:
        job_.reset();
        break;
    }
    reactor::current().waited_elsewhere();
    stopped();
  }

  void done() noexcept {
    reactor::current().waited_elsewhere();
    complete();
  }
};

inline void blocking_job::tell() noexcept { waiting_->done(); }

/// A job that gives a `T`.
template <class T>
class blocking_result : public blocking_job {
 public:
  /// What it gave, moved out; rethrows what it threw.
  T take() { return returned_.take(); }

 protected:
  returned<T> returned_;
};

template <class F, class... A>
class blocking_call final : public blocking_result<std::invoke_result_t<F, A...>> {
 public:
  template <class G, class... B>
  explicit blocking_call(std::in_place_t, G&& fn, B&&... args)
      : work_(std::in_place, std::forward<G>(fn), std::forward<B>(args)...) {}

  void perform() noexcept override {
    const auto call = [](F& fn, A&... args) {
      return detail::invoke(std::forward<F>(fn), std::forward<A>(args)...);
    };
    std::exception_ptr failure = caught([&] {
      if constexpr (std::is_void_v<std::invoke_result_t<F, A...>>)
        std::apply(call, *work_);
      else
        this->returned_.set(std::apply(call, *work_));
    });
    if (failure) this->returned_.fail(std::move(failure));
    work_.reset();
  }

 private:
  std::optional<std::tuple<F, A...>> work_;
};

/// The await of `call_in_pool`.
template <class T>
class [[nodiscard]] blocking_awaiter final : public blocking_wait {
 public:
  explicit blocking_awaiter(std::unique_ptr<blocking_result<T>> job) noexcept
      : blocking_wait(std::move(job)) {}

  T await_resume() {
    if (refused_) {
      if constexpr (is_result_v<T>)
        return refused_;
      else
        throw_system_error(refused_, "coax: blocking has no thread");
    }
    return static_cast<blocking_result<T>&>(*job_).take();
  }
};

/// Awaits `fn(args...)` in a thread of the pool.
template <class F, class... A>
auto call_in_pool(F&& fn, A&&... args) {
  using call = blocking_call<std::decay_t<F>, std::unwrap_ref_decay_t<A>...>;
  using given = std::invoke_result_t<std::decay_t<F>, std::unwrap_ref_decay_t<A>...>;
  std::unique_ptr<blocking_result<given>> job =
      std::make_unique<call>(std::in_place, std::forward<F>(fn), std::forward<A>(args)...);
  return blocking_awaiter<given>(std::move(job));
}

}  // namespace coax::inline COAX_ABI::detail
