#pragma once

#include <coax/config.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/faults.hpp>
#include <coax/sim/host_reactor.hpp>
#include <coax/sim/host_signals.hpp>
#include <coax/sim/kernel.hpp>
#include <coax/sim/network.hpp>
#include <coax/sim/program.hpp>
#include <coax/sim/tcp_stack.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/result.hpp>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace coax::inline COAX_ABI::sim {

/// A machine of a simulated world that runs one program on one reactor.
///
/// What ends the program, such as `crash`, is not for that program itself to call: from the test or
/// another host.
///
/// Lifetime  the world's.
class host final : private host_services {
 public:
  host(engine& e, network& n, const host_names& names, int index, std::string name,
       make_program make)
      : engine_(e),
        names_(names),
        tcp_(e, n, index),
        faults_(e),
        name_(std::move(name)),
        make_(std::move(make)),
        fds_max_(e.how.fds_max) {
    e.log.name_host(name_);
    boot();
  }
  host(const host&) = delete;
  host& operator=(const host&) = delete;
  ~host() { power_off(); }

  const std::string& name() const noexcept { return name_; }
  /// "10.0.0.1", and so on in the order in which the hosts were made.
  std::string address() const { return sim::address::of_host(tcp_.index(), true).text(); }

  /// The program runs; not when it has ended, crashed or was killed.
  bool is_running() const noexcept { return program_ != nullptr; }
  bool is_paused() const noexcept { return paused_; }

  /// Stops the machine dead. The others hear nothing, until it is restarted: then what they send on
  /// the old connections is answered by a RST.
  ///
  /// The coroutines of the program are unwound, as by a cancellation, cut off from the world: what
  /// their destructors and clean-ups do is seen by nobody.
  void crash() {
    engine_.note(tcp_.index(), "crash");
    tcp_.is_up(false);
    if (kernel_ != nullptr) kernel_->host_ended();
    bury();
    tcp_.forget_all();
  }

  /// Ends the program as SIGKILL does: its connections are closed by the kernel.
  void kill() {
    if (!is_running()) return;
    engine_.note(tcp_.index(), "kill");
    kernel_->program_ended();
    bury();
  }

  /// Starts the program anew, with its arguments as they are now.
  ///
  /// Errors    std::logic_error while it runs.
  void restart() {
    if (is_running())
      coax::detail::throw_logic_error("coax: host " + name_ +
                                      " still runs: crash or kill it first");
    engine_.note(tcp_.index(), "restart");
    tcp_.is_up(true);
    boot();
  }

  /// Sends a signal: told to whoever waits in `signals`. One that the program has never waited for
  /// ends it, pauses it or is ignored, as by default; SIGCONT resumes.
  ///
  /// Errors    std::invalid_argument for a number that is no signal.
  void signal(int number) {
    if (number < 1 || number > coax::detail::signal_max)
      coax::detail::throw_invalid_argument("coax: host " + name_ + " was sent signal " +
                                           std::to_string(number) + ", which is none");
    if (!is_running()) return;
    engine_.note(tcp_.index(), "signal", number);
    if (number == SIGSTOP) return pause();
    if (number == SIGCONT) resume();
    if (signals_->catches(number)) return loop_->inside([&] { signals_->deliver(number); });
    if (number == SIGTSTP || number == SIGTTIN || number == SIGTTOU) return pause();
    const bool ignored = number == SIGCONT || number == SIGCHLD || number == SIGURG ||
                         number == SIGWINCH || number == SIGPIPE;
    if (!ignored) kill();
  }

  /// The program does not run, while its kernel goes on answering.
  void pause() noexcept { paused_ = true; }
  void resume() noexcept { paused_ = false; }

  /// Makes single calls fail: `on("recv").nth(7, EINTR)`.
  ///
  /// Errors    std::invalid_argument for a call that cannot be made to fail.
  call_rule& on(std::string_view call_name) { return faults_.on(call_name); }
  /// Faults by chance end on this host; those planned by `on` still come.
  void stop_faults() noexcept { faults_.stop(); }

  /// From now on so many descriptors can be open: more is EMFILE.
  ///
  /// Errors    std::invalid_argument when that is negative.
  void limit_fds(int most) {
    if (most < 0)
      coax::detail::throw_invalid_argument("coax: limit_fds of host " + name_ + " is " +
                                           std::to_string(most) + ": it cannot be negative");
    fds_max_ = most;
    if (kernel_ != nullptr) kernel_->fds_max(most);
  }
  /// Descriptors that are open, without the reactor's own.
  std::size_t open_fds() const noexcept { return kernel_ == nullptr ? 0 : kernel_->open_fds(); }
  /// Of these, the connections.
  std::size_t open_streams() const noexcept {
    return kernel_ == nullptr ? 0 : kernel_->open_streams();
  }
  /// Connections its TCP knows, also those that no descriptor stands for any more.
  std::size_t connections() const noexcept { return tcp_.connections(); }

  /// The loop of the program. Only while it runs: else this program ends with a message.
  reactor& loop() noexcept {
    if (loop_ == nullptr)
      coax::detail::fatal("a host of a simulation was asked for its loop while it did not run");
    return loop_->as_reactor();
  }

  // --- for the world ---

  void host_count(int count) noexcept { tcp_.host_count(count); }
  int index() const noexcept { return tcp_.index(); }

  bool can_run() {
    return is_running() && !paused_ && engine_.now >= stalled_until_ && loop_->has_work();
  }
  /// When it may run again although nothing happens to it.
  std::optional<clock::time_point> next_time() {
    if (!is_running() || paused_) return std::nullopt;
    std::optional<clock::time_point> next = loop_->next_timer();
    if (loop_->has_work()) next = engine_.now;
    if (next) next = std::max(*next, stalled_until_);
    return next;
  }

  /// One turn. Result: what the program threw, if that ended it.
  std::exception_ptr run() {
    if (engine_.decide.chance(faults_.are_stopped() ? 0 : engine_.how.stall)) {
      const clock::duration time = engine_.decide.between(engine_.how.stall_time);
      engine_.note(tcp_.index(), "stall", time.count());
      stalled_until_ = timeout(time).after(engine_.now);
      return nullptr;
    }
    loop_->as_reactor().turn();
    if (!program_->has_ended()) return nullptr;
    const std::exception_ptr failure = program_->failure();
    engine_.note(tcp_.index(), "exit", failure == nullptr ? 0 : 1);
    tear_down();
    kernel_->program_ended();
    return failure;
  }

  /// Ends without a trace.
  void power_off() noexcept {
    if (!is_running()) return;
    tcp_.is_up(false);
    kernel_->host_ended();
    bury();
  }

 private:
  void boot() {
    kernel_ = std::make_unique<kernel>(engine_, names_, tcp_, faults_, fds_max_);
    signals_ = std::make_unique<host_signals>();
    dead_time_.reset();
    paused_ = false;
    stalled_until_ = {};
    host_services& services = *this;
    std::exception_ptr failure;
    if (engine_.how.completion == completion::ring)
      loop_ = std::make_unique<ring_host>(services, *kernel_, engine_);
    else
      loop_ = std::make_unique<readiness_host>(services, *kernel_, engine_.how);
    // The session would leave this loop as the one that runs here: it begins and ends inside.
    loop_->inside([&] {
      session_.emplace(loop_->as_reactor());
      failure = coax::detail::caught([&] { program_ = make_(); });
    });
    if (!failure) return;
    tear_down();
    kernel_->program_ended();
    coax::detail::rethrow(std::move(failure));
  }

  void tear_down() noexcept {
    loop_->inside([&] {
      program_.reset();
      session_.reset();
    });
    loop_.reset();
  }

  /// Unwinds the program of a host that is gone. Its clock runs ahead, so that nothing waits.
  void bury() noexcept {
    if (!is_running()) return;
    if (loop_->as_reactor().running_root() != nullptr)
      coax::detail::fatal(
          "a program of a simulation was to end its own host: that is for the test, or another host");
    constexpr int turns_max = 100'000;
    loop_->inside([&] { program_->cancel(); });
    dead_time_ = engine_.now;
    for (int turns = 0; !program_->has_ended(); ++turns) {
      if (turns == turns_max)
        coax::detail::fatal("a program on a host that has crashed cannot be unwound: it waits");
      if (!loop_->has_work())
        if (const auto next = loop_->next_timer()) dead_time_ = std::max(*dead_time_, *next);
      loop_->as_reactor().turn();
    }
    tear_down();
  }

  // --- host_services ---

  clock::time_point now() const noexcept override { return dead_time_.value_or(engine_.now); }
  task<int> wait_for_signal(coax::detail::signal_bits wanted) override {
    return signals_->wait(wanted);
  }

  engine& engine_;
  const host_names& names_;
  tcp_stack tcp_;
  call_faults faults_;
  std::string name_;
  make_program make_;
  int fds_max_;
  bool paused_ = false;
  clock::time_point stalled_until_{};
  std::optional<clock::time_point> dead_time_;
  std::unique_ptr<kernel> kernel_;
  std::unique_ptr<host_signals> signals_;
  std::unique_ptr<driven_loop> loop_;
  std::optional<reactor::session> session_;
  std::unique_ptr<program> program_;
};

}  // namespace coax::inline COAX_ABI::sim
