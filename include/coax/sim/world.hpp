#pragma once

#include <coax/config.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/host.hpp>
#include <coax/sim/network.hpp>
#include <coax/sim/options.hpp>
#include <coax/sim/oracle.hpp>
#include <coax/sim/program.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/closure.hpp>
#include <coax/task/dump.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// Nothing can happen any more, and what was waited for has not; or it happens for ever.
class stuck : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An invariant does not hold.
class violated : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Some hosts on a network, with a clock that moves only when nothing is ready.
///
/// Everything that happens follows from the options and the program: the same seed gives the same
/// run, to the last event. What a program throws ends the run and is rethrown from it. When the
/// world is destroyed by an exception, such as that of a test that fails, it prints the options
/// that replay it.
///
/// Thread    one.
class world final : private host_names {
 public:
  /// Errors    std::invalid_argument when COAX_SIM_SEED is not a number, or an option is what cannot be.
  explicit world(options o = {}) : seeded_(seed_of(o)), engine_(checked(with_seed(o)), seeded_) {}
  /// Decides by `decide`: a recording, the bytes of a fuzzer, or what `explore` plans.
  world(options o, oracle& decide) : seeded_(0), engine_(checked(o), decide) {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  ~world() {
    if (std::uncaught_exceptions() > exceptions_before_)
      std::fprintf(stderr, "coax: this world was {%s}; COAX_SIM_SEED=%llu runs it again\n",
                   to_string(engine_.how).c_str(),
                   static_cast<unsigned long long>(engine_.how.seed));
    // All of them, before the first is gone: one that unwinds may still talk of another.
    for (const auto& each : hosts_) each->power_off();
  }

  /// Adds a host that runs `fn(args...)`, which gives a task, as `run` would.
  ///
  /// Errors    std::invalid_argument when there is one of that name.
  /// Lifetime  copies `fn` and `args`; std::ref for what is not to be copied. A restart calls the
  ///           same copies again.
  template <class F, class... A>
  sim::host& host(std::string name, F fn, A... args) {
    using given = coax::detail::given_t<F&, A&...>;
    static_assert(is_task_v<given>, "a host runs a function that gives a coax::task");
    auto call = std::make_shared<std::tuple<F, A...>>(std::move(fn), std::move(args)...);
    return add(std::move(name), [call]() -> std::unique_ptr<program> {
      const auto make = [](F& f, A&... a) {
        return std::make_unique<program_of<typename given::value_type>>(std::invoke(f, a...));
      };
      return std::apply(make, *call);
    });
  }

  clock::time_point start() const noexcept { return start_; }
  clock::time_point now() const noexcept { return engine_.now; }

  /// Lets `d` of virtual time pass.
  ///
  /// Errors    what a program or an invariant throws; sim::violated; sim::stuck when a million steps
  ///           take no time. Of all that run.
  void run_for(timeout d) {
    const clock::time_point until = d.after(engine_.now);
    while (step(until)) continue;
    engine_.now = std::max(engine_.now, until);
  }

  /// Runs until `is_so()` is true, which is asked after each step.
  ///
  /// Errors    sim::stuck when nothing can happen any more, and when `limit` has passed.
  template <class Predicate>
  void run_until(Predicate&& is_so, timeout limit = std::chrono::hours(24)) {
    const clock::time_point until = limit.after(engine_.now);
    while (!is_so()) {
      if (step(until)) continue;
      const bool late = next_time().has_value();
      throw_stuck(late ? "what was waited for has not happened in time"
                       : "nothing can happen any more, and what was waited for has not");
    }
  }

  /// Runs until nothing is ready, nothing is on its way and no timer is set. Tasks may still wait:
  /// a server waits for connections. See waiting().
  ///
  /// Errors    sim::stuck when that is not so after `limit`.
  void run_until_quiet(timeout limit = std::chrono::hours(24)) {
    const clock::time_point until = limit.after(engine_.now);
    while (step(until)) continue;
    if (next_time()) throw_stuck("it is still not quiet");
  }

  /// Runs until all programs have ended.
  ///
  /// Errors    as run_until().
  void run_to_end(timeout limit = std::chrono::hours(24)) {
    run_until(
        [&] {
          for (const auto& each : hosts_)
            if (each->is_running()) return false;
          return true;
        },
        limit);
  }

  /// Checks `holds()` after each step: false, or an exception, ends the run.
  ///
  /// Errors    sim::violated, from the run, when it gives false.
  template <class F>
  void invariant(F holds) {
    invariant("an invariant", std::move(holds));
  }
  template <class F>
  void invariant(std::string name, F holds) {
    if constexpr (std::is_void_v<std::invoke_result_t<F&>>)
      invariants_.push_back({std::move(name), [check = std::move(holds)]() mutable {
                               check();
                               return true;
                             }});
    else
      invariants_.push_back({std::move(name), std::move(holds)});
  }

  // --- the network ---

  /// Cuts the way between two hosts, both ways. What is sent waits, as long as TCP would repeat it.
  void partition(const sim::host& a, const sim::host& b) {
    partition_one_way(a, b);
    partition_one_way(b, a);
  }
  /// Cuts the way from `from` to `to` alone: those that come back still do.
  void partition_one_way(const sim::host& from, const sim::host& to) {
    engine_.note(from.index(), "partition", to.index());
    network_.cut(from.index(), to.index());
  }
  /// Mends what was cut between two hosts, or everywhere.
  void heal(const sim::host& a, const sim::host& b) {
    engine_.note(a.index(), "heal", b.index());
    network_.mend(a.index(), b.index());
    network_.mend(b.index(), a.index());
  }
  void heal() {
    engine_.note(trace::network, "heal");
    network_.mend_all();
  }
  /// No fault comes by chance from now on: to see whether everything settles.
  void stop_faults() noexcept { engine_.calm = true; }

  // --- what happened ---

  /// Differs when anything differs: the same seed gives the same, on any machine and compiler.
  std::uint64_t trace_hash() const noexcept { return engine_.log.hash(); }
  /// The last events, a line each: time, host, what it did and what came of it.
  std::string trace() const { return engine_.log.text(); }
  /// All decisions so far, for oracle::replaying().
  const std::vector<decision>& decisions() const noexcept { return engine_.decide.decisions(); }
  const sim::options& how() const noexcept { return engine_.how; }

  /// Which programs have not ended, what they have open, and what each of their tasks waits for.
  std::string waiting() const {
    std::string all;
    for (const auto& each : hosts_) {
      if (!each->is_running()) continue;
      all += "  " + each->name() + (each->is_paused() ? " is paused" : " waits") + ": " +
             std::to_string(each->open_streams()) + " streams, " +
             std::to_string(each->open_fds()) + " descriptors, " +
             std::to_string(each->loop().in_flight()) + " operations\n";
      all += tasks_of(each->loop());
    }
    return all;
  }

 private:
  struct named_invariant {
    std::string name;
    std::function<bool()> holds;
  };

  sim::host& add(std::string name, make_program make) {
    if (find(name) >= 0)
      coax::detail::throw_invalid_argument("coax: this world has a host \"" + name + "\" already");
    const int index = static_cast<int>(hosts_.size());
    const host_names& names = *this;
    hosts_.push_back(std::make_unique<sim::host>(engine_, network_, names, index, std::move(name),
                                                 std::move(make)));
    for (const auto& each : hosts_) each->host_count(index + 1);
    return *hosts_.back();
  }

  /// One thing happens: a host takes a turn, or an event comes; if neither can, time moves. False
  /// when nothing is left to happen up to `until`.
  bool step(clock::time_point until) {
    std::vector<sim::host*> ready;
    for (const auto& each : hosts_)
      if (each->can_run()) ready.push_back(each.get());
    const std::vector<event_queue::key> due = engine_.events.due(engine_.now);
    if (ready.empty() && due.empty()) {
      const std::optional<clock::time_point> next = next_time();
      if (!next || *next > until) return false;
      engine_.now = std::max(engine_.now, *next);
      steps_at_once_ = 0;
      return true;
    }
    if (++steps_at_once_ > steps_at_once_max)
      throw_stuck("time stands still, while something runs and runs");
    const auto picked = static_cast<std::size_t>(engine_.decide.choose(ready.size() + due.size()));
    if (picked >= ready.size()) {
      engine_.events.run(due[picked - ready.size()]);
      network_.deliver_local();
    } else if (const std::exception_ptr failure = ready[picked]->run()) {
      coax::detail::rethrow(failure);
    }
    for (std::size_t i = 0; i < invariants_.size(); ++i)
      if (!invariants_[i].holds()) throw_violated(invariants_[i].name);
    return true;
  }

  std::optional<clock::time_point> next_time() {
    std::optional<clock::time_point> next = engine_.events.next();
    for (const auto& each : hosts_)
      if (const auto at = each->next_time(); at && (!next || *at < *next)) next = at;
    return next;
  }

  int find(std::string_view name) const override {
    for (const auto& each : hosts_)
      if (each->name() == name) return each->index();
    return -1;
  }

  std::string seconds() const {
    const auto time = (engine_.now - start_).count();
    char text[32];
    std::snprintf(text, sizeof(text), "%lld.%09lld s", static_cast<long long>(time / 1'000'000'000),
                  static_cast<long long>(time % 1'000'000'000));
    return text;
  }
  [[noreturn]] void throw_stuck(const char* why) const {
    coax::detail::raise(
        stuck(std::string("coax: after ") + seconds() + ": " + why + "\n" + waiting()));
  }
  [[noreturn]] void throw_violated(const std::string& name) const {
    coax::detail::raise(violated("coax: after " + seconds() + ": " + name + " does not hold"));
  }

  static std::string tasks_of(const coax::loop& l) {
    char* text = nullptr;
    std::size_t size = 0;
    std::FILE* to = ::open_memstream(&text, &size);
    if (to == nullptr) return {};
    dump(l, to);
    std::fclose(to);
    std::string tree(text, size);
    std::free(text);
    return tree;
  }

  static std::uint64_t seed_of(const options& o) {
    const char* text = std::getenv("COAX_SIM_SEED");
    if (text == nullptr || *text == '\0') return o.seed;
    std::uint64_t seed = 0;
    const char* end = text + std::strlen(text);
    const auto [rest, failed] = std::from_chars(text, end, seed);
    if (failed != std::errc() || rest != end)
      coax::detail::throw_invalid_argument("coax: COAX_SIM_SEED is \"" + std::string(text) +
                                           "\", which is not a number");
    return seed;
  }
  static options with_seed(options o) {
    o.seed = seed_of(o);
    return o;
  }

  static const options& checked(const options& o) {
    for (const detail::named_probability& p : detail::probabilities)
      if (!(o.*p.value >= 0 && o.*p.value <= 1))
        coax::detail::throw_invalid_argument(std::string("coax: sim::options::") + p.name + " is " +
                                             std::to_string(o.*p.value) +
                                             ": a probability is from 0 to 1");
    const auto check = [](bool can_be, const char* what) {
      if (!can_be) coax::detail::throw_invalid_argument(std::string("coax: sim::options::") + what);
    };
    check(o.latency.is_valid(), "latency: from the least, which is not negative, to the most");
    check(o.stall_time.is_valid(),
          "stall_time: from the least, which is not negative, to the most");
    check(o.send_buffer > 0 && o.receive_buffer > 0,
          "send_buffer, receive_buffer: at least a byte");
    check(o.fds_max >= 0, "fds_max: not negative");
    check(o.backlog_max > 0, "backlog_max: at least 1");
    check(o.completion == completion::readiness || o.completion == completion::ring,
          "completion: readiness or ring");
    return o;
  }

  static constexpr int steps_at_once_max = 1'000'000;

  int steps_at_once_ = 0;
  int exceptions_before_ = std::uncaught_exceptions();
  oracle seeded_;
  engine engine_;
  clock::time_point start_ = engine_.now;
  network network_{engine_};
  std::deque<named_invariant> invariants_;  // which may add others
  std::vector<std::unique_ptr<sim::host>> hosts_;
};

}  // namespace coax::inline COAX_ABI::sim
