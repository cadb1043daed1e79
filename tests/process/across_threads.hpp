#pragma once

/// What the tests of threads share: values that are counted wherever they die, a gate for threads, a reactor that
/// counts how often it is woken.

#include <coax/io/blocking_call.hpp>
#include <coax/io/reactor.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/task.hpp>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

/// Counts those that live, across threads.
class living {
 public:
  explicit living(std::atomic<int>& count) noexcept : count_(&count) { ++*count_; }
  living(const living& other) noexcept : count_(other.count_) { ++*count_; }
  living(living&& other) noexcept : living(static_cast<const living&>(other)) {}
  living& operator=(const living&) = delete;
  ~living() { --*count_; }

 private:
  std::atomic<int>* count_;
};

/// Threads wait in it until it is opened. A task that must not turn its reactor may wait for them to come.
class thread_gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++came_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void await_arrivals(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return came_ >= count; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int came_ = 0;
  bool open_ = false;
};

/// Waits until the pool of `blocking` has done all that it had accepted: each of its threads is in here at once.
inline coax::task<> until_pool_is_done() {
  constexpr int threads = static_cast<int>(coax::detail::blocking_pool::threads_max);
  thread_gate gate;
  std::atomic<int> came{0};
  const auto meet = [&]() -> coax::task<> {
    const auto pass = [&] {
      if (++came == threads) gate.open();
      gate.pass();
    };
    co_await coax::detail::call_in_pool(pass);
  };
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < threads; ++i) s.spawn(std::ref(meet));
    co_return;
  });
}

/// A reactor for one operation at a time that counts how often it is woken.
class counting_reactor final : public coax::reactor {
 public:
  std::string_view backend() const noexcept override { return "a test"; }
  void wake() noexcept override {
    ++wakes;
    reactor::wake();
  }
  bool runs_blocking_inline() const noexcept override { return calls_inline; }

  coax::clock::time_point now() const noexcept override { return reactor::now() + later; }

  std::atomic<int> wakes{0};
  coax::clock::duration later{};
  bool calls_inline = false;

 private:
  bool submit(coax::operation& op) noexcept override {
    pending_ = &op;
    return false;
  }
  void cancel(coax::operation& op) noexcept override {
    pending_ = nullptr;
    given_up(op);
  }
  void poll(std::optional<coax::clock::time_point>) noexcept override {
    if (pending_ == nullptr) return;
    const int answer = pending_->perform(system());
    if (answer != -EAGAIN && take(*pending_, answer)) ended(*std::exchange(pending_, nullptr));
  }

  coax::operation* pending_ = nullptr;
};
