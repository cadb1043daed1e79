#pragma once

/// Every allocation of a scenario fails, one after the other. The program that includes this is built so that coroutine
/// frames, too, come from the heap each time (COAX_FRAMES_FROM_HEAP), and operator new is that of memory_test.cpp.

#include "at_every_await.hpp"

#include <coax/task/when_all.hpp>

#include <new>
#include <string>
#include <system_error>

/// Decides which allocations of this thread fail.
struct memory {
  static inline thread_local long asked = 0;
  static inline thread_local long fails_from = 0;  // counted from 1
  static inline thread_local long fails_before = 0;

  static bool refuses() noexcept {
    if (fails_from == 0) return false;
    ++asked;
    return asked >= fails_from && asked < fails_before;
  }

  /// For as long as it lives, allocations `from` to `before` - 1 fail.
  class shortage {
   public:
    shortage(long from, long before) noexcept {
      asked = 0;
      fails_before = before;
      fails_from = from;
    }
    shortage(const shortage&) = delete;
    shortage& operator=(const shortage&) = delete;
    ~shortage() { end(); }
    static void end() noexcept { fails_from = 0; }
    bool happened(long from) const noexcept { return asked >= from; }
  };
};

/// What is thrown for want of memory, here or on the other side, which then hangs up.
inline bool is_shortage(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    return true;
  } catch (const std::system_error& e) {
    return e.code() == std::errc::not_enough_memory || e.code() == std::errc::connection_reset ||
           e.code() == std::errc::broken_pipe || e.code() == coax::errc::end_of_stream;
  } catch (...) {
    return false;
  }
}

template <class Scenario>
coax::task<> subject_and_over(Scenario& s) {
  if constexpr (has_over<Scenario>) {
    const at_end tells([&s] { s.over(); });
    co_await s.subject();
  } else {
    co_await s.subject();
  }
}

/// Both as one root: the failure of one cancels the other.
template <class Scenario>
coax::task<> together(Scenario& s) {
  if constexpr (has_peer<Scenario>)
    co_await coax::when_all(subject_and_over(s), s.peer());
  else
    co_await subject_and_over(s);
}

/// One run in which `burst` allocations from the `n`th on fail. False when there were not so many.
template <class Scenario>
bool run_short_of_memory(stage& on, long n, long burst, const std::string& run) {
  const census before(on);
  bool happened = false;
  std::string wrong;
  {
    aimed = {};
    Scenario scenario;
    watchdog dog(on, run);
    endings seen;
    {
      const memory::shortage shortage(n, n + burst);
      try {
        actor both(together(scenario));
        while (!both.has_ended()) dog.turned(on.turn());
        memory::shortage::end();
        seen.subject = both.how();
        if (both.how() == ending::threw && !is_shortage(both.failure()))
          wrong += " threw " + words_of(both.failure());
        if (both.how() == ending::unwound) wrong += " unwound without a cancel";
      } catch (const std::bad_alloc&) {
        seen.subject = ending::threw;  // nothing had begun
      }
      happened = shortage.happened(n);
    }
    if (has_peer<Scenario>) seen.peer = seen.subject;
    seen.short_of_memory = happened;
    wrong += scenario.verdict(seen);
    if (!happened && seen.subject != ending::finished)
      wrong += " did not finish with all the memory it wants";
  }
  wrong += before.difference(census(on));
  if (!wrong.empty()) FAIL_CHECK(run << ":" << wrong);
  return happened;
}

template <class Scenario, class MakeStage>
void fail_every_allocation(const char* name, MakeStage make_stage) {
  constexpr long allocations_max = 2'000;
  for (const long burst : {1, 4}) {
    long n = 1;
    bool happened = true;
    for (; happened && n < allocations_max; ++n) {
      const std::unique_ptr<stage> on = make_stage();
      const std::string run = std::string(name) + " on " + on->name() + " without allocations " +
                              std::to_string(n) + " to " + std::to_string(n + burst - 1);
      happened = run_short_of_memory<Scenario>(*on, n, burst, run);
    }
    INFO(name);
    CHECK(!happened);
    CHECK(n > 2);
  }
}
