#include <coax/io/fd.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/process/run.hpp>
#include <coax/process/signals.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../io/each_backend.hpp"
#include "../task/death.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

// What run sets up before its task, from which wishes, and what it leaves as it found it.

namespace {

using coax::task;

/// Sets or removes COAX_BACKEND for one test.
class environment {
 public:
  explicit environment(const char* backend) {
    if (const char* now = std::getenv(name)) before_ = now;
    if (backend != nullptr)
      ::setenv(name, backend, 1);
    else
      ::unsetenv(name);
  }
  environment(const environment&) = delete;
  environment& operator=(const environment&) = delete;
  ~environment() {
    if (before_)
      ::setenv(name, before_->c_str(), 1);
    else
      ::unsetenv(name);
  }

 private:
  static constexpr const char* name = "COAX_BACKEND";
  std::optional<std::string> before_;
};

task<std::string> backend_used() { co_return std::string(coax::reactor::current().backend()); }

task<int> answer() {
  co_await coax::yield();
  co_return 42;
}

/// What run refuses to begin with.
std::string why_not() {
  try {
    coax::run(answer);
  } catch (const std::invalid_argument& refused) {
    return refused.what();
  }
  return "";
}

sigset_t mask_now() {
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
  return now;
}

bool same(const sigset_t& a, const sigset_t& b) {
  for (int number = 1; number < NSIG; ++number)
    if (sigismember(&a, number) != sigismember(&b, number)) return false;
  return true;
}

}  // namespace

TEST_CASE("options choose the backend") {
  const environment none(nullptr);
  for (const coax::backend b : backends_here()) {
    coax::options o;
    o.backend = b;
    CHECK(coax::run(o, backend_used) == name_of(b));
  }
  const std::string by_default = coax::run(backend_used);
  CHECK(by_default == name_of(backends_here().back()));
}

TEST_CASE("COAX_BACKEND overrules the options") {
  for (const coax::backend b : backends_here()) {
    const environment says(name_of(b));
    for (const coax::backend other :
         {coax::backend::automatic, coax::backend::epoll, coax::backend::io_uring}) {
      coax::options o;
      o.backend = other;
      CHECK(coax::run(o, backend_used) == name_of(b));
    }
    CHECK(coax::run(backend_used) == name_of(b));
  }
  const environment empty("");  // as good as none
  CHECK(coax::run(backend_used) == name_of(backends_here().back()));
}

TEST_CASE("what run cannot set up is an error that names what is wrong") {
  for (const char* unknown : {"kqueue", "EPOLL", "epoll ", "automatic"}) {
    const environment says(unknown);
    CHECK(why_not().find('"' + std::string(unknown) + '"') != std::string::npos);
    CHECK(why_not().find("COAX_BACKEND") != std::string::npos);
  }
  const environment none(nullptr);
  coax::options o;
  o.ring_entries = 0;
  CHECK_THROWS_AS(coax::run(o, answer), std::invalid_argument);
  CHECK(coax::run(answer) == 42);
}

TEST_CASE("writing to a pipe nobody reads is an error under run, not the end") {
  const ending how = ending_of([] {
    std::signal(SIGPIPE, SIG_DFL);
    for (const coax::backend b : backends_here()) {
      coax::options o;
      o.backend = b;
      const auto write_to_nobody = []() -> task<std::error_code> {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) co_return std::error_code();
        ::close(ends[0]);
        const coax::unique_fd in(ends[1]);
        auto sent = co_await coax::write(in.get(), "x");
        co_return sent.error();
      };
      if (coax::run(o, write_to_nobody) != std::errc::broken_pipe) ::_exit(2);
    }
  });
  INFO(how.words);
  CHECK(how.was_orderly());
}

TEST_CASE("run ignores SIGPIPE only where it had the default") {
  const auto handler_of = [](auto set) {
    return ending_of([&] {
      struct sigaction before{};
      set();
      ::sigaction(SIGPIPE, nullptr, &before);
      coax::run(answer);
      struct sigaction after{};
      ::sigaction(SIGPIPE, nullptr, &after);
      const bool had_default = before.sa_handler == SIG_DFL;
      ::_exit(after.sa_handler == (had_default ? SIG_IGN : before.sa_handler) &&
                      after.sa_flags == (had_default ? after.sa_flags : before.sa_flags)
                  ? 0
                  : 1);
    });
  };
  CHECK(handler_of([] { std::signal(SIGPIPE, SIG_DFL); }).was_orderly());
  CHECK(handler_of([] { std::signal(SIGPIPE, SIG_IGN); }).was_orderly());
  CHECK(handler_of([] { std::signal(SIGPIPE, [](int) {}); }).was_orderly());
  CHECK(handler_of([] {
          struct sigaction action{};
          action.sa_flags = SA_SIGINFO;
          action.sa_sigaction = [](int, siginfo_t*, void*) {};
          ::sigaction(SIGPIPE, &action, nullptr);
        }).was_orderly());
}

TEST_CASE("run gives back the signal mask it found") {
  const sigset_t before = mask_now();
  sigset_t blocked = before;
  sigaddset(&blocked, SIGUSR2);
  ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  const auto changes_it = []() -> task<> {
    sigset_t more;
    sigemptyset(&more);
    sigaddset(&more, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &more, nullptr);
    co_return;
  };
  coax::run(changes_it);
  CHECK(same(mask_now(), blocked));
  const auto fails = []() -> task<> {
    sigset_t none;
    sigemptyset(&none);
    ::pthread_sigmask(SIG_SETMASK, &none, nullptr);
    throw std::domain_error("on the way");
    co_return;
  };
  CHECK_THROWS_AS(coax::run(fails), std::domain_error);
  CHECK(same(mask_now(), blocked));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_CASE(
    "neither what coax opens for itself nor a connection takes the place of a standard stream") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending seen = ending_of([b] {
      for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(fd);
      auto from = coax::listener::bind("127.0.0.1:0");
      coax::options o;
      o.backend = b;
      int wrong = from.value().native_handle() > 2 ? 0 : 1;
      coax::run(o, [&]() -> task<> {
        auto none = co_await coax::within(std::chrono::seconds(0), coax::signals({SIGUSR2}));
        static_cast<void>(none);
        auto client = co_await coax::connect(from->local_endpoint().value());
        auto conn = co_await from->accept();
        if (client->native_handle() <= 2 || conn->native_handle() <= 2) ++wrong;
        struct stat null{};
        ::stat("/dev/null", &null);
        for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
          struct stat there{};
          if (::fstat(fd, &there) != 0 || there.st_rdev != null.st_rdev) ++wrong;
        }
      });
      ::_exit(wrong);
    });
    CHECK(seen.was_orderly());
  }
}

TEST_CASE("a backend that is none is refused") {
  const environment none(nullptr);
  coax::options o;
  o.backend = static_cast<coax::backend>(77);
  CHECK_THROWS_WITH(coax::run(o, answer), contains("options::backend is 77"));
}
