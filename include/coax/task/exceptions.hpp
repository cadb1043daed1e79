#pragma once

/// The one place that knows whether the compiler has exceptions.
///
/// Where it has none (-fno-exceptions), what would be thrown ends the program with the same message,
/// and nothing is ever caught.

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/location.hpp>

#include <exception>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// Throws `e`, which is a std::exception.
template <class E>
[[noreturn]] void raise(E e) {
#if defined(__cpp_exceptions)
  throw e;
#else
  constexpr std::string_view prefix = "coax: ";  // which fatal writes
  const std::string_view what = e.what();
  fatal(what.starts_with(prefix) ? e.what() + prefix.size() : e.what());
#endif
}

/// Fails an acquisition: the one place where coax throws an error code.
[[noreturn]] inline void throw_system_error(std::error_code error, const std::string& what) {
  raise(std::system_error(error, what));
}
/// Fails the use of a result without a value, at `where`.
[[noreturn, gnu::noinline, gnu::cold]] inline void throw_no_value(std::error_code error,
                                                                  location where) {
  const std::source_location at = source_location_of(where);
  throw_system_error(
      error, std::string("coax: value() at ") + file_of(at) + ':' + std::to_string(at.line()));
}
/// Refuses an argument that no program should pass.
[[noreturn]] inline void throw_invalid_argument(const std::string& what) {
  raise(std::invalid_argument(what));
}
/// Refuses a call that is wrong where it stands.
[[noreturn]] inline void throw_logic_error(const std::string& what) {
  raise(std::logic_error(what));
}

/// Throws again what was caught. Out of line: it takes room, and is hardly ever run.
[[noreturn, gnu::noinline, gnu::cold]] inline void rethrow(const std::exception_ptr& thrown) {
  std::rethrow_exception(thrown);
}

/// Calls `fn()`. Result: what it threw, or null.
template <class F>
std::exception_ptr caught(F&& fn) noexcept {
#if defined(__cpp_exceptions)
  try {
    std::forward<F>(fn)();
  } catch (...) {
    return std::current_exception();
  }
#else
  std::forward<F>(fn)();
#endif
  return nullptr;
}

/// The words of what was thrown: `what()`, where it has one.
inline std::string words_of([[maybe_unused]] const std::exception_ptr& thrown) {
#if defined(__cpp_exceptions)
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
  }
#endif
  return "an exception that is no std::exception";
}

}  // namespace coax::inline COAX_ABI::detail
