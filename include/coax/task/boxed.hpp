#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/result.hpp>
#include <coax/task/time_limit.hpp>

#include <coroutine>
#include <cstddef>
#include <new>
#include <system_error>
#include <utility>

namespace coax::inline COAX_ABI::detail {

/// A wait in a recycled block, with room for its time limit, from the call that makes it to the end of
/// its await. Compilers keep a place in the frame for every temporary of every `co_await`: this one
/// is a pointer, so a coroutine holds no more of a wait than it needs while the wait lasts.
///
/// Errors    no memory for the block: ENOMEM where the wait gives a `result`, else std::bad_alloc from
///           the call.
template <class Wait>
class [[nodiscard("a wait does nothing until it is awaited")]] boxed {
 public:
  using resumed_by_loop = Wait;
  using value_type = decltype(std::declval<Wait&>().await_resume());

  template <class... A>
  static boxed make(A&&... args) noexcept(gives_errors) {
    static_assert(alignof(limited) <= alignof(std::max_align_t),
                  "blocks are not aligned beyond that");
    constexpr std::size_t size = sizeof(limited);
    void* const memory = gives_errors ? frames::try_allocate(size) : frames::allocate(size);
    return boxed(memory == nullptr ? no_memory()
                                   : ::new (memory) limited(std::forward<A>(args)...));
  }
  boxed(boxed&& other) noexcept : held_(std::exchange(other.held_, nullptr)) {}
  boxed& operator=(boxed&&) = delete;
  ~boxed() {
    if (held_ != nullptr) free_block();
  }

  /// Stops the wait when it has lasted for so long; before it is awaited.
  void limit(timeout of_the_wait) noexcept {
    must_be_here();
    if (has_block()) held_->limit(of_the_wait);
  }
  bool was_stopped() const noexcept { return has_block() && held_->was_stopped(); }

  bool await_ready() noexcept {
    must_be_here();
    return !has_block() || held_->await_ready();
  }
  template <class P>
  bool await_suspend(std::coroutine_handle<P> coroutine) noexcept {
    return held_->await_suspend(coroutine);
  }
  value_type await_resume() {
    if constexpr (gives_errors)
      if (!has_block()) return std::make_error_code(std::errc::not_enough_memory);
    return held_->await_resume();
  }

 private:
  using limited = limited_wait<Wait>;
  static constexpr bool gives_errors = is_result_v<value_type>;

  explicit boxed(limited* held) noexcept : held_(held) {}

  /// Stands for the block that there was no memory for; null is one that was moved away.
  static limited* no_memory() noexcept {
    alignas(limited) static std::byte nowhere;
    return reinterpret_cast<limited*>(&nowhere);
  }
  bool has_block() const noexcept { return !gives_errors || held_ != no_memory(); }
  [[gnu::noinline]] void free_block() noexcept {
    if (!has_block()) return;
    held_->~limited();
    frames::deallocate(held_, sizeof(limited));
  }
  void must_be_here() const noexcept {
    if (held_ == nullptr) fatal("something was awaited after it had been moved from");
  }

  limited* held_;
};

}  // namespace coax::inline COAX_ABI::detail
