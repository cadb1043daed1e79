#pragma once

#include <coax/config.hpp>
#include <coax/task/composite.hpp>

#include <optional>
#include <tuple>
#include <utility>

namespace coax::inline COAX_ABI {

/// The await of `race`.
template <class... T>
class race_awaiter final : public detail::composite {
 public:
  template <class... A>
  explicit race_awaiter(std::in_place_t, A&&... awaitables)
      : branches_(detail::as_regular_task(std::forward<A>(awaitables))...) {}

  waiting_for describe() const noexcept override { return {"a race"}; }

  std::tuple<std::optional<T>...> await_resume() {
    rethrow_failure();
    return std::apply([](auto&... b) { return std::tuple<std::optional<T>...>(b.take()...); },
                      branches_);
  }

 private:
  void begin() noexcept override {
    std::apply([this](auto&... b) { ((over_ ? void() : b.begin(*this)), ...); }, branches_);
  }
  void one_ended() noexcept override {
    over_ = true;
    cancel_branches();
  }
  void cancel_branches() noexcept override {
    std::apply([](auto&... b) { (b.cancel(), ...); }, branches_);
  }

  std::tuple<detail::branch<T>...> branches_;
  bool over_ = false;
};

/// Runs several awaitables at once; the first to end cancels the others, and all have ended when it
/// returns.
///
/// Result    a tuple with an optional for each branch: its result, or empty if it was cancelled.
///           Several can have a result: what had completed is never thrown away. A branch that
///           gives nothing has a std::monostate. May be ignored.
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

}  // namespace coax::inline COAX_ABI
