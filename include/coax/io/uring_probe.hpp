#pragma once

#include <coax/config.hpp>

#if !defined(COAX_WITHOUT_URING)

#include <coax/io/buffer_pool.hpp>
#include <coax/io/provided_buffers.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/io/thread_sanitizer.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/io/uring_reactor.hpp>

#include <liburing.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <system_error>

namespace coax::inline COAX_ABI::detail {

/// Receives a byte by a multishot receive into a provided buffer. Result: 1 or -errno.
inline int try_receive(io_uring& ring) noexcept {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) return -errno;
  const unique_fd out(ends[0]);
  const unique_fd in(ends[1]);
  const std::array<char, 1> byte{'x'};
  if (::send(in.get(), byte.data(), byte.size(), MSG_NOSIGNAL) != 1) return -EIO;
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  prepare_multishot_recv(*sqe, out.get());
  io_uring_cqe* cqe = nullptr;
  __kernel_timespec limit{.tv_sec = 1, .tv_nsec = 0};
  const int entered = io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &limit, nullptr);
  if (entered < 0) return entered;
  if (cqe == nullptr) return -ETIME;
  return cqe->res == 0 ? -EIO : cqe->res;
}

/// Sees an operation through a ring that is set up as the reactor's: setting one up may be allowed
/// where using it is not, and an older kernel knows less.
inline std::error_code try_ring() noexcept {
  const buffer_pool::owned pool = buffer_pool::make();
  if (!pool) return std::make_error_code(std::errc::not_enough_memory);
  provided_buffers provided;

  io_uring_params params{};
  params.flags = uring_reactor::setup_flags;
  io_uring ring{};
  int answer = io_uring_queue_init_params(1, &ring, &params);
  if (answer < 0) return error_of(answer);
  ring_memory::mapped();
  answer = provided.open(ring, *pool);
  if (answer == 0) {
    provided.top_up();
    answer = try_receive(ring);
  }
  ring_memory::about_to_be_unmapped();
  io_uring_queue_exit(&ring);
  return answer < 0 ? error_of(answer) : std::error_code();
}

}  // namespace coax::inline COAX_ABI::detail

#endif
