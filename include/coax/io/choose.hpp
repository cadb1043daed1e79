#pragma once

#include <coax/config.hpp>
#include <coax/io/epoll_reactor.hpp>
#include <coax/io/standard_fds.hpp>
#include <coax/io/uring_probe.hpp>
#include <coax/io/uring_reactor.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/result.hpp>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

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
  /// kernels. Where tens of thousands of waits are given up at once, 4096 makes that some four times
  /// cheaper: the kernel searches lists for each, and has more and shorter ones then.
  unsigned ring_entries = 256;
  /// How long to look for something to do before the thread is put to sleep. It burns that much of a
  /// core for an answer that comes sooner than a sleeper wakes: some 50 us between hosts that are
  /// near. Where the peer needs the same core, it is a loss.
  timeout spin = clock::duration(0);
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

}  // namespace detail

/// Makes the reactor that `o` and the environment ask for.
///
/// Errors    std::invalid_argument for an unknown backend or name in COAX_BACKEND and for no ring entries;
///           std::system_error when the backend that was asked for cannot run here. Left to choose,
///           it takes epoll and `reactor::fallback_reason` says why.
inline std::unique_ptr<reactor> make_reactor(const options& o = {}) {
  const detail::backend_wish wish(o.backend);
  if (wish.wanted != backend::automatic && wish.wanted != backend::io_uring &&
      wish.wanted != backend::epoll)
    detail::throw_invalid_argument("coax: options::backend is " +
                                   std::to_string(static_cast<int>(wish.wanted)) +
                                   ", which is none of its values");
  if (o.ring_entries == 0)
    detail::throw_invalid_argument("coax: options::ring_entries is 0: a ring has at least 1");
  detail::hold_standard_fds();
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
      auto made = std::make_unique<uring_reactor>(o.ring_entries, failed);
      made->set_spin(o.spin);
      if (!failed) return made;
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
  made->set_spin(o.spin);
  return made;
}

}  // namespace coax::inline COAX_ABI
