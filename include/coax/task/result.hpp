#pragma once

/// A value or an error code: what an operation that can fail gives.

#include <coax/config.hpp>
#include <coax/task/exceptions.hpp>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

/// What coax itself has to report; what the kernel reports keeps its own code (std::errc).
enum class errc {
  end_of_stream = 1,
  transfer_cut,
  bad_address,
  bad_port,
  path_too_long,
};

namespace detail {

class errc_category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "coax"; }

  std::string message(int code) const override {
    switch (static_cast<errc>(code)) {
      case errc::end_of_stream:
        return "the peer has ended the stream";
      case errc::transfer_cut:
        return "an earlier transfer in this direction of the stream was cut off in the middle";
      case errc::bad_address:
        return "not an address: write 127.0.0.1:9000, [::1]:9000 or unix:/path (host names are "
               "not resolved here)";
      case errc::bad_port:
        return "the port is not a number from 0 to 65535";
      case errc::path_too_long:
        return "the path of a Unix socket is at most 107 bytes";
    }
    return "unknown coax error " + std::to_string(code);
  }

  static const std::error_category& instance() noexcept {
    // never destroyed, so that a code can still be printed while statics are being destroyed
    static const errc_category& category = *new errc_category;
    return category;
  }
};

}  // namespace detail

inline std::error_code make_error_code(errc code) noexcept {
  return {static_cast<int>(code), detail::errc_category::instance()};
}

}  // namespace coax::inline COAX_ABI

template <>
struct std::is_error_code_enum<coax::errc> : std::true_type {};

namespace coax::inline COAX_ABI {

template <class T>
class result;

/// Whether T is a result of something.
template <class T>
inline constexpr bool is_result_v = false;
template <class T>
inline constexpr bool is_result_v<result<T>> = true;
template <class T>
inline constexpr bool is_result_v<const result<T>> = true;

namespace detail {

/// Stops at a bug in the program that uses a result; called in builds with assertions only.
[[noreturn]] inline void abort_over_result(const char* bug, std::error_code error) noexcept {
  std::fprintf(stderr, "coax: %s: %s\n", bug, error.message().c_str());
  std::abort();
}

inline std::error_code assert_failure(std::error_code error) noexcept {
#ifndef NDEBUG
  if (!error) abort_over_result("a result was made from an error code that says success", error);
#endif
  return error;
}

/// Stops where a result is dereferenced that holds an error.
inline void assert_value([[maybe_unused]] const auto& tested) noexcept {
#ifndef NDEBUG
  if (tested) return;
  abort_over_result("an error was dereferenced as if it were a value", tested.error());
#endif
}

/// An enumeration a result takes as an error. std::errc is one of conditions, hence by name.
template <class E>
concept error_enum = std::is_error_code_enum_v<E> || std::is_same_v<E, std::errc>;

template <class E>
concept error_like = error_enum<E> || std::is_same_v<E, std::error_code>;

// the cheap tests stand first: they keep is_convertible from asking result<T> about itself
template <class U, class T>
concept value_for = !std::is_same_v<std::remove_cvref_t<U>, result<T>> &&
                    !error_like<std::remove_cvref_t<U>> && std::is_convertible_v<U, T>;

}  // namespace detail

#if defined(__GNUC__) && !defined(__clang__)
// g++ loses sight of which of the two a result holds, and then warns, in the code of whoever uses
// a result, that the other is destroyed or read before it was written
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/// A value, or the reason why there is none.
///
/// It tests as a bool; `*r` and `r->` reach the value and are only for a result that was tested (in
/// debug builds an error that is dereferenced aborts); `r.value()` throws instead. Compare
/// `r.error()` with a code, `== std::errc::timed_out`, never by its text.
///
/// Errors    value() throws std::system_error, which says where it was called; without exceptions it
///           prints that and aborts.
/// Lifetime  owns the value; what `*`, `->` and value() give points into the result.
template <class T>
class [[nodiscard]] result {
  static_assert(
      std::is_object_v<T> && !std::is_array_v<T> && !std::is_const_v<T>,
      "coax::result<T>: T is void or a plain object type; give a pointer for a reference");
  static_assert(!detail::error_like<T>, "coax::result<T>: T must not itself be an error code");

 public:
  using value_type = T;

  template <class U = T>
    requires detail::value_for<U, T>
  result(U&& value) noexcept(std::is_nothrow_constructible_v<T, U>)
      : value_(static_cast<T>(std::forward<U>(value))) {}  // what fits is the caller's to say

  result(std::error_code error) noexcept
      : category_(&detail::assert_failure(error).category()), code_(error.value()) {}

  template <detail::error_enum E>
  result(E error) noexcept : result(std::error_code(make_error_code(error))) {}

  result(const result&)
    requires(std::is_trivially_copyable_v<T>)
  = default;
  result(const result& other) noexcept(std::is_nothrow_copy_constructible_v<T>)
    requires(std::is_copy_constructible_v<T> && !std::is_trivially_copyable_v<T>)
  {
    take_from(other);
  }
  result(result&&)
    requires(std::is_trivially_copyable_v<T>)
  = default;
  result(result&& other) noexcept(std::is_nothrow_move_constructible_v<T>)
    requires(!std::is_trivially_copyable_v<T>)
  {
    take_from(std::move(other));
  }
  result& operator=(const result&)
    requires(std::is_trivially_copyable_v<T>)
  = default;
  result& operator=(const result& other) noexcept(std::is_nothrow_copy_constructible_v<T> &&
                                                  std::is_nothrow_move_constructible_v<T>)
    requires(std::is_copy_constructible_v<T> && !std::is_trivially_copyable_v<T>)
  {
    return *this = result(other);
  }
  result& operator=(result&&)
    requires(std::is_trivially_copyable_v<T>)
  = default;
  result& operator=(result&& other) noexcept(std::is_nothrow_move_constructible_v<T>)
    requires(!std::is_trivially_copyable_v<T>)
  {
    if (this == &other) return *this;
    result taken(std::move(other));  // it may lie in the value that is destroyed
    destroy_value();
    unfinished guard(*this);
    take_from(std::move(taken));
    guard.is_finished();
    return *this;
  }
  ~result()
    requires(std::is_trivially_destructible_v<T>)
  = default;
  ~result() { destroy_value(); }

  explicit operator bool() const noexcept { return category_ == nullptr; }

  const T& operator*() const& noexcept { return *reach(*this); }
  T& operator*() & noexcept { return *reach(*this); }
  T&& operator*() && noexcept { return std::move(*reach(*this)); }

  const T* operator->() const noexcept { return reach(*this); }
  T* operator->() noexcept { return reach(*this); }

  const T& value(detail::location where = __builtin_source_location()) const& {
    return *require(*this, where);
  }
  T& value(detail::location where = __builtin_source_location()) & {
    return *require(*this, where);
  }
  T&& value(detail::location where = __builtin_source_location()) && {
    return std::move(*require(*this, where));
  }

  /// The reason why there is no value; a code that says success when there is one.
  std::error_code error() const noexcept {
    if (category_ == nullptr) return {};
    return {code_, *category_};
  }

 private:
  template <class Self>
  static auto* reach(Self& self) noexcept {
    detail::assert_value(self);
    return std::addressof(self.value_);
  }

  template <class Self>
  static auto* require(Self& self, detail::location where) {
    if (!self) detail::throw_no_value(self.error(), where);
    return std::addressof(self.value_);
  }

  void destroy_value() noexcept {
    if (category_ == nullptr) std::destroy_at(std::addressof(value_));
  }

  /// Becomes what `other` is; holds no value before.
  template <class Other>
  void take_from(Other&& other) {
    if (other.category_ == nullptr)
      std::construct_at(std::addressof(value_), std::forward<Other>(other).value_);
    else
      code_ = other.code_;
    category_ = other.category_;
  }

  /// While one holds neither a value nor an error: says so if it is left like that. A constructor that
  /// throws may have written over the code.
  class unfinished {
   public:
    explicit unfinished(result& of) noexcept : of_(&of) {}
    unfinished(const unfinished&) = delete;
    unfinished& operator=(const unfinished&) = delete;
    ~unfinished() {
      if (of_ == nullptr) return;
      of_->category_ = &std::generic_category();
      of_->code_ = static_cast<int>(std::errc::state_not_recoverable);
    }
    void is_finished() noexcept { of_ = nullptr; }

   private:
    result* of_;
  };

  // Of the error; null where there is a value. With the code in the place of the value, a result of a
  // pointer or a number is two words.
  const std::error_category* category_ = nullptr;
  union {
    T value_;
    int code_;
  };
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// Success, or the reason why something failed. By default success.
template <>
class [[nodiscard]] result<void> {
 public:
  using value_type = void;

  result() noexcept = default;
  result(std::error_code error) noexcept : error_(detail::assert_failure(error)) {}

  template <detail::error_enum E>
  result(E error) noexcept : result(std::error_code(make_error_code(error))) {}

  explicit operator bool() const noexcept { return !error_; }

  void operator*() const noexcept { detail::assert_value(*this); }

  void value(detail::location where = __builtin_source_location()) const {
    if (error_) detail::throw_no_value(error_, where);
  }

  /// The reason of the failure; a code that says success when there was none.
  std::error_code error() const noexcept { return error_; }

 private:
  std::error_code error_;
};

}  // namespace coax::inline COAX_ABI
