#pragma once

/// Chooses what this build of coax contains, once, for every header.
///
/// Define COAX_WITHOUT_URING to build epoll alone: liburing is then neither included nor linked.
/// The two configurations differ in their types, so each has an inline namespace of its own:
/// objects built one way refuse to link with objects built the other way, instead of misbehaving.

#if defined(COAX_WITHOUT_URING)
#define COAX_ABI without_uring
#elif __has_include(<liburing.h>)
#define COAX_ABI with_uring
#else
#error \
    "coax: <liburing.h> was not found: install liburing-dev, or define COAX_WITHOUT_URING for epoll alone"
#endif
