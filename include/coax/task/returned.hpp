#pragma once

#include <coax/config.hpp>
#include <coax/task/exceptions.hpp>

#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// What a function has returned or thrown: a place for it, until it is taken.
template <class T>
class returned {
 public:
  template <class U>
  void set(U&& value) {
    value_.emplace(std::forward<U>(value));
  }
  void fail(std::exception_ptr thrown) noexcept { thrown_ = std::move(thrown); }

  /// Moves in what `other` has; what that throws stands for it.
  void take_over(returned& other) noexcept {
    thrown_ = std::move(other.thrown_);
    if (thrown_) return;
    if constexpr (std::is_nothrow_move_constructible_v<T>)
      value_.emplace(std::move(*other.value_));
    else
      thrown_ = caught([&] { value_.emplace(std::move(*other.value_)); });
  }

  /// Null where it has returned, or not yet ended.
  const std::exception_ptr& exception() const noexcept { return thrown_; }
  /// The value, moved out; rethrows what was thrown.
  T take() {
    if (thrown_) rethrow(thrown_);
    return std::move(*value_);
  }

 private:
  std::optional<T> value_;
  std::exception_ptr thrown_;
};

template <>
class returned<void> {
 public:
  void fail(std::exception_ptr thrown) noexcept { thrown_ = std::move(thrown); }
  void take_over(returned& other) noexcept { thrown_ = std::move(other.thrown_); }

  const std::exception_ptr& exception() const noexcept { return thrown_; }
  void take() const {
    if (thrown_) rethrow(thrown_);
  }

 private:
  std::exception_ptr thrown_;
};

}  // namespace coax::inline COAX_ABI::detail
