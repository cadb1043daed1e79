#pragma once

#include <coax/task/root.hpp>
#include <coax/task/task.hpp>

#include <utility>

/// A task as a root of its own, which starts at the next turn, and which a test cancels when it likes. It has to end
/// before this does, or never to start.
template <class T = void>
class own_root : public coax::root {
 public:
  own_root() = default;
  explicit own_root(coax::task<T> t) { begin(std::move(t)); }
  virtual ~own_root() { destroy_first(); }

  void begin(coax::task<T> t) {
    adopt(std::move(t).release());
    start_later();
  }
  bool has_ended() const noexcept { return ended_; }

  // Of a task that was not unwound:
  T take() { return promise().take(); }
  auto& promise() const noexcept { return first<typename coax::task<T>::promise_type>().promise(); }

 protected:
  void ended(outcome) noexcept override { ended_ = true; }

 private:
  bool ended_ = false;
};
