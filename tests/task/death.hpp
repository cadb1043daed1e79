#pragma once

/// What a program does that breaks a rule: it is run in a forked child, which is expected to abort.

#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/// How a child process ended, and what it printed to stderr.
struct ending {
  int signal = 0;  // that killed it, or 0
  int status = 0;  // it exited with, when no signal killed it
  std::string words;

  bool said(std::string_view fragment) const { return words.find(fragment) != std::string::npos; }
  bool aborted_saying(std::string_view fragment) const {
    return signal == SIGABRT && said(fragment);
  }
  bool was_orderly() const { return signal == 0 && status == 0; }
};

/// Runs `action` in a child process. It may print, abort and crash; when it returns the child exits with 0.
///
/// Errors    signal 0 and status -1 when there is no child to be had.
template <class Action>
ending ending_of(Action&& action) {
  ending seen;
  int ends[2] = {-1, -1};
  const pid_t child = ::pipe(ends) == 0 ? ::fork() : -1;
  if (child == -1) {
    seen.status = -1;
    return seen;
  }
  if (child == 0) {
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    for (const int caught_by_catch : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGTERM})
      std::signal(caught_by_catch, SIG_DFL);
    ::alarm(120);  // a child that hangs must not hang the test
    ::dup2(ends[1], STDERR_FILENO);
    // One that ends by exit(3) also ends the report of the test, which is not its to write.
    if (const int nowhere = ::open("/dev/null", O_WRONLY); nowhere >= 0)
      ::dup2(nowhere, STDOUT_FILENO);
    try {
      std::forward<Action>(action)();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "threw: %s\n", e.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  char some[512];
  for (ssize_t n = 0; (n = ::read(ends[0], some, sizeof some)) > 0;)
    seen.words.append(some, static_cast<std::size_t>(n));
  ::close(ends[0]);
  int how = 0;
  ::waitpid(child, &how, 0);
  seen.signal = WIFSIGNALED(how) ? WTERMSIG(how) : 0;
  seen.status = WIFEXITED(how) ? WEXITSTATUS(how) : 0;
  return seen;
}
