#pragma once

#include <coax/config.hpp>
#include <coax/io/signal_bits.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>
#include <coax/task/wait_queue.hpp>

#include <utility>

namespace coax::inline COAX_ABI::sim {

/// The signals of one program: who waits for which, and those that nobody has taken yet.
class host_signals {
 public:
  host_signals() = default;
  host_signals(const host_signals&) = delete;
  host_signals& operator=(const host_signals&) = delete;

  /// Waits for one of `wanted`. They no longer end the program from this call on.
  task<int> wait(coax::detail::signal_bits wanted) {
    caught_ |= wanted;
    return wait_in(*this, wanted);
  }

  bool catches(int number) const noexcept {
    return (caught_ & coax::detail::signal_bit(number)) != 0;
  }

  /// The program gets a signal that it catches. Runs on its loop.
  void deliver(int number) noexcept {
    bool told = false;
    for (awaiter* at = waiting_.first(); at != nullptr;) {
      awaiter& each = *std::exchange(at, waiting_.behind(*at));
      if ((each.wanted_ & coax::detail::signal_bit(number)) == 0) continue;
      waiting_.remove(each);
      each.number_ = number;
      each.complete();
      told = true;
    }
    if (!told) pending_ |= coax::detail::signal_bit(number);
  }

 private:
  class awaiter final : public waiter, public coax::detail::wait_queue<awaiter>::place {
   public:
    awaiter(host_signals& from, coax::detail::signal_bits wanted) noexcept
        : from_(from), wanted_(wanted) {}
    awaiter(const awaiter&) = delete;
    awaiter& operator=(const awaiter&) = delete;
    ~awaiter() = default;

    int await_resume() const noexcept { return number_; }
    waiting_for describe() const noexcept override { return {"a signal"}; }

   private:
    friend class host_signals;

    bool start() noexcept override {
      if (const coax::detail::signal_bits there = from_.pending_ & wanted_; there != 0) {
        number_ = coax::detail::first_signal(there);
        from_.pending_ &= ~coax::detail::signal_bit(number_);
        return true;
      }
      from_.waiting_.push(*this);
      return false;
    }
    void stop() noexcept override {
      from_.waiting_.remove(*this);
      stopped();
    }

    host_signals& from_;
    coax::detail::signal_bits wanted_;
    int number_ = 0;
  };

  static task<int> wait_in(host_signals& from, coax::detail::signal_bits wanted) {
    const int number = co_await awaiter(from, wanted);
    co_return number;
  }

  coax::detail::signal_bits caught_ = 0;
  coax::detail::signal_bits pending_ = 0;
  coax::detail::wait_queue<awaiter> waiting_;
};

}  // namespace coax::inline COAX_ABI::sim
