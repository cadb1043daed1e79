#pragma once

/// Chooses what this build of coax contains, once, for every header.
///
/// Define COAX_WITHOUT_URING to build epoll alone: liburing is then neither included nor linked.
/// The two configurations differ in their types, so each has an inline namespace of its own:
/// objects built one way refuse to link with objects built the other way, instead of misbehaving. (A type
/// that is merely returned is no part of a symbol: task alone has a tag that makes it one.)

#if __cplusplus < 202002L
#error "coax needs C++20: say -std=c++20, or a later standard"
#endif

#include <version>

#if !defined(__cpp_lib_jthread)
#error "coax needs std::stop_token: with libc++ say -fexperimental-library"
#endif

#if defined(COAX_WITHOUT_URING)
#define COAX_ABI without_uring
#define COAX_ABI_TEXT "without_uring"
#elif __has_include(<liburing.h>)
#define COAX_ABI with_uring
#define COAX_ABI_TEXT "with_uring"
#else
#error \
    "coax: <liburing.h> was not found: install liburing-dev, or define COAX_WITHOUT_URING for epoll alone"
#endif
