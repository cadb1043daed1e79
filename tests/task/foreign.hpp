#pragma once

#include <coroutine>
#include <exception>
#include <utility>

/// A coroutine of another library, the least there could be: it starts at once, and whoever made it
/// destroys it.
class foreign {
 public:
  struct promise_type {
    foreign get_return_object() {
      return foreign(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };

  foreign(foreign&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
  foreign& operator=(foreign&&) = delete;
  ~foreign() {
    if (coroutine_) coroutine_.destroy();
  }
  bool is_done() const { return coroutine_.done(); }

 private:
  explicit foreign(std::coroutine_handle<promise_type> coroutine) : coroutine_(coroutine) {}
  std::coroutine_handle<promise_type> coroutine_;
};
