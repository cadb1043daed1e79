#pragma once

#include <coax/config.hpp>
#include <coax/io/signal_bits.hpp>
#include <coax/process/log_line.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/loop.hpp>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace coax::inline COAX_ABI::detail {

/// How a child process ended, in words.
inline std::string end_in_words(int status) {
  if (WIFSIGNALED(status)) return "killed by signal " + std::to_string(WTERMSIG(status));
  return "exit status " + std::to_string(WEXITSTATUS(status));
}

/// One of the processes `prefork` keeps running.
class supervised {
 public:
  static constexpr clock::duration healthy_after = std::chrono::seconds(1);
  static constexpr clock::duration pause_first = std::chrono::milliseconds(100);
  static constexpr clock::duration pause_max = std::chrono::seconds(30);

  bool runs() const noexcept { return pid_ > 0; }
  pid_t pid() const noexcept { return pid_; }
  clock::time_point start_due() const noexcept { return start_due_; }

  void started(pid_t pid) noexcept {
    pid_ = pid;
    started_at_ = now();
  }

  /// One that had settled is started again at once; one that keeps dying young waits longer each
  /// time. Result: how long it is to wait.
  clock::duration ended() noexcept {
    pid_ = 0;
    const bool young = now() - started_at_ < healthy_after;
    const clock::duration pause = young ? next_pause_ : clock::duration::zero();
    next_pause_ =
        !young ? clock::duration::zero() : std::clamp(next_pause_ * 2, pause_first, pause_max);
    start_due_ = now() + pause;
    return pause;
  }

 private:
  pid_t pid_ = 0;
  clock::time_point started_at_{};
  clock::time_point start_due_{};
  clock::duration next_pause_ = clock::duration::zero();  // the first death is forgiven
};

/// The parent of `prefork`: starts, waits, starts again, and stops. It runs no reactor.
class supervisor {
 public:
  supervisor(int processes, timeout drain)
      : drain_(drain), children_(static_cast<std::size_t>(processes)) {
    struct sigaction action{};
    action.sa_handler = SIG_DFL;  // where it is ignored, the kernel keeps no exit status
    ::sigaction(SIGCHLD, &action, &sigchld_before_);
    // A line that nobody reads any more must not end those that are supervised.
    action.sa_handler = SIG_IGN;
    ::sigaction(SIGPIPE, nullptr, &sigpipe_before_);
    if (sigpipe_before_.sa_handler == SIG_DFL) ::sigaction(SIGPIPE, &action, nullptr);
    ::pthread_sigmask(SIG_BLOCK, &handled_, &mask_before_);
  }
  supervisor(const supervisor&) = delete;
  supervisor& operator=(const supervisor&) = delete;
  ~supervisor() {
    // One that came after the last process had ended, too, is answered by that.
    const sigset_t stops = set_of(stop_signals);
    const timespec at_once{};
    while (stops_ > 0 && ::sigtimedwait(&stops, nullptr, &at_once) > 0) {
    }
    ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
    restore_actions();
  }

  /// Runs until a signal has stopped it and all children have ended. `child(number, held)` is the
  /// life of one of them, which is to unblock the signals in `held`; what it gives is its exit
  /// status. `stop_listening` runs in the parent before the signal is passed on.
  ///
  /// Result    0 when all children ended by themselves with status 0 after the signal; else 1.
  template <class Child, class StopListening>
  int run(const Child& child, const StopListening& stop_listening) {
    while (true) {
      if (!is_to_stop())
        start_what_is_due(child);
      else if (stops_ > 0 && none_runs())
        return all_well_ ? 0 : 1;
      const int signal = wait_for_signal();
      if (is_stop(signal)) ++stops_;
      reap();
      if (is_stop(signal) && stops_ == 1) {
        stop_listening();
        kill_at_ = drain_.after(now());
        pass_on(signal);
      } else if (is_stop(signal)) {
        kill_all("a second signal came");
      }
      if (stops_ == 1 && now() >= kill_at_) kill_all("it has not ended in time");
    }
  }

 private:
  template <class Child>
  void start_what_is_due(const Child& child) {
    for (std::size_t i = 0; i < children_.size(); ++i) {
      supervised& each = children_[i];
      if (each.runs() || each.start_due() > now()) continue;
      std::fflush(nullptr);  // or the child would print what is still in the buffers once more
      const pid_t parent = ::getpid();
      const pid_t pid = ::fork();
      if (pid == 0) become_child(child, static_cast<int>(i) + 1, parent);
      if (pid > 0) {
        each.started(pid);
        continue;
      }
      const int error = errno;
      each.started(0);
      const auto pause = std::chrono::duration_cast<std::chrono::milliseconds>(each.ended());
      log_line("process " + std::to_string(i + 1) + " cannot be started: " + std::strerror(error) +
               "; next try in " + std::to_string(pause.count()) + " ms");
    }
  }

  template <class Child>
  [[noreturn]] void become_child(const Child& child, int number, pid_t parent) {
    // A parent that is killed cannot tell: the kernel does, unless it died before this line.
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    // (0: the parent is in another namespace of pids.)
    if (const pid_t now = ::getppid(); now != parent && now != 0) std::_Exit(1);
    restore_actions();
    // A stop that comes before the child has said what it does about one is kept until then.
    const signal_bits before = bits_of(mask_before_);
    const sigset_t mask = set_of(before | stop_signals);
    ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
    int status = child(number, set_of(stop_signals & ~before));
    if (status != 0 && (status & 0xff) == 0) status = 1;  // of which exit(2) would keep a success
    std::fflush(nullptr);
    std::_Exit(status);  // the parent's exit handlers are not the child's to run
  }

  void restore_actions() const noexcept {
    ::sigaction(SIGCHLD, &sigchld_before_, nullptr);
    ::sigaction(SIGPIPE, &sigpipe_before_, nullptr);
  }

  bool none_runs() const noexcept {
    return std::none_of(children_.begin(), children_.end(),
                        [](const supervised& each) { return each.runs(); });
  }

  /// True from the moment a stop signal is there. A child that ended by the same one, sent to the
  /// whole group, is seen after that, and is not to be started again.
  bool is_to_stop() const noexcept {
    sigset_t pending;
    sigemptyset(&pending);
    ::sigpending(&pending);
    return stops_ > 0 || (bits_of(pending) & stop_signals) != 0;
  }

  /// Waits for a signal, the next start or the end of the drain. Result: the signal, or -1.
  int wait_for_signal() const noexcept {
    clock::time_point until = clock::time_point::max();
    if (stops_ == 1) until = kill_at_;
    if (stops_ == 0)
      for (const supervised& each : children_)
        if (!each.runs()) until = std::min(until, each.start_due());
    if (until == clock::time_point::max()) return ::sigwaitinfo(&handled_, nullptr);
    const clock::duration left = std::max(until - now(), clock::duration::zero());
    const auto whole = std::chrono::duration_cast<std::chrono::seconds>(left);
    timespec limit{};
    limit.tv_sec = static_cast<time_t>(whole.count());
    limit.tv_nsec = static_cast<long>((left - whole).count());
    return ::sigtimedwait(&handled_, nullptr, &limit);
  }

  /// One SIGCHLD may stand for several: asks for each child by name, so that it never takes
  /// somebody else's.
  void reap() {
    for (std::size_t i = 0; i < children_.size(); ++i) {
      supervised& each = children_[i];
      int status = 0;
      if (!each.runs()) continue;
      const pid_t pid = each.pid();
      const pid_t answer = ::waitpid(pid, &status, WNOHANG);
      const bool taken_by_others = answer < 0 && errno == ECHILD;
      if (answer != pid && !taken_by_others) continue;
      const auto pause = std::chrono::duration_cast<std::chrono::milliseconds>(each.ended());
      std::string line =
          "process " + std::to_string(i + 1) + " (pid " + std::to_string(pid) + ") ended: " +
          (taken_by_others ? "somebody else has waited for it" : end_in_words(status));
      if (!is_to_stop())
        line += pause.count() == 0
                    ? "; starting it again"
                    : "; starting it again in " + std::to_string(pause.count()) + " ms";
      else
        all_well_ = all_well_ && status == 0 && !taken_by_others;
      log_line(line);
    }
  }

  void pass_on(int signal) const noexcept {
    for (const supervised& each : children_)
      if (each.runs()) ::kill(each.pid(), signal);
  }

  void kill_all(const char* why) {
    for (std::size_t i = 0; i < children_.size(); ++i)
      if (children_[i].runs()) log_line("process " + std::to_string(i + 1) + " is killed: " + why);
    pass_on(SIGKILL);
    kill_at_ = clock::time_point::max();
  }

  timeout drain_;
  std::vector<supervised> children_;
  const sigset_t handled_ = set_of(stop_signals | signal_bit(SIGCHLD));
  sigset_t mask_before_{};
  struct sigaction sigchld_before_{};
  struct sigaction sigpipe_before_{};
  int stops_ = 0;
  clock::time_point kill_at_ = clock::time_point::max();
  bool all_well_ = true;
};

}  // namespace coax::inline COAX_ABI::detail
