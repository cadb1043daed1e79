#pragma once

/// prefork seen from the outside: a process of its own that calls it, what that prints, the processes it starts, and
/// clients with plain blocking sockets. Everything here gives up after a while.

#include "../catch.hpp"

#include <coax/io/choose.hpp>
#include <coax/io/unique_fd.hpp>
#include <coax/net/listener.hpp>

#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace outside {

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

/// What does not come within this time does not come at all.
inline constexpr std::chrono::milliseconds patience = 20s;

/// Waits until `fd` can be read, or has ended.
inline bool readable(int fd, steady::time_point until) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - steady::now());
    pollfd one{fd, POLLIN, 0};
    const int n = ::poll(&one, 1, static_cast<int>(std::max(left, 0ms).count()));
    if (n > 0) return true;
    if (n == 0 || errno != EINTR) return false;
  }
}

/// For what only /proc shows: looks again and again. Result: whether it came true in time.
template <class Condition>
bool comes_true(Condition&& condition, std::chrono::milliseconds limit = patience) {
  const auto until = steady::now() + limit;
  while (!condition()) {
    if (steady::now() > until) return false;
    ::poll(nullptr, 0, 2);
  }
  return true;
}

struct process_entry {
  pid_t pid;
  char state;  // as ps shows it: Z is a zombie
};

/// The processes whose parent is `parent`.
inline std::vector<process_entry> children_of(pid_t parent) {
  std::vector<process_entry> found;
  DIR* listing = ::opendir("/proc");
  while (const dirent* entry = ::readdir(listing)) {
    const int pid = std::atoi(entry->d_name);
    if (pid <= 0) continue;
    std::FILE* file = std::fopen(("/proc/" + std::to_string(pid) + "/stat").c_str(), "re");
    if (file == nullptr) continue;
    char state = 0;
    int of = 0;
    const bool known = std::fscanf(file, "%*d (%*[^)]) %c %d", &state, &of) == 2;
    std::fclose(file);
    if (known && of == parent) found.push_back({pid, state});
  }
  ::closedir(listing);
  return found;
}

/// How a process ended.
struct how_it_ended {
  bool in_time = false;
  int signal = 0;
  int status = -1;
  bool exited_with(int wanted) const { return in_time && signal == 0 && status == wanted; }
};

/// Waits for the end of a child of this process.
inline how_it_ended end_of(pid_t pid, std::chrono::milliseconds limit = patience) {
  const coax::unique_fd handle(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  int how = 0;
  if (!handle || !readable(handle.get(), steady::now() + limit) ||
      ::waitpid(pid, &how, WNOHANG) != pid)
    return {};
  return {true, WIFSIGNALED(how) ? WTERMSIG(how) : 0, WIFEXITED(how) ? WEXITSTATUS(how) : -1};
}

/// One of the processes of a prefork, as it reported its start.
struct started {
  int number = 0;
  pid_t pid = 0;
  std::string backend;
};

/// A process that runs `action`, which calls prefork; what that gives is its exit status. It leads a process group, which
/// is killed when this object goes.
class supervisor {
 public:
  template <class Action>
  supervisor(coax::backend b, Action&& action) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    errors_.reset(ends[0]);
    const coax::unique_fd into(ends[1]);
    std::fflush(nullptr);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      errors_.reset();
      live(b, into.get(), std::forward<Action>(action));
    }
    ::setpgid(pid_, pid_);  // whoever of the two comes first
  }
  supervisor(const supervisor&) = delete;
  supervisor& operator=(const supervisor&) = delete;
  ~supervisor() {
    ::kill(-pid_, SIGKILL);
    if (!ended_) end_of(pid_);
  }

  pid_t pid() const { return pid_; }
  void send(int number) const { ::kill(pid_, number); }
  void send_to_group(int number) const { ::kill(-pid_, number); }

  /// How it ended; asked once.
  how_it_ended end(std::chrono::milliseconds limit = patience) {
    const how_it_ended how = end_of(pid_, limit);
    ended_ = how.in_time;
    while (read_more(steady::now())) {
    }
    return how;
  }

  /// The next line on its stderr, of those not seen, that has `fragment` in it; empty when none comes.
  std::string line(std::string_view fragment, std::chrono::milliseconds limit = patience) {
    const auto until = steady::now() + limit;
    while (true) {
      for (std::size_t at = 0; (at = words_.find('\n', seen_)) != std::string::npos;) {
        const std::string one = words_.substr(seen_, at - seen_);
        seen_ = at + 1;
        if (one.find(fragment) != std::string::npos) return one;
      }
      if (!read_more(until)) return {};
    }
  }
  /// The next start of a process; number 0 when none comes.
  started start(std::chrono::milliseconds limit = patience) {
    started s;
    char backend[64] = {};
    const std::string one = line(" started: ", limit);
    if (std::sscanf(one.c_str(), "coax: process %d (pid %d) started: %63s", &s.number, &s.pid,
                    backend) != 3)
      return {};
    s.backend = backend;
    return s;
  }
  std::vector<started> starts(int count) {
    std::vector<started> all;
    for (int i = 0; i < count; ++i) all.push_back(start());
    return all;
  }

  const std::string& words() const { return words_; }
  /// How often `fragment` was printed.
  int count(std::string_view fragment) const {
    int n = 0;
    for (std::size_t at = 0; (at = words_.find(fragment, at)) != std::string::npos; ++at) ++n;
    return n;
  }

 private:
  template <class Action>
  [[noreturn]] static void live(coax::backend b, int into, Action&& action) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is killed leaves nobody behind
    ::alarm(120);
    for (const int caught_by_catch : {SIGABRT, SIGSEGV, SIGFPE, SIGILL, SIGTERM, SIGINT})
      std::signal(caught_by_catch, SIG_DFL);
    ::setenv("COAX_BACKEND", b == coax::backend::epoll ? "epoll" : "io_uring", 1);
    ::dup2(into, STDERR_FILENO);
    int status = 99;
    try {
      status = std::forward<Action>(action)();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "threw: %s\n", e.what());
    }
    ::_exit(status);
  }

  bool read_more(steady::time_point until) {
    char some[4096];
    if (!readable(errors_.get(), until)) return false;
    const ssize_t n = ::read(errors_.get(), some, sizeof some);
    if (n > 0) words_.append(some, static_cast<std::size_t>(n));
    return n > 0;
  }

  pid_t pid_ = -1;
  bool ended_ = false;
  coax::unique_fd errors_;
  std::string words_;
  std::size_t seen_ = 0;
};

/// What the processes tell the test, each on its own account: small enough for a pipe to keep it in one piece.
struct report {
  char what = 0;
  pid_t pid = 0;
  int value = 0;
};

class reports {
 public:
  reports() {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    out_.reset(ends[0]);
    in_.reset(ends[1]);
  }
  int in() const { return in_.get(); }

  static void tell(int in, char what, int value = 0) {
    const report r{what, ::getpid(), value};
    static_cast<void>(!::write(in, &r, sizeof r));
  }

  /// The next of that kind; what is 0 when none comes.
  report next(char what, std::chrono::milliseconds limit = patience) {
    const auto until = steady::now() + limit;
    while (true) {
      const auto at =
          std::find_if(kept_.begin(), kept_.end(), [&](const report& r) { return r.what == what; });
      if (at != kept_.end()) {
        const report found = *at;
        kept_.erase(at);
        return found;
      }
      report r;
      if (!readable(out_.get(), until) || ::read(out_.get(), &r, sizeof r) != sizeof r) return {};
      kept_.push_back(r);
    }
  }
  /// All of that kind that have come.
  std::vector<report> all(char what) {
    std::vector<report> found;
    while (true) {
      const report r = next(what, 0ms);
      if (r.what == 0) return found;
      found.push_back(r);
    }
  }

 private:
  coax::unique_fd out_;
  coax::unique_fd in_;
  std::vector<report> kept_;
};

/// A listener to pass to a supervisor, and its address once that has it.
class door {
 public:
  door() : listener_(coax::listener::bind("127.0.0.1:0").value()) {
    socklen_t size = sizeof(address_);
    REQUIRE(::getsockname(listener_.native_handle(), reinterpret_cast<sockaddr*>(&address_),
                          &size) == 0);
  }
  coax::listener& listener() { return listener_; }
  /// To be called once the supervisor is forked: only its processes listen from then on.
  void leave() { listener_.close(); }
  const sockaddr* address() const { return reinterpret_cast<const sockaddr*>(&address_); }

  /// True when a connection is refused; one that still comes about is dropped.
  bool refuses() const {
    const coax::unique_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(fd.get(), address(), sizeof(address_)) != 0 && errno == ECONNREFUSED;
  }

 private:
  coax::listener listener_;
  sockaddr_in address_{};
};

/// One connection to the servers of serve.hpp.
class client {
 public:
  explicit client(const door& to) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    REQUIRE(::connect(fd_.get(), to.address(), sizeof(sockaddr_in)) == 0);
    sockaddr_in own{};
    socklen_t size = sizeof(own);
    REQUIRE(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&own), &size) == 0);
    port_ = ntohs(own.sin_port);
  }

  int port() const { return port_; }
  int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

  bool send(std::string_view text) const {
    return ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size());
  }
  /// Up to `size` bytes; fewer where the connection ended, or nothing came.
  std::string receive(std::size_t size) {
    const auto until = steady::now() + patience;
    std::string got(size, '\0');
    std::size_t have = 0;
    while (have < size && readable(fd_.get(), until)) {
      const ssize_t n = ::recv(fd_.get(), got.data() + have, size - have, 0);
      if (n <= 0) break;
      have += static_cast<std::size_t>(n);
    }
    got.resize(have);
    return got;
  }
  /// Which process serves this connection; 0 when it ended, or nobody does.
  pid_t greeting() {
    std::string line;
    for (std::string one; !(one = receive(1)).empty() && one != "\n";) line += one;
    return line.empty() ? 0 : std::atoi(line.c_str());
  }
  /// A message there and back.
  bool echoes(std::string_view eight = "12345678") {
    return send(eight) && receive(eight.size()) == eight;
  }
  bool has_input() const { return readable(fd_.get(), steady::now()); }
  /// True when the connection ends, whatever comes before that.
  bool sees_the_end() {
    const auto until = steady::now() + patience;
    char some[64];
    while (readable(fd_.get(), until)) {
      const ssize_t n = ::recv(fd_.get(), some, sizeof some, 0);
      if (n <= 0) return n == 0 || errno == ECONNRESET;
    }
    return false;
  }

 private:
  coax::unique_fd fd_;
  int port_ = 0;
};

}  // namespace outside
