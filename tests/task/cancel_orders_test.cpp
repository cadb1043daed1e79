#include <coax/task/result.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

/// A wait can be completed, stopped, timed out and cancelled, in every order: a model says what must come of each.

using namespace std::chrono_literals;
using coax::task;

namespace {

enum class event { completes, stop_is_acknowledged, time_runs_out, is_cancelled };
enum class end { none, value, timed_out, unwound };

/// One history: the events in some order, each followed by a run of the loop or not.
struct history {
  std::array<event, 4> events;
  unsigned settles;  // bit i: the loop runs after event i
  bool stops_at_once;
  bool as_task;  // the wait is in a task of its own, and so in a root of its own
};

struct outcome {
  end how = end::none;
  bool went_on = false;  // past the next wait
  bool operator==(const outcome&) const = default;
};

/// What must come of a history.
class model {
 public:
  static outcome of(const history& h) {
    model m(h);
    for (std::size_t i = 0; i < h.events.size(); ++i) {
      m.happens(h.events[i]);
      if ((h.settles >> i & 1U) != 0) m.settles();
    }
    if (m.waiting_) m.happens(event::completes);
    m.settles();
    return m.result_;
  }

 private:
  explicit model(const history& h) : history_(h) {}

  void happens(event e) {
    switch (e) {
      case event::completes:
        if (std::exchange(waiting_, false)) ended_ = end::value;
        break;
      case event::stop_is_acknowledged:
        if (asked_) stops();
        break;
      case event::time_runs_out:
        asks();
        break;
      case event::is_cancelled:
        cancelled_ = true;
        asks();
        break;
    }
  }
  void asks() {
    if (!waiting_) return;
    asked_ = true;
    if (history_.stops_at_once) stops();
  }
  void stops() {
    if (!std::exchange(waiting_, false)) return;
    // A root of its own unwinds at the next run, and what is around it decides only then.
    ended_ = history_.as_task ? end::none : verdict();
    undecided_ = history_.as_task;
  }
  end verdict() const { return cancelled_ ? end::unwound : end::timed_out; }

  void settles() {
    if (std::exchange(undecided_, false)) ended_ = verdict();
    if (ended_ == end::none || result_.how != end::none) return;
    result_.how = ended_;
    result_.went_on = ended_ != end::unwound && !cancelled_;
  }

  const history& history_;
  bool waiting_ = true;
  bool asked_ = false;
  bool cancelled_ = false;
  bool undecided_ = false;
  end ended_ = end::none;
  outcome result_;
};

task<> subject(script& s, bool as_task, std::vector<end>& ends, bool& went_on) {
  struct tells_unwound {
    explicit tells_unwound(std::vector<end>& e) : ends_(e) {}
    tells_unwound(const tells_unwound&) = delete;
    tells_unwound& operator=(const tells_unwound&) = delete;
    ~tells_unwound() {
      if (ends_.empty()) ends_.push_back(end::unwound);
    }
    std::vector<end>& ends_;
  } const watch(ends);
  std::optional<coax::result<int>> r;
  if (as_task)
    r = co_await coax::within(1s, waits_for(s));
  else
    r = co_await coax::within(1s, scripted_wait(s));
  ends.push_back(*r && **r == 7                       ? end::value
                 : r->error() == std::errc::timed_out ? end::timed_out
                                                      : end::none);
  co_await coax::yield();
  went_on = true;
}

outcome play(const history& h) {
  test_loop loop;
  script s;
  s.stops_at_once = h.stops_at_once;
  std::vector<end> ends;
  bool went_on = false;
  watched<> w(*loop, subject(s, h.as_task, ends, went_on));
  loop->settle();
  for (std::size_t i = 0; i < h.events.size(); ++i) {
    switch (h.events[i]) {
      case event::completes:
        loop->inside([&] { s.complete(7); });
        break;
      case event::stop_is_acknowledged:
        loop->inside([&] { s.acknowledge_stop(); });
        break;
      case event::time_runs_out:
        loop->advance(1s);
        break;
      case event::is_cancelled:
        w.cancel_from_outside();
        break;
    }
    if ((h.settles >> i & 1U) != 0) loop->settle();
  }
  loop->inside([&] { s.complete(7); });
  loop->settle();
  CHECK(w.times_ended() == 1);
  CHECK(w.finished() == went_on);
  CHECK(ends.size() == 1);
  CHECK(s.waiting == nullptr);
  return {ends.empty() ? end::none : ends.front(), went_on};
}

}  // namespace

TEST_CASE(
    "in whatever order a wait is completed, stopped, timed out and cancelled, it ends once and as it should",
    "[cancel]") {
  int histories = 0;
  for (const bool as_task : {false, true}) {
    for (const bool stops_at_once : {false, true}) {
      for (unsigned settles = 0; settles < 16; ++settles) {
        history h{{event::completes, event::stop_is_acknowledged, event::time_runs_out,
                   event::is_cancelled},
                  settles,
                  stops_at_once,
                  as_task};
        do {
          ++histories;
          const outcome expected = model::of(h);
          const outcome seen = play(h);
          if (seen != expected) {
            std::string order;
            for (const event e : h.events) order += std::to_string(static_cast<int>(e));
            FAIL_CHECK("events " << order << ", settles " << settles << ", stops_at_once "
                                 << stops_at_once << ", as_task " << as_task << ": ended "
                                 << static_cast<int>(seen.how) << ", went on " << seen.went_on
                                 << "; expected " << static_cast<int>(expected.how) << ", "
                                 << expected.went_on);
          }
        } while (std::next_permutation(h.events.begin(), h.events.end()));
      }
    }
  }
  CHECK(histories == 2 * 2 * 16 * 24);
}
