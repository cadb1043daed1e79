#pragma once

#include <coax/config.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/root.hpp>

#include <memory>
#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

/// A variable of which each task has its own value: a request's number for a log, whom it is served
/// for.
///
/// A child begins with the values its parent had when it was started: by `scope::spawn`, as a
/// branch of `race`, `when_all` or `within`, or as the body of `with_scope` or `finally`. What it sets
/// from then on is its own. Tasks that await each other are one and share their values.
///
///     coax::task_local<int> request;                     // outlives the tasks that use it
///     request.set(7);
///     if (const int* number = request.get()) ...
///
/// Lifetime  must outlive all tasks that have a value of it.
/// Thread    the reactor's; a variable may be used in several threads, where each task has its own
///           value all the same.
template <class T>
class task_local {
  static_assert(std::is_object_v<T> && !std::is_const_v<T>);

 public:
  task_local() = default;
  task_local(const task_local&) = delete;
  task_local& operator=(const task_local&) = delete;

  /// Gives the variable a value in this task, and in children that it starts later.
  ///
  /// Errors    std::bad_alloc; the value is what it was then. Outside of a task the program ends with
  ///           a message.
  void set(T value) const {
    coax::root* const here = loop::current().running_root();
    if (here == nullptr) detail::fatal("a task_local was set outside of a task");
    here->locals().set(this, std::make_shared<const T>(std::move(value)));
  }

  /// The value in this task; null where none was set, and outside of a task. Good until it is set
  /// again or the task ends.
  const T* get() const noexcept {
    const loop* const l = loop::running();
    coax::root* const here = l == nullptr ? nullptr : l->running_root();
    return here == nullptr ? nullptr : static_cast<const T*>(here->locals().find(this));
  }
};

}  // namespace coax::inline COAX_ABI
