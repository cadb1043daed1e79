#pragma once

/// Runs a scenario again and again, each time cancelled a step later, until it ends before that.
///
/// A scenario is a class that is made anew for each run:
///
///     struct handshake {
///       coax::task<> subject();             // what is cancelled
///       void over() noexcept;               // optional: called when the subject has ended, even unrun
///       coax::task<> peer();                // optional: goes on, and must end by itself
///       coax::task<> afterwards();          // optional: runs when both have ended
///       std::string verdict(endings seen);  // empty, or what is wrong
///     };
///
/// It keeps Catch2 out of its tasks: what it finds it says in its verdict. After each run nothing is
/// left: no frame, root, timer, operation, descriptor, and no `token`.

#include "../catch.hpp"
#include "../io/each_backend.hpp"
#include "../task/manual_loop.hpp"
#include "../task/own_root.hpp"

#include <coax/io/reactor.hpp>
#include <coax/task/dump.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>
#include <coax/task/task.hpp>
#include <coax/task/timers.hpp>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>

// --- where scenarios run ---

/// Runs tasks: a reactor of one of the backends, or a loop under a virtual clock.
class stage {
 public:
  stage() = default;
  stage(const stage&) = delete;
  stage& operator=(const stage&) = delete;
  virtual ~stage() = default;

  virtual const char* name() const = 0;
  virtual coax::loop& loop() = 0;
  /// False when nothing can happen any more.
  virtual bool turn() = 0;
  virtual std::size_t in_flight() const { return 0; }
  /// Gives up what it keeps for later, and a census would count.
  virtual void give_up_spares() {}
};

/// Time moves when nothing is ready, and then straight to the next timer.
class virtual_stage final : public stage {
 public:
  const char* name() const override { return "virtual time"; }
  coax::loop& loop() override { return loop_; }
  bool turn() override { return loop_.turn(); }

 private:
  manual_loop loop_;
  manual_loop::running_here here_{loop_};
};

class reactor_stage final : public stage {
 public:
  explicit reactor_stage(coax::backend b)
      : backend_(b), reactor_(reactor_of(b, coax::syscalls::kernel(), 16)) {
    session_.emplace(*reactor_);
    reactor_->turn();  // begins what the reactor waits for on its own behalf
  }
  const char* name() const override { return name_of(backend_); }
  coax::loop& loop() override { return *reactor_; }
  bool turn() override {
    reactor_->turn();
    return true;
  }
  std::size_t in_flight() const override { return reactor_->in_flight(); }
  void give_up_spares() override { reactor_->spares().give_up(); }

 private:
  coax::backend backend_;
  std::unique_ptr<coax::reactor> reactor_;
  std::optional<coax::reactor::session> session_;
};

// --- what is counted ---

/// A value that counts its instances.
class token {
 public:
  explicit token(int which = 0) noexcept : id(which) { ++alive; }
  token(token&& other) noexcept : id(std::exchange(other.id, -1)) { ++alive; }
  token& operator=(token&& other) noexcept {
    id = std::exchange(other.id, -1);
    return *this;
  }
  ~token() { --alive; }

  int id;
  static inline int alive = 0;
};

/// Calls `action` at the end of its scope.
template <class F>
class at_end {
 public:
  explicit at_end(F action) : action_(action) {}
  at_end(const at_end&) = delete;
  at_end& operator=(const at_end&) = delete;
  ~at_end() { action_(); }

 private:
  F action_;
};

/// What must be after a run as it was before.
struct census {
  explicit census(stage& on)
      : frames(coax::detail::frames::live()),
        roots(on.loop().counted().roots),
        timers(on.loop().deadlines().size()),
        in_flight(on.in_flight()),
        tokens(token::alive) {
    on.give_up_spares();
    descriptors = open_descriptors();
  }

  /// Names what is there now and was not before, or the other way round.
  std::string difference(const census& now) const {
    std::string all;
    const auto compare = [&all](const char* what, auto then, auto later) {
      if (then != later)
        all += std::string(" ") + what + ": " + std::to_string(then) + " before, " +
               std::to_string(later) + " after;";
    };
    compare("frames", frames, now.frames);
    compare("roots", roots, now.roots);
    compare("timers", timers, now.timers);
    compare("operations", in_flight, now.in_flight);
    compare("descriptors", descriptors, now.descriptors);
    compare("tokens", tokens, now.tokens);
    return all;
  }

  std::ptrdiff_t frames;
  std::size_t roots;
  std::size_t timers;
  std::size_t in_flight;
  int descriptors = 0;
  int tokens;
};

// --- how a run ends ---

enum class ending { running, finished, threw, unwound };

struct endings {
  ending subject = ending::running;
  ending peer = ending::running;  // `running` where there is none
  bool asked = false;             // the subject was asked to end before it had
  bool short_of_memory = false;   // an allocation had failed
};

/// A root that says how it has ended.
class actor final : public own_root<> {
 public:
  explicit actor(coax::task<> t, void (*over)(void*) = nullptr, void* of = nullptr)
      : own_root(std::move(t)), over_(over), of_(of) {}

  ending how() const noexcept { return how_; }
  const std::exception_ptr& failure() const noexcept { return failure_; }

 private:
  void ended(outcome how) noexcept override {
    if (how == outcome::finished) failure_ = promise().exception();
    how_ = how == outcome::unwound ? ending::unwound : failure_ ? ending::threw : ending::finished;
    destroy_first();
    own_root::ended(how);
    if (over_ != nullptr) over_(of_);
  }

  void (*over_)(void*);
  void* of_;
  ending how_ = ending::running;
  std::exception_ptr failure_;
};

using coax::detail::words_of;

/// Ends the program, with the tree of what waits, when a run does not end.
class watchdog final : private coax::timer {
 public:
  watchdog(stage& on, const std::string& run) : stage_(on), run_(run) {
    if (on.in_flight() != 0) on.loop().deadlines().set(*this, on.loop().now() + patience);
  }
  watchdog(const watchdog&) = delete;
  watchdog& operator=(const watchdog&) = delete;
  ~watchdog() { stage_.loop().deadlines().drop(*this); }

  void turned(bool anything_left) {
    if (!anything_left || ++turns_ > turns_max) bark();
  }

 private:
  static constexpr std::chrono::seconds patience{20};
  static constexpr int turns_max = 200'000;

  void expired() noexcept override { bark(); }
  [[noreturn]] void bark() const noexcept {
    std::fprintf(stderr, "%s does not end\n", run_.c_str());
    coax::dump(stage_.loop());
    std::abort();
  }

  stage& stage_;
  const std::string& run_;
  int turns_ = 0;
};

// --- cancelling ---

/// Who asks the subject to end.
enum class request {
  from_outside,  // between two turns
  from_queue,  // something that is ready, after what was ready before and ahead of what completes now
  from_inside,  // the scenario itself, or its peer, where it says `step()`
};

inline const char* name_of(request r) {
  return r == request::from_outside ? "between turns"
         : r == request::from_queue ? "from the queue"
                                    : "from inside";
}

struct aim {
  coax::root* at = nullptr;
  int steps_left = 0;
  bool asked = false;             // the subject was asked to end
  bool waits_as_it_runs = false;  // a root that ran was said to wait for something
};
inline aim aimed;

/// A place at which a scenario may be cancelled by what runs there.
inline void step() noexcept {
  const coax::root* const runs = coax::loop::current().running_root();
  if (runs != nullptr && runs->waits_for() != nullptr) aimed.waits_as_it_runs = true;
  if (aimed.at == nullptr || --aimed.steps_left != 0) return;
  aimed.asked = true;
  std::exchange(aimed.at, nullptr)->cancel();
}

class canceller final : public coax::ready_node {
 public:
  explicit canceller(coax::root& victim) noexcept : victim_(victim) {}

 private:
  void run() noexcept override {
    aimed.asked = true;
    victim_.cancel();
  }
  coax::root& victim_;
};

template <class Scenario>
concept has_over = requires(Scenario& s) { s.over(); };
template <class Scenario>
concept has_peer = requires(Scenario& s) { s.peer(); };
template <class Scenario>
concept has_afterwards = requires(Scenario& s) { s.afterwards(); };

/// One run, cancelled at step `at`. False when it had ended before that.
template <class Scenario>
bool run_cancelled(stage& on, request how, int at, const std::string& run) {
  const census before(on);
  bool reached = false;
  std::string wrong;
  {
    Scenario scenario;
    watchdog dog(on, run);
    actor subject(
        scenario.subject(),
        [](void* of) {
          if constexpr (has_over<Scenario>) static_cast<Scenario*>(of)->over();
        },
        &scenario);
    std::optional<actor> peer;
    if constexpr (has_peer<Scenario>) peer.emplace(scenario.peer());
    canceller cancels(subject);
    aimed = {};
    if (how == request::from_inside) {
      aimed.at = &subject;
      aimed.steps_left = at;
    }
    for (int turn = 1; !subject.has_ended() || (peer && !peer->has_ended()); ++turn) {
      if (turn == at && !subject.has_ended()) {
        if (how == request::from_outside) {
          aimed.asked = true;
          subject.cancel();
        }
        if (how == request::from_queue) on.loop().make_ready(cancels);
        reached = how != request::from_inside;
      }
      dog.turned(on.turn());
    }
    if (how == request::from_inside) reached = aimed.asked;
    aimed.at = nullptr;
    if (aimed.waits_as_it_runs) wrong += " a root waits for something as it runs;";
    if constexpr (has_afterwards<Scenario>) {
      actor last(scenario.afterwards());
      while (!last.has_ended()) dog.turned(on.turn());
      if (last.how() == ending::threw) wrong += " afterwards threw " + words_of(last.failure());
      if (last.how() == ending::unwound) wrong += " afterwards was unwound";
    }
    const endings seen{subject.how(), peer ? peer->how() : ending::running, reached, false};
    if (seen.subject == ending::threw) wrong += " the subject threw " + words_of(subject.failure());
    if (seen.peer == ending::threw) wrong += " the peer threw " + words_of(peer->failure());
    if (seen.peer == ending::unwound) wrong += " the peer was unwound";
    if (seen.subject == ending::unwound && !reached) wrong += " unwound without a cancel";
    wrong += scenario.verdict(seen);
  }
  wrong += before.difference(census(on));
  if (!wrong.empty()) FAIL_CHECK(run << ":" << wrong);
  return reached;
}

template <class Scenario>
void cancel_at_every_await(stage& on, const char* name) {
  constexpr int runs_max = 2'000;
  for (const request how : {request::from_outside, request::from_queue, request::from_inside}) {
    int at = 1;
    bool reached = true;
    for (; reached && at < runs_max; ++at) {
      const std::string run = std::string(name) + " on " + on.name() + ", cancelled " +
                              name_of(how) + " at step " + std::to_string(at);
      reached = run_cancelled<Scenario>(on, how, at, run);
    }
    INFO(name << " on " << on.name() << ", cancelled " << name_of(how));
    CHECK(!reached);  // the last run ended before its cancellation
    CHECK((at > 2 || how == request::from_inside));
  }
}

/// On both backends, and under virtual time.
template <class Scenario>
void cancel_at_every_await_everywhere(const char* name) {
  {
    virtual_stage on;
    cancel_at_every_await<Scenario>(on, name);
  }
  for (const coax::backend b : backends_here()) {
    reactor_stage on(b);
    cancel_at_every_await<Scenario>(on, name);
  }
}

/// On both backends.
template <class Scenario>
void cancel_at_every_await_on_reactors(const char* name) {
  coax::detail::signal_hub::instance();  // opens its descriptor once, for good
  for (const coax::backend b : backends_here()) {
    reactor_stage on(b);
    cancel_at_every_await<Scenario>(on, name);
  }
}
