#include "../io/each_backend.hpp"
#include "../task/death.hpp"
#include "serve.hpp"

#include <pthread.h>
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace outside;
using coax::task;

constexpr int workers = 3;

/// Two processes that serve.
std::unique_ptr<supervisor> serving(coax::backend b, door& in, reports& told) {
  return std::make_unique<supervisor>(b, [&] {
    return coax::prefork(processes(2), serve, std::ref(in.listener()), workers, told.in());
  });
}

/// Has the process blocked SIGTERM, as prefork does before it forks?
bool blocks_sigterm(pid_t pid) {
  std::FILE* file = std::fopen(("/proc/" + std::to_string(pid) + "/status").c_str(), "re");
  unsigned long long blocked = 0;
  char line[256];
  while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr)
    if (std::sscanf(line, "SigBlk: %llx", &blocked) == 1) break;
  if (file != nullptr) std::fclose(file);
  const auto blocks = [blocked](int signal) { return (blocked >> (signal - 1) & 1) != 0; };
  // A new process has all signals blocked for a moment, while its C library sets it up.
  return blocks(SIGTERM) && !blocks(SIGPROF);
}

}  // namespace

TEST_CASE("SIGTERM before the processes are up ends all of them in good order") {
  using step = std::function<bool(supervisor&, reports&)>;
  const std::pair<const char*, step> steps[] = {
      {"prefork has begun",  // blocked it is only until prefork waits for it
       [](supervisor& p, reports&) {
         return comes_true(
             [&] { return blocks_sigterm(p.pid()) || !children_of(p.pid()).empty(); });
       }},
      {"one process is there",
       [](supervisor& p, reports&) {
         return comes_true([&] { return !children_of(p.pid()).empty(); });
       }},
      {"both are there",
       [](supervisor& p, reports&) {
         return comes_true([&] { return children_of(p.pid()).size() == 2; });
       }},
      {"one has started", [](supervisor& p, reports&) { return p.start().number != 0; }},
      {"both have started", [](supervisor& p, reports&) { return p.starts(2).back().number != 0; }},
      {"one serves", [](supervisor&, reports& told) { return told.next('r').what == 'r'; }},
      {"both serve",
       [](supervisor&, reports& told) {
         return told.next('r').what == 'r' && told.next('r').what == 'r';
       }},
  };
  for (const coax::backend b : backends_here()) {
    for (const auto& [name, reached] : steps) {
      INFO("on " << name_of(b) << ", " << name);
      for (int round = 0; round < 3; ++round) {
        door in;
        reports told;
        const auto parent = serving(b, in, told);
        in.leave();
        REQUIRE(reached(*parent, told));
        parent->send(SIGTERM);
        const how_it_ended how = parent->end();
        INFO(parent->words());
        REQUIRE(how.exited_with(0));
        CHECK(parent->count("exit status 0\n") == 2);
        CHECK(in.refuses());
      }
    }
  }
}

TEST_CASE(
    "a stop while a connection is accepted, handed over or in the middle of a message loses none of them") {
  for (const coax::backend b : backends_here()) {
    for (const int signal : {SIGTERM, SIGINT}) {
      for (int accepted = 0; accepted <= 2 * workers; ++accepted) {
        INFO("on " << name_of(b) << ", signal " << signal << " after " << accepted << " accepts");
        door in;
        reports told;
        const auto parent = serving(b, in, told);
        in.leave();
        for (int i = 0; i < 2; ++i) told.next('r');
        std::vector<client> clients;
        for (int i = 0; i < 10; ++i) {
          clients.emplace_back(in);
          CHECK(clients.back().send("half"));
        }
        std::set<int> ports;
        for (int i = 0; i < accepted; ++i) ports.insert(told.next('a').value);
        parent->send(signal);
        for (int i = 0; i < 2; ++i) CHECK(told.next('s').value == signal);
        for (const report& each : told.all('a')) ports.insert(each.value);

        std::size_t served = 0;
        for (client& each : clients) {
          const pid_t by = each.greeting();
          if (by == 0) {  // it has ended: that is told to who was never accepted, or not by us
            CHECK(ports.count(each.port()) == 0);
            continue;
          }
          ++served;
          CHECK(ports.count(each.port()) == 1);
          CHECK(each.send("done"));
          CHECK(each.receive(8) == "halfdone");
          CHECK(each.echoes());
        }
        CHECK(served == ports.size());
        clients.clear();
        CHECK(parent->end().exited_with(0));
      }
    }
  }
}

TEST_CASE("after the stop new connections are refused, while live ones go on") {
  for (const coax::backend b : backends_here()) {
    for (const bool by_std_ref : {true, false}) {
      INFO("on " << name_of(b));
      door in;
      reports told;
      supervisor parent(b, [&] {
        return by_std_ref
                   ? coax::prefork(processes(2), serve, std::ref(in.listener()), workers, told.in())
                   : coax::prefork(processes(2), serve, in.listener(), workers, told.in());
      });
      in.leave();
      for (int i = 0; i < 2; ++i) told.next('r');
      std::vector<client> live;
      for (int i = 0; i < 2 * workers; ++i) live.emplace_back(in);
      for (client& each : live) CHECK(each.greeting() != 0);
      std::vector<client> waiting;  // these nobody has accepted
      for (int i = 0; i < 2; ++i) waiting.emplace_back(in);
      CHECK_FALSE(in.refuses());

      parent.send(SIGTERM);
      CHECK(comes_true([&] { return in.refuses(); }));
      for (client& each : waiting) CHECK(each.sees_the_end());
      for (int round = 0; round < 3; ++round)
        for (client& each : live) CHECK(each.echoes());
      CHECK(in.refuses());
      CHECK(children_of(parent.pid()).size() == 2);
      // With nothing left to do they end, and do not wait for the end of the drain.
      live.clear();
      CHECK(parent.end().exited_with(0));
    }
  }
}

TEST_CASE("a signal to the whole group counts once") {
  for (const coax::backend b : backends_here()) {
    for (const int signal : {SIGINT, SIGTERM}) {
      INFO("on " << name_of(b) << ", signal " << signal);
      door in;
      reports told;
      const auto parent = serving(b, in, told);
      in.leave();
      for (int i = 0; i < 2; ++i) told.next('r');
      std::vector<client> live;
      for (int i = 0; i < 2 * workers; ++i) live.emplace_back(in);
      for (client& each : live) CHECK(each.greeting() != 0);
      parent->send_to_group(signal);
      for (int i = 0; i < 2; ++i) CHECK(told.next('s').value == signal);
      CHECK(comes_true([&] { return in.refuses(); }));  // so the parent has passed its own on
      for (int round = 0; round < 3; ++round)
        for (client& each : live) CHECK(each.echoes());
      live.clear();
      CHECK(parent->end().exited_with(0));
      CHECK(told.all('x').empty());
      CHECK(parent->count("starting it again") == 0);
    }
  }
}

TEST_CASE("a signal to the whole group is no reason to start anybody again") {
  const auto waits = [](int tell) -> task<> {
    auto stopped = coax::signals({SIGINT, SIGTERM});
    reports::tell(tell, 'r');
    const int number = co_await std::move(stopped);
    static_cast<void>(number);
  };
  for (const coax::backend b : backends_here()) {
    for (int round = 0; round < 8; ++round) {
      reports told;
      supervisor parent(b, [&] { return coax::prefork(processes(4), waits, told.in()); });
      for (int i = 0; i < 4; ++i) told.next('r');
      // Held up, it finds its own signal and the ends of all its children at once.
      if (round % 2 == 0) parent.send(SIGSTOP);
      parent.send_to_group(round < 4 ? SIGINT : SIGTERM);
      if (round % 2 == 0) {
        CHECK(comes_true([&] {
          int ended = 0;
          for (const process_entry& e : children_of(parent.pid())) ended += e.state == 'Z' ? 1 : 0;
          return ended == 4;
        }));
        parent.send(SIGCONT);
      }
      CHECK(parent.end().exited_with(0));
      INFO(parent.words());
      CHECK(parent.count("starting it again") == 0);
      CHECK(parent.count("ended: exit status 0\n") == 4);
    }
  }
}

TEST_CASE("a stop that is there before prefork begins is a reason to start nobody") {
  const auto tells = [](int tell) -> task<> {
    reports::tell(tell, 'r');
    auto stopped = coax::signals({SIGINT, SIGTERM});
    const int number = co_await std::move(stopped);
    static_cast<void>(number);
  };
  for (const coax::backend b : backends_here()) {
    for (const int signal : {SIGTERM, SIGINT}) {
      INFO("on " << name_of(b) << ", signal " << signal);
      reports told;
      supervisor parent(b, [&] {
        sigset_t held;
        sigemptyset(&held);
        sigaddset(&held, signal);
        ::pthread_sigmask(SIG_BLOCK, &held, nullptr);
        ::kill(::getpid(), signal);
        return coax::prefork(processes(2), tells, told.in());
      });
      CHECK(parent.end().exited_with(0));
      INFO(parent.words());
      CHECK(told.all('r').empty());
      CHECK(parent.count("started") == 0);
    }
  }
}

TEST_CASE("a stop that comes when nobody runs any more is answered by the end") {
  const ending child = ending_of([] {
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &stop, nullptr);
    ::raise(SIGTERM);  // so that nobody is started
    int status = 1;
    {
      const auto never_begins = [](int, const sigset_t&) { return 1; };
      coax::detail::supervisor parent(1, 1h);
      status = parent.run(never_begins, [] { ::raise(SIGTERM); });
    }
    ::pthread_sigmask(SIG_UNBLOCK, &stop, nullptr);
    ::_exit(status);
  });
  CHECK(child.was_orderly());
}

TEST_CASE("a second signal ends everything at once") {
  for (const coax::backend b : backends_here()) {
    for (const int second : {SIGTERM, SIGINT}) {
      reports told;
      supervisor parent(b, [&] { return coax::prefork(processes(2), never_stops, told.in()); });
      for (int i = 0; i < 2; ++i) told.next('r');
      parent.send(SIGTERM);
      for (int i = 0; i < 2; ++i) CHECK(told.next('s').value == SIGTERM);
      parent.send(second);
      CHECK(parent.end().exited_with(1));
      CHECK(parent.count(" is killed: a second signal came\n") == 2);
      CHECK(parent.count("ended: killed by signal 9\n") == 2);
    }
  }
}

TEST_CASE("who is stuck past the drain is killed, and the status tells") {
  for (const coax::backend b : backends_here()) {
    door in;
    reports told;
    const auto one_is_stuck = [](coax::listener& from, int tell, int odd) -> task<> {
      // Whichever process takes the first turn.
      char turn = 0;
      if (::read(odd, &turn, 1) == 1 && turn == 's') {
        co_await never_stops(tell);
      } else {
        co_await serve(from, 1, tell);
      }
    };
    int turns[2];
    REQUIRE(::pipe2(turns, O_CLOEXEC) == 0);
    const coax::unique_fd turn_out(turns[0]);
    const coax::unique_fd turn_in(turns[1]);
    REQUIRE(::write(turn_in.get(), "so", 2) == 2);
    supervisor parent(b, [&] {
      coax::prefork_options o = processes(2);
      o.drain = 300ms;
      return coax::prefork(o, one_is_stuck, std::ref(in.listener()), told.in(), turn_out.get());
    });
    for (int i = 0; i < 2; ++i) told.next('r');
    const auto stopped_at = steady::now();
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(1));
    CHECK(steady::now() - stopped_at >= 300ms);
    INFO(parent.words());
    CHECK(parent.count("ended: exit status 0\n") == 1);
    CHECK(parent.count(" is killed: it has not ended in time\n") == 1);
    CHECK(parent.count("ended: killed by signal 9\n") == 1);
  }
}

TEST_CASE("no time to drain, and no end of it, are both respected") {
  const auto stop_of = [](coax::timeout drain, bool second) {
    reports told;
    supervisor parent(coax::backend::epoll, [&] {
      coax::prefork_options o = processes(1);
      o.drain = drain;
      return coax::prefork(o, never_stops, told.in());
    });
    told.next('r');
    parent.send(SIGTERM);
    if (second) {
      told.next('s');
      CHECK(children_of(parent.pid()).size() == 1);
      parent.send(SIGTERM);
    }
    return parent.end();
  };
  CHECK(stop_of(0s, false).exited_with(1));
  CHECK(stop_of(-1h, false).exited_with(1));
  CHECK(stop_of(std::chrono::hours(24 * 365 * 300), true).exited_with(1));  // overflows nanoseconds
}

TEST_CASE("the processes of a parent that is killed finish what they have begun, and end") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // the orphans are ours then, to wait for
    door in;
    reports told;
    const auto parent = serving(b, in, told);
    in.leave();
    const auto up = parent->starts(2);
    for (int i = 0; i < 2; ++i) told.next('r');
    std::vector<client> live;
    for (int i = 0; i < 2 * workers; ++i) live.emplace_back(in);
    for (client& each : live) CHECK(each.greeting() != 0);
    CHECK(live[0].send("half"));
    parent->send(SIGKILL);
    CHECK(parent->end().signal == SIGKILL);
    for (int i = 0; i < 2; ++i) CHECK(told.next('s').value == SIGTERM);
    CHECK(comes_true([&] { return in.refuses(); }));
    CHECK(live[0].send("half"));
    CHECK(live[0].receive(8) == "halfhalf");
    for (client& each : live) CHECK(each.echoes());
    live.clear();
    for (const started& each : up) CHECK(end_of(each.pid).exited_with(0));
    ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  }
}

TEST_CASE("a parent that is killed at any time leaves no process behind") {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  const auto never_asks = []() -> task<> { co_await coax::sleep_for(1h); };
  for (const coax::backend b : backends_here()) {
    for (int round = 0; round < 8; ++round) {
      supervisor parent(b, [&] { return coax::prefork(processes(8), never_asks); });
      // While it is still forking, for the most part.
      CHECK(comes_true([&] { return static_cast<int>(children_of(parent.pid()).size()) > round; }));
      parent.send(SIGKILL);
      CHECK(parent.end().signal == SIGKILL);
      const auto gone = [] {
        while (::waitpid(-1, nullptr, WNOHANG) > 0) {
        }
        return errno == ECHILD;
      };
      CHECK(comes_true(gone));
    }
  }
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST_CASE("a process whose parent was killed before it could ask to be told does not begin") {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    const auto begins = [in = told.in()]() -> task<> {
      reports::tell(in, 'b');
      co_return;
    };
    supervisor parent(b, [&] {
      ::pthread_atfork(nullptr, nullptr, [] {
        const pid_t parent_here = ::getppid();
        ::kill(parent_here, SIGKILL);
        while (::getppid() == parent_here) ::sched_yield();
      });
      return coax::prefork(processes(1), begins);
    });
    CHECK(parent.end().signal == SIGKILL);
    int how = 0;
    CHECK(comes_true([&] { return ::waitpid(-1, &how, WNOHANG) > 0; }));
    CHECK((WIFEXITED(how) && WEXITSTATUS(how) == 1));
    CHECK(told.all('b').empty());
  }
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}
