#pragma once

/// Counts what a program takes from the heap by operator new. For one source file of a program.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

struct allocations {
  std::uint64_t count = 0;
  std::size_t last_bytes = 0;
};

inline allocations& allocations_of_this_program() {
  static allocations all;
  return all;
}

/// Null when there is none.
inline void* counted_memory(std::size_t size) noexcept {
  allocations& all = allocations_of_this_program();
  ++all.count;
  all.last_bytes = size;
  return std::malloc(size);
}
inline void* counted_memory_or_throw(std::size_t size) {
  if (void* memory = counted_memory(size)) return memory;
  throw std::bad_alloc();
}

// NOLINTBEGIN: these replace the library's, so that they cannot be inline
void* operator new(std::size_t size) { return counted_memory_or_throw(size); }
void* operator new[](std::size_t size) { return counted_memory_or_throw(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return counted_memory(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
// NOLINTEND
