#pragma once

#include <coax/config.hpp>
#include <coax/io/epoll_reactor.hpp>
#include <coax/io/uring_reactor.hpp>
#include <coax/task/result.hpp>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace coax::inline COAX_ABI {

/// What a reactor asks the kernel through.
enum class backend : std::uint8_t {
  automatic,  ///< io_uring where it works, else epoll
  io_uring,
  epoll,
};

/// How `run` sets up its reactor.
struct options {
  /// Overruled by the environment variable COAX_BACKEND (io_uring or epoll), where that is set and
  /// not empty.
  coax::backend backend = coax::backend::automatic;
  /// Submissions the io_uring holds; more wait in line. Small: rings share locked memory on some
  /// kernels.
  unsigned ring_entries = 256;
};

namespace detail {

/// The backend that the environment or `wanted` asks for, and whose wish that is.
struct backend_wish {
  coax::backend wanted;
  const char* by;

  explicit backend_wish(coax::backend in_options) : wanted(in_options), by("options::backend") {
    const char* name = std::getenv("COAX_BACKEND");
    if (name == nullptr || *name == '\0') return;
    by = "COAX_BACKEND";
    if (std::string_view(name) == "io_uring")
      wanted = coax::backend::io_uring;
    else if (std::string_view(name) == "epoll")
      wanted = coax::backend::epoll;
    else
      throw_invalid_argument("coax: COAX_BACKEND is \"" + std::string(name) +
                             "\": it can be io_uring or epoll");
  }
};

#if !defined(COAX_WITHOUT_URING)
/// Sees an operation through the ring: setting one up may be allowed where using it is not.
inline std::error_code try_ring() noexcept {
  io_uring_params params{};
  params.flags = uring_reactor::setup_flags;
  io_uring ring{};
  if (const int failed = io_uring_queue_init_params(1, &ring, &params); failed < 0)
    return {-failed, std::system_category()};
  // A real one: on a pipe with a byte in it, a read gives the byte.
  int answer = -EIO;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) == 0) {
    const unique_fd out(ends[0]);
    const unique_fd in(ends[1]);
    char byte = 'x';
    if (::write(in.get(), &byte, 1) == 1) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring);
      io_uring_prep_read(sqe, out.get(), &byte, 1, 0);
      io_uring_cqe* cqe = nullptr;
      __kernel_timespec limit{.tv_sec = 1, .tv_nsec = 0};
      answer = io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &limit, nullptr);
      if (answer >= 0) answer = cqe != nullptr ? cqe->res : -ETIME;
    }
  } else {
    answer = -errno;
  }
  io_uring_queue_exit(&ring);
  return answer < 0 ? std::error_code(-answer, std::system_category()) : std::error_code();
}
#endif

}  // namespace detail

/// Makes the reactor that `o` and the environment ask for.
///
/// Errors    std::invalid_argument for an unknown name in COAX_BACKEND and for no ring entries;
///           std::system_error when the backend that was asked for cannot run here. Left to choose,
///           it takes epoll and `reactor::fallback_reason` says why.
inline std::unique_ptr<reactor> make_reactor(const options& o = {}) {
  const detail::backend_wish wish(o.backend);
  if (o.ring_entries == 0)
    detail::throw_invalid_argument("coax: options::ring_entries is 0: a ring has at least 1");
  std::string why;
  if (wish.wanted != backend::epoll) {
#if defined(COAX_WITHOUT_URING)
    if (wish.wanted == backend::io_uring)
      detail::throw_system_error(
          std::make_error_code(std::errc::function_not_supported),
          std::string("coax: ") + wish.by +
              " asks for io_uring, but this program was built with COAX_WITHOUT_URING");
#else
    std::error_code failed = detail::try_ring();
    if (!failed) {
      try {
        return std::make_unique<uring_reactor>(o.ring_entries);
      } catch (const std::system_error& e) {
        failed = e.code();
      }
    }
    const char* hint = failed == std::errc::invalid_argument ? " (it needs Linux 6.1)" : "";
    if (wish.wanted == backend::io_uring)
      detail::throw_system_error(failed, std::string("coax: ") + wish.by +
                                             " asks for io_uring, which cannot run here" + hint);
    why = "io_uring: " + failed.message() + hint;
#endif
  }
  auto made = std::make_unique<epoll_reactor>();
  made->set_fallback_reason(std::move(why));
  return made;
}

}  // namespace coax::inline COAX_ABI
