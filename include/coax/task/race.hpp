#pragma once

#include <coax/config.hpp>
#include <coax/task/composite.hpp>

#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

namespace detail {

/// A wait in which the first branch to end cancels the others.
class race_wait : public composite {
 public:
  waiting_for describe() const noexcept final { return {"a race"}; }

 protected:
  race_wait() = default;
  race_wait(race_wait&&) = default;  // before it is awaited
  ~race_wait() = default;

 private:
  void one_ended() noexcept final { cut_short(); }
  /// What one has completed is given, though others were unwound.
  bool has_result() const noexcept final { return any_finished(); }
};

}  // namespace detail

/// The await of `race`.
template <class... T>
class [[nodiscard]] race_awaiter final : public detail::race_wait {
 public:
  template <class... A>
  explicit race_awaiter(std::in_place_t, A&&... awaitables)
      : branches_(detail::as_task(std::forward<A>(awaitables))...) {}

  std::tuple<std::optional<T>...> await_resume() {
    rethrow_failure();
    return std::apply([](auto&... b) { return std::tuple<std::optional<T>...>(b.take()...); },
                      branches_);
  }

 private:
  void begin() noexcept override {
    std::apply([this](auto&... b) { (b.begin(*this), ...); }, branches_);
  }

  std::tuple<detail::branch<T>...> branches_;
};

/// The await of `race` of a vector.
template <class T>
class [[nodiscard]] race_of_awaiter final : public detail::race_wait {
 public:
  template <class A>
  explicit race_of_awaiter(std::vector<A> awaitables)
      : branches_(detail::branches_of<T>(std::move(awaitables))) {}

  std::vector<std::optional<T>> await_resume() {
    rethrow_failure();
    std::vector<std::optional<T>> results;
    results.reserve(branches_.size());
    for (auto& b : branches_) results.push_back(b.take());
    return results;
  }

 private:
  void begin() noexcept override {
    for (auto& b : branches_) b.begin(*this);
  }

  std::vector<detail::branch<T>> branches_;
};

/// Runs several awaitables at once; the first to end cancels the others, and all have ended when it
/// returns.
///
/// Result    a tuple with an optional for each branch: its result, or empty if it was cancelled.
///           Several can have a result: what had completed is never thrown away, also when the race
///           itself is being cancelled. A branch that gives nothing has a std::monostate. May be
///           ignored.
/// Errors    the first exception of a branch, after the others have ended.
/// Order     branches start from left to right; once one has ended, those not begun never begin.
template <class... A>
race_awaiter<detail::regular_t<await_result_t<A>>...> race(A&&... awaitables) {
  static_assert(sizeof...(A) > 0, "a race needs at least one branch");
  static_assert((!std::is_lvalue_reference_v<A> && ...),
                "move the awaitable into race, or call what makes it there");
  return race_awaiter<detail::regular_t<await_result_t<A>>...>(std::in_place,
                                                               std::forward<A>(awaitables)...);
}

/// The same for any number of awaitables of one type; of none it returns at once.
///
/// Result    a vector with an optional for each, in the same order.
template <class A>
race_of_awaiter<detail::regular_t<await_result_t<A>>> race(std::vector<A>&& awaitables) {
  return race_of_awaiter<detail::regular_t<await_result_t<A>>>(std::move(awaitables));
}

}  // namespace coax::inline COAX_ABI
