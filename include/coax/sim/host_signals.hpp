#pragma once

#include <coax/config.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <bit>
#include <csignal>
#include <cstdint>

namespace coax::inline COAX_ABI::sim {

/// The signals of one program: who waits for which, and those that nobody has taken yet.
class host_signals {
 public:
  host_signals() = default;
  host_signals(const host_signals&) = delete;
  host_signals& operator=(const host_signals&) = delete;

  /// Waits for one of `wanted`; signal n is bit n - 1. They no longer end the program from this
  /// call on.
  task<int> wait(std::uint64_t wanted) {
    caught_ |= wanted;
    return waiting(*this, wanted);
  }

  bool catches(int number) const noexcept { return (caught_ & bit(number)) != 0; }

  /// The program gets a signal that it catches. Runs on its loop.
  void deliver(int number) noexcept {
    bool told = false;
    for (awaiter** at = &first_; *at != nullptr;) {
      awaiter& each = **at;
      if ((each.wanted_ & bit(number)) == 0) {
        at = &each.next_;
        continue;
      }
      *at = each.next_;
      each.told(number);
      told = true;
    }
    if (!told) pending_ |= bit(number);
  }

 private:
  static std::uint64_t bit(int number) noexcept { return std::uint64_t{1} << (number - 1); }

  class awaiter final : public waiter {
   public:
    awaiter(host_signals& from, std::uint64_t wanted) noexcept : from_(from), wanted_(wanted) {}
    awaiter(const awaiter&) = delete;
    awaiter& operator=(const awaiter&) = delete;
    ~awaiter() = default;

    int await_resume() const noexcept { return number_; }
    waiting_for describe() const noexcept override { return {"a signal"}; }

   private:
    friend class host_signals;

    bool start() noexcept override {
      if (const std::uint64_t there = from_.pending_ & wanted_; there != 0) {
        number_ = std::countr_zero(there) + 1;
        from_.pending_ &= ~bit(number_);
        return true;
      }
      next_ = from_.first_;
      from_.first_ = this;
      return false;
    }
    void stop() noexcept override {
      awaiter** at = &from_.first_;
      while (*at != this) at = &(*at)->next_;
      *at = next_;
      stopped();
    }
    void told(int number) noexcept {
      number_ = number;
      complete();
    }

    host_signals& from_;
    std::uint64_t wanted_;
    int number_ = 0;
    awaiter* next_ = nullptr;
  };

  static task<int> waiting(host_signals& from, std::uint64_t wanted) {
    const int number = co_await awaiter(from, wanted);
    co_return number;
  }

  std::uint64_t caught_ = 0;
  std::uint64_t pending_ = 0;
  awaiter* first_ = nullptr;
};

}  // namespace coax::inline COAX_ABI::sim
