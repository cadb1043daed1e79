#pragma once

#include <coax/config.hpp>
#include <coax/task/composite.hpp>

#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI {

/// The await of `when_all` of several awaitables.
template <class... T>
class [[nodiscard]] when_all_awaiter final : public detail::composite {
 public:
  template <class... A>
  explicit when_all_awaiter(std::in_place_t, A&&... awaitables)
      : branches_(detail::as_task(std::forward<A>(awaitables))...) {}

  waiting_for describe() const noexcept override { return {"all of several"}; }

  std::tuple<T...> await_resume() {
    rethrow_failure();
    return std::apply([](auto&... b) { return std::tuple<T...>(b.take_finished()...); }, branches_);
  }

 private:
  void begin() noexcept override {
    std::apply([this](auto&... b) { (b.begin(*this), ...); }, branches_);
  }

  std::tuple<detail::branch<T>...> branches_;
};

/// The await of `when_all` of a vector.
template <class T>
class [[nodiscard]] when_all_of_awaiter final : public detail::composite {
 public:
  template <class A>
  explicit when_all_of_awaiter(std::vector<A> awaitables)
      : branches_(detail::branches_of<detail::regular_t<T>>(std::move(awaitables))) {}

  waiting_for describe() const noexcept override { return {"all of several"}; }

  auto await_resume() {
    rethrow_failure();
    if constexpr (!std::is_void_v<T>) {
      std::vector<T> results;
      results.reserve(branches_.size());
      for (auto& b : branches_) results.push_back(b.take_finished());
      return results;
    }
  }

 private:
  void begin() noexcept override {
    for (auto& b : branches_) b.begin(*this);
  }

  std::vector<detail::branch<detail::regular_t<T>>> branches_;
};

/// Runs several awaitables at once and waits for all of them.
///
/// Result    a tuple with the result of each; a std::monostate for one that gives nothing.
/// Errors    the first exception of a branch, which cancels the others, after all have ended. A
///           `result` that holds an error is a result like any other.
/// Order     branches start from left to right; once one has thrown, those not begun never begin.
/// Cancel    before all have ended, also by the limit of a `within`, it gives nothing: what some have given
///           is lost. Where a read must not be, make it in a task that stores what it got.
template <class... A>
when_all_awaiter<detail::regular_t<await_result_t<A>>...> when_all(A&&... awaitables) {
  static_assert(sizeof...(A) > 0, "when_all needs at least one branch");
  static_assert((!std::is_lvalue_reference_v<A> && ...),
                "move the awaitable into when_all, or call what makes it there");
  return when_all_awaiter<detail::regular_t<await_result_t<A>>...>(std::in_place,
                                                                   std::forward<A>(awaitables)...);
}

/// The same for any number of awaitables of one type; none are all at once.
///
/// Result    a vector of the results, in the same order; nothing where they give nothing.
template <class A>
when_all_of_awaiter<await_result_t<A>> when_all(std::vector<A>&& awaitables) {
  return when_all_of_awaiter<await_result_t<A>>(std::move(awaitables));
}

}  // namespace coax::inline COAX_ABI
