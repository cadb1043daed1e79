#pragma once

#include <coax/config.hpp>

/// Memory that a program keeps but does not use is told to AddressSanitizer, where there is one, so that the use
/// of it is seen.

#if defined(__SANITIZE_ADDRESS__)
#define COAX_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COAX_ADDRESS_SANITIZER 1
#endif
#endif

#if defined(COAX_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#define COAX_BYTES_OUT_OF_USE(address, size) ASAN_POISON_MEMORY_REGION(address, size)
#define COAX_BYTES_IN_USE(address, size) ASAN_UNPOISON_MEMORY_REGION(address, size)
#else
#define COAX_BYTES_OUT_OF_USE(address, size) static_cast<void>(0)
#define COAX_BYTES_IN_USE(address, size) static_cast<void>(0)
#endif
