#pragma once

#include <coax/config.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/root.hpp>

#include <concepts>
#include <coroutine>
#include <new>
#include <system_error>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// Says what to wait for, in few bytes; `make` gives the wait itself. Compilers keep a place in the
/// frame for every temporary of every `co_await`, so a wait that is made only while it lasts leaves
/// a coroutine small.
template <class D>
concept wait_description = requires(const D& d) {
  typename D::wait_type;
  { d.make() } -> std::same_as<typename D::wait_type>;
};

/// The await of a description: the wait lives in a recycled block, like a frame.
///
/// Errors    ENOMEM as a result when there is no memory for it.
template <class Wait>
class [[nodiscard]] boxed {
 public:
  using resumed_by_loop = Wait;

  template <wait_description D>
  explicit boxed(const D& description) noexcept {
    if (void* memory = frames::try_allocate(sizeof(Wait)))
      wait_ = ::new (memory) Wait(description.make());
  }
  boxed(const boxed&) = delete;
  boxed& operator=(const boxed&) = delete;
  ~boxed() {
    if (wait_ == nullptr) return;
    wait_->~Wait();
    frames::deallocate(wait_, sizeof(Wait));
  }

  bool await_ready() noexcept { return wait_ == nullptr || wait_->await_ready(); }
  template <class P>
  auto await_suspend(std::coroutine_handle<P> coroutine) noexcept {
    return wait_->await_suspend(coroutine);
  }
  auto await_resume() -> decltype(std::declval<Wait&>().await_resume()) {
    if (wait_ == nullptr) return std::make_error_code(std::errc::not_enough_memory);
    return wait_->await_resume();
  }

 private:
  Wait* wait_ = nullptr;
};

}  // namespace coax::inline COAX_ABI::detail
