#pragma once

#include <coax/config.hpp>
#include <coax/io/blocking_call.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/closure.hpp>

#include <type_traits>
#include <utility>

namespace coax::inline COAX_ABI {

/// Calls `fn(args...)`, which may block, on another thread and waits for it: for what has no
/// asynchronous form. The process has up to 16 threads for this, started when they are needed;
/// beyond, calls wait in line.
///
/// Cancelling, or a timeout, gives up the wait, not the work: what was begun, or is among the next
/// 256, is done to its end, and what it gives is destroyed over there. Only a call further back in
/// the line is taken out of it.
///
/// Result    what `fn` gives.
/// Errors    what `fn` throws; as pthread_create(3) when there is no thread to be had: in the result
///           where `fn` gives one, else as a std::system_error. std::bad_alloc, from this call.
/// Lifetime  `fn` and `args` are copied or moved, and destroyed over there when the work is done.
///           They should own what they use: the task that waits may be cancelled, and gone. On
///           g++ 12 a closure or an aggregate written into the call must be trivially
///           destructible, for that compiler destroys others twice: pass as `args` what the closure
///           would own, and give the aggregate a constructor.
/// Thread    the reactor's. `fn` runs on a thread without a reactor, on which signals are blocked;
///           in a simulation, on the reactor's.
template <class F, class... A>
auto blocking(F&& fn, A&&... args) {
  using given = detail::given_t<std::decay_t<F>, std::unwrap_ref_decay_t<A>...>;
  static_assert(
      !std::is_same_v<given, detail::not_callable>,
      "blocking copies the arguments, and the function cannot be called with the copies: say std::ref for what it takes by reference");
  static_assert(!std::is_reference_v<given>,
                "blocking gives a value: give a pointer or std::reference_wrapper");
  static_assert(!is_task_v<given>, "blocking calls a plain function: a task is awaited as it is");
  detail::require_safe_closure<F>();
  (detail::require_safe_argument<A>(), ...);
  return detail::call_in_pool(std::forward<F>(fn), std::forward<A>(args)...);
}

}  // namespace coax::inline COAX_ABI
