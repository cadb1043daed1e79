#pragma once

#include <coax/config.hpp>
#include <coax/io/operations/receive.hpp>
#include <coax/io/operations/recv.hpp>
#include <coax/io/operations/send.hpp>
#include <coax/task/boxed.hpp>

#include <cstddef>
#include <span>

/// What the transfers of a stream give: what is to be done, in few bytes. Awaiting it makes the
/// operation; what it borrows must live until then and until completion.

namespace coax::inline COAX_ABI::described {

/// `operations::recv`.
class [[nodiscard]] recv {
 public:
  using wait_type = operations::recv;
  recv(int fd, std::span<std::byte> into, operations::recv::until enough) noexcept
      : into_(into), fd_(fd), enough_(enough) {}

  wait_type make() const noexcept { return {fd_, into_, enough_}; }
  detail::boxed<wait_type> operator co_await() const noexcept {
    return detail::boxed<wait_type>(*this);
  }

 private:
  std::span<std::byte> into_;
  int fd_;
  operations::recv::until enough_;
};

/// `operations::receive`.
class [[nodiscard]] receive {
 public:
  using wait_type = operations::receive;
  explicit receive(int fd) noexcept : fd_(fd) {}

  wait_type make() const noexcept { return wait_type(fd_); }
  detail::boxed<wait_type> operator co_await() const noexcept {
    return detail::boxed<wait_type>(*this);
  }

 private:
  int fd_;
};

/// `operations::send`.
class [[nodiscard]] send {
 public:
  using wait_type = operations::send;
  send(int fd, std::span<const std::byte> from, operations::send::until enough) noexcept
      : from_(from), fd_(fd), enough_(enough) {}

  wait_type make() const noexcept { return {fd_, from_, enough_}; }
  detail::boxed<wait_type> operator co_await() const noexcept {
    return detail::boxed<wait_type>(*this);
  }

 private:
  std::span<const std::byte> from_;
  int fd_;
  operations::send::until enough_;
};

}  // namespace coax::inline COAX_ABI::described
