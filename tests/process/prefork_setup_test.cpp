#include <coax/process/run.hpp>

#include "../io/each_backend.hpp"
#include "serve.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace outside;
using coax::task;

task<> nothing() { co_return; }

bool has_default_action(int number) {
  struct sigaction now{};
  ::sigaction(number, nullptr, &now);
  return now.sa_handler == SIG_DFL;
}

bool is_blocked(int number) {
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
  return sigismember(&now, number) == 1;
}

}  // namespace

TEST_CASE("without a number there is a process for each processor that may be used") {
  for (const bool only_one : {false, true}) {
    cpu_set_t usable;
    REQUIRE(::sched_getaffinity(0, sizeof usable, &usable) == 0);
    const int wanted = only_one ? 1 : CPU_COUNT(&usable);
    reports told;
    supervisor parent(coax::backend::epoll, [&] {
      int kept = 0;
      for (std::size_t cpu = 0; only_one && cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &usable) && ++kept > 1) CPU_CLR(cpu, &usable);
      if (only_one) ::sched_setaffinity(0, sizeof usable, &usable);
      return coax::prefork({}, never_stops, told.in());
    });
    for (int i = 0; i < wanted; ++i) CHECK(told.next('r').what == 'r');
    CHECK(children_of(parent.pid()).size() == static_cast<std::size_t>(wanted));
  }
}

TEST_CASE("what prefork cannot do is an error before there is any process") {
  for (const int negative : {-1, -1000}) {
    CHECK_THROWS_AS(coax::prefork(processes(negative), nothing), std::invalid_argument);
    CHECK_THROWS_WITH(coax::prefork(processes(negative), nothing),
                      contains(std::to_string(negative)));
  }
  const auto inside = []() -> task<> {
    CHECK_THROWS_AS(coax::prefork(processes(1), nothing), std::logic_error);
    co_return;
  };
  coax::run(inside);

  supervisor parent(coax::backend::epoll, [] {
    ::setenv("COAX_BACKEND", "kqueue", 1);
    int errors = 0;
    try {
      coax::prefork(processes(2), nothing);
    } catch (const std::invalid_argument& e) {
      errors += std::string_view(e.what()).find("\"kqueue\"") != std::string_view::npos ? 1 : 0;
    }
    ::unsetenv("COAX_BACKEND");
    coax::prefork_options o = processes(2);
    o.reactor.ring_entries = 0;
    try {
      coax::prefork(o, nothing);
    } catch (const std::invalid_argument&) {
      ++errors;
    }
    const bool no_child = ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD;
    return errors == 2 && no_child && !is_blocked(SIGTERM) ? 0 : 1;
  });
  CHECK(parent.end().exited_with(0));
  CHECK(parent.words().empty());
}

TEST_CASE("prefork leaves other children of its caller alone") {
  for (const coax::backend b : backends_here()) {
    reports told;
    supervisor parent(b, [&] {
      const pid_t early = ::fork();
      if (early == 0) ::_exit(5);
      const pid_t late = ::fork();
      if (late == 0) {
        sigset_t wanted;
        ::sigemptyset(&wanted);
        ::sigaddset(&wanted, SIGUSR1);
        ::sigprocmask(SIG_BLOCK, &wanted, nullptr);
        reports::tell(told.in(), 'o');
        int number = 0;
        ::_exit(::sigwait(&wanted, &number) == 0 ? 6 : 7);
      }
      if (coax::prefork(processes(2), never_stops, told.in()) != 1) return 1;
      int how = 0;
      if (::waitpid(early, &how, 0) != early || WEXITSTATUS(how) != 5) return 2;
      if (::waitpid(late, &how, 0) != late || WEXITSTATUS(how) != 6) return 3;
      return ::waitpid(-1, nullptr, 0) == -1 && errno == ECHILD ? 0 : 4;
    });
    const pid_t late = told.next('o').pid;
    for (int i = 0; i < 2; ++i) told.next('r');
    ::kill(late, SIGUSR1);  // it ends while prefork waits
    CHECK(comes_true([&] {
      const auto all = children_of(parent.pid());
      return std::any_of(all.begin(), all.end(),
                         [&](const process_entry& e) { return e.pid == late && e.state == 'Z'; });
    }));
    parent.send(SIGTERM);
    told.next('s');
    told.next('s');
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("prefork can be called again when it has returned") {
  reports told;
  supervisor parent(coax::backend::epoll, [&] {
    for (int i = 0; i < 2; ++i) {
      door in;
      const int status = coax::prefork(processes(2), serve, in.listener(), 1, told.in());
      if (status != 0 || in.listener().is_open()) return 1;
    }
    return 0;
  });
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 2; ++i) CHECK(told.next('r').what == 'r');
    parent.send(SIGTERM);
    for (int i = 0; i < 2; ++i) CHECK(told.next('s').value == SIGTERM);
  }
  CHECK(parent.end().exited_with(0));
}

TEST_CASE(
    "prefork gives back the signal mask and the disposition of SIGCHLD, and its processes have the caller's") {
  const auto looks = [](int tell) -> task<> {
    struct sigaction now{};
    ::sigaction(SIGCHLD, nullptr, &now);
    reports::tell(tell, 'm',
                  (now.sa_handler == SIG_IGN ? 1 : 0) + (is_blocked(SIGUSR1) ? 2 : 0) +
                      (is_blocked(SIGCHLD) ? 4 : 0));
    auto stopped = coax::signals({SIGTERM});
    reports::tell(tell, 'r');
    const int number = co_await std::move(stopped);
    static_cast<void>(number);
  };
  for (const coax::backend b : backends_here()) {
    reports told;
    supervisor parent(b, [&] {
      std::signal(SIGCHLD, SIG_IGN);
      sigset_t blocked;
      sigemptyset(&blocked);
      sigaddset(&blocked, SIGUSR1);
      ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
      const int status = coax::prefork(processes(2), looks, told.in());
      struct sigaction now{};
      ::sigaction(SIGCHLD, nullptr, &now);
      const bool mask_kept = is_blocked(SIGUSR1) && !is_blocked(SIGCHLD) && !is_blocked(SIGTERM) &&
                             !is_blocked(SIGINT);
      return status * 10 + (now.sa_handler == SIG_IGN ? 0 : 1) + (mask_kept ? 0 : 2);
    });
    for (int i = 0; i < 2; ++i) told.next('r');
    // Ignoring SIGCHLD, the kernel would not say how they ended, nor that they did.
    const pid_t killed = told.next('m').pid;
    ::kill(killed, SIGKILL);
    CHECK(parent.line("killed by signal 9").find(std::to_string(killed)) != std::string::npos);
    CHECK(told.next('r').what == 'r');
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
    for (const report& each : told.all('m')) CHECK(each.value == 3);
  }
}

TEST_CASE("prefork ignores SIGPIPE only where it had the default, and gives that back") {
  const auto waits = [](int tell) -> task<> {
    auto stopped = coax::signals({SIGTERM});
    reports::tell(tell, 'r');
    const int number = co_await std::move(stopped);
    static_cast<void>(number);
  };
  static int told_by_handler;
  for (const coax::backend b : backends_here()) {
    for (const bool handled : {false, true}) {
      INFO("on " << name_of(b) << (handled ? ", with a handler" : ""));
      reports told;
      supervisor parent(b, [&] {
        told_by_handler = told.in();
        const auto handler = [](int) { reports::tell(told_by_handler, 'p'); };
        void (*const before)(int) = handled ? +handler : SIG_DFL;
        std::signal(SIGPIPE, before);
        const int status = coax::prefork(processes(1), waits, told.in());
        struct sigaction now{};
        ::sigaction(SIGPIPE, nullptr, &now);
        return status * 10 + (now.sa_handler == before ? 0 : 1);
      });
      told.next('r');
      // It waits by now: in the middle of its fork(2) ThreadSanitizer does not stand a signal with a handler.
      CHECK(comes_true([&] {
        const auto here = children_of(::getpid());
        return std::any_of(here.begin(), here.end(), [&](const process_entry& each) {
          return each.pid == parent.pid() && each.state == 'S';
        });
      }));
      parent.send(SIGPIPE);
      if (handled) CHECK(told.next('p').what == 'p');
      parent.send(SIGTERM);
      CHECK(parent.end().exited_with(0));
    }
  }
}

TEST_CASE(
    "where nobody waits for the stop signals they have their default action, as the caller had them") {
  const auto looks_later = [](int tell) -> task<> {
    co_await coax::sleep_for(1ms);  // the first wait
    reports::tell(tell, 'm',
                  (is_blocked(SIGTERM) ? 1 : 0) + (is_blocked(SIGINT) ? 2 : 0) +
                      (has_default_action(SIGTERM) ? 4 : 0));
    co_await coax::sleep_for(1h);
  };
  for (const bool held_by_the_caller : {false, true}) {
    reports told;
    supervisor parent(coax::backend::epoll, [&] {
      sigset_t held;
      sigemptyset(&held);
      if (held_by_the_caller) sigaddset(&held, SIGINT);
      ::pthread_sigmask(SIG_BLOCK, &held, nullptr);
      return coax::prefork(processes(1), looks_later, told.in());
    });
    CHECK(told.next('m').value == (held_by_the_caller ? 6 : 4));
    parent.send(SIGTERM);  // its default action: that is no orderly end
    CHECK(parent.end().exited_with(1));
    CHECK(parent.count("ended: killed by signal 15\n") == 1);
  }
}

TEST_CASE(
    "a reactor used before the fork, and one after it, have nothing to do with those of the processes") {
  const auto once_around = []() -> task<int> {
    auto own = coax::listener::bind("127.0.0.1:0");
    auto stopped = coax::signals({SIGUSR2});
    ::kill(::getpid(), SIGUSR2);
    const int number = co_await std::move(stopped);
    co_await coax::sleep_for(1ms);
    co_return number == SIGUSR2&& own ? 0 : 1;
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    door in;
    reports told;
    supervisor parent(b, [&] {
      const int before = coax::run(once_around);
      const auto idle_one = coax::make_reactor();  // it lives on, and is not run
      const int status = coax::prefork(processes(2), serve, std::ref(in.listener()), 3, told.in());
      return before + status + coax::run(once_around);
    });
    in.leave();
    const auto up = parent.starts(2);
    for (int i = 0; i < 2; ++i) told.next('r');
    std::vector<client> clients;
    for (int i = 0; i < 6; ++i) clients.emplace_back(in);
    std::map<pid_t, int> by;
    for (client& each : clients) ++by[each.greeting()];
    CHECK(by == std::map<pid_t, int>{{up[0].pid, 3}, {up[1].pid, 3}});
    for (client& each : clients) CHECK(each.echoes());
    clients.clear();
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("a stop is held until all that can run has run, however many turns that takes") {
  constexpr int late = 500;
  const auto asks_late = [](int tell) -> task<> {
    for (int i = 0; i < late; ++i) co_await coax::yield();
    const int number = co_await coax::signals({SIGTERM});
    reports::tell(tell, 's', number);
  };
  const auto is_told_to_stop_at_once = [&](int tell) -> task<> {
    ::kill(::getpid(), SIGTERM);
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(asks_late, tell);
      co_return;
    });
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(
        b, [&] { return coax::prefork(processes(1), is_told_to_stop_at_once, told.in()); });
    CHECK(told.next('s').value == SIGTERM);
    CHECK(parent.line("ended: exit status 0") != "");
  }
}

TEST_CASE("a process that takes turn after turn, and waits for nothing, can be stopped too") {
  const auto is_busy = [](int tell) -> task<> {
    reports::tell(tell, 'r');
    while (true) co_await coax::yield();
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] { return coax::prefork(processes(1), is_busy, told.in()); });
    told.next('r');
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(1));
    CHECK(parent.count("ended: killed by signal 15\n") == 1);
  }
}
