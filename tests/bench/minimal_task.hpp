#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <new>
#include <utility>

/// The least a lazy task can be: it cannot wait, throw, be cancelled or give a value, and nobody counts
/// its memory. What one takes is the compiler's and the machine's part of a task's cost.
class minimal_task {
 public:
  class promise_type;

  explicit minimal_task(std::coroutine_handle<promise_type> coroutine) noexcept
      : coroutine_(coroutine) {}
  minimal_task(const minimal_task&) = delete;
  minimal_task& operator=(const minimal_task&) = delete;
  ~minimal_task() { coroutine_.destroy(); }

  void run() const { coroutine_.resume(); }

 private:
  std::coroutine_handle<promise_type> coroutine_;
};

class minimal_task::promise_type {
 public:
  minimal_task get_return_object() noexcept {
    return minimal_task(std::coroutine_handle<promise_type>::from_promise(*this));
  }
  std::suspend_always initial_suspend() const noexcept { return {}; }
  std::suspend_always final_suspend() const noexcept { return {}; }
  void return_void() const noexcept {}
  void unhandled_exception() const noexcept { std::terminate(); }

  // All frames have one size here.
  static void* operator new(std::size_t size) {
    if (free_ == nullptr) return ::operator new(size);
    return std::exchange(free_, free_->next);
  }
  static void operator delete(void* memory) noexcept { free_ = ::new (memory) block{free_}; }

 private:
  struct block {
    block* next;
  };
  static inline thread_local block* free_ = nullptr;
};
