#pragma once

#include <coax/config.hpp>

#include <bit>
#include <cstring>
#include <source_location>

namespace coax::inline COAX_ABI::detail {

/// A std::source_location as what it is made of. As the default of a parameter it costs nothing in a
/// coroutine's frame, where g++ keeps a place for every object of the expression that awaits.
using location = decltype(__builtin_source_location());
static_assert(sizeof(std::source_location) == sizeof(location));

inline std::source_location source_location_of(location where) noexcept {
  return std::bit_cast<std::source_location>(where);
}

/// The name of its file, without the folders.
inline const char* file_of(const std::source_location& where) noexcept {
  const char* const slash = std::strrchr(where.file_name(), '/');
  return slash == nullptr ? where.file_name() : slash + 1;
}

}  // namespace coax::inline COAX_ABI::detail
