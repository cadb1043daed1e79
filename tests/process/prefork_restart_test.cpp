#include <coax/io/thread_sanitizer.hpp>

#include "../io/each_backend.hpp"
#include "../task/manual_loop.hpp"
#include "serve.hpp"

#include <fcntl.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace {

using namespace outside;
using coax::task;
using coax::detail::supervised;

/// Waits for its signal, and no more.
task<> waits(int tell) {
  auto stopped = coax::signals({SIGINT, SIGTERM});
  reports::tell(tell, 'r');
  const int number = co_await std::move(stopped);
  static_cast<void>(number);
}

/// Tells when it starts, in milliseconds since `began`, and ends.
task<> dies_young(int tell, steady::time_point began) {
  auto stopped = coax::signals({SIGTERM});
  const auto at = std::chrono::floor<std::chrono::milliseconds>(steady::now() - began);
  reports::tell(tell, 'r', static_cast<int>(at.count()));
  co_return;
}

std::string pid_in_words(pid_t pid) { return "(pid " + std::to_string(pid) + ")"; }

}  // namespace

TEST_CASE(
    "a process that had settled is started again at once, one that keeps dying young ever later") {
  manual_loop time;
  time.inside([&] {
    supervised one;
    CHECK_FALSE(one.runs());
    CHECK(one.start_due() <= coax::now());
    const auto life = [&](coax::timeout length) {
      one.started(4711);
      CHECK(one.runs());
      CHECK(one.pid() == 4711);
      time.advance(length);
      const coax::clock::duration pause = one.ended();
      CHECK_FALSE(one.runs());
      CHECK(one.start_due() == coax::now() + pause);
      time.advance(pause);
      return pause;
    };
    for (const coax::clock::duration long_life :
         {coax::clock::duration(1s), coax::clock::duration(24h)}) {
      CHECK(life(0s) == 0s);  // the first is forgiven
      coax::clock::duration pause = 100ms;
      for (int i = 0; i < 9; ++i, pause *= 2) CHECK(life(i % 2 == 0 ? 0ms : 999ms) == pause);
      for (int i = 0; i < 100; ++i) CHECK(life(999ms) == 30s);
      CHECK(life(long_life) == 0s);
      for (int i = 0; i < 10; ++i) CHECK(life(1s) == 0s);
    }
  });
}

TEST_CASE(
    "a process that is killed is started again at once, and the connections of the other live on") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    door in;
    reports told;
    supervisor parent(b, [&] {
      return coax::prefork(processes(2), serve, std::ref(in.listener()), 3, told.in());
    });
    in.leave();
    const auto up = parent.starts(2);
    for (int i = 0; i < 2; ++i) told.next('r');
    std::vector<client> of_killed;
    std::vector<client> of_other;
    for (int i = 0; i < 6; ++i) {
      client next(in);
      (next.greeting() == up[0].pid ? of_killed : of_other).push_back(std::move(next));
    }
    REQUIRE(of_killed.size() == 3);
    REQUIRE(of_other.size() == 3);
    CHECK(of_other[0].send("half"));

    ::kill(up[0].pid, SIGKILL);
    for (client& each : of_killed) CHECK(each.sees_the_end());
    const started again = parent.start();
    CHECK(again.number == up[0].number);
    CHECK(again.pid != up[0].pid);
    CHECK(again.pid != up[1].pid);
    CHECK(again.backend == name_of(b));
    CHECK(told.next('r').pid == again.pid);
    client served(in);
    CHECK(served.greeting() == again.pid);
    CHECK(parent.count(pid_in_words(up[0].pid) +
                       " ended: killed by signal 9; starting it again\n") == 1);

    CHECK(served.echoes());
    CHECK(of_other[0].send("half"));
    CHECK(of_other[0].receive(8) == "halfhalf");
    for (client& each : of_other) CHECK(each.echoes());

    of_killed.clear();
    of_other.clear();
    served.close();
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("connections that nobody accepted outlive the process, and are served by the next") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    door in;
    reports told;
    supervisor parent(b, [&] {
      return coax::prefork(processes(1), serve, std::ref(in.listener()), 3, told.in());
    });
    in.leave();
    const pid_t first = told.next('r').pid;
    std::vector<client> served;
    std::vector<client> waiting;
    for (int i = 0; i < 3; ++i) served.emplace_back(in);
    for (client& each : served) CHECK(each.greeting() == first);
    for (int i = 0; i < 3; ++i) waiting.emplace_back(in);
    ::kill(first, SIGKILL);
    for (client& each : served) CHECK(each.sees_the_end());
    const pid_t second = told.next('r').pid;
    CHECK(second != first);
    for (client& each : waiting) CHECK(each.greeting() == second);
    for (client& each : waiting) CHECK(each.echoes());
  }
}

TEST_CASE("a process that keeps dying young is started later and later") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&, began = steady::now()] {
      return coax::prefork(processes(1), dies_young, told.in(), began);
    });
    int last = 0;
    for (const int pause : {0, 0, 100, 200, 400, 800}) {
      const report start = told.next('r');
      REQUIRE(start.what == 'r');
      CHECK(start.value - last >= pause);
      last = start.value;
    }
    for (const char* const pause :
         {"0; starting it again", "0; starting it again in 100 ms",
          "0; starting it again in 200 ms", "0; starting it again in 400 ms",
          "0; starting it again in 800 ms", "0; starting it again in 1600 ms"}) {
      const std::string line = parent.line(" ended: ");
      CHECK(line.substr(std::min(line.size(), line.find("status ") + 7)) == pause);
    }
    // Nothing runs now: the end does not wait for the next start.
    const auto stopped_at = steady::now();
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
    CHECK(steady::now() - stopped_at < 1400ms);
    CHECK(parent.count(" started: ") == 6);
  }
}

TEST_CASE("one that keeps dying does not keep the others from being started again at once") {
  reports told;
  supervisor parent(coax::backend::epoll,
                    [&] { return coax::prefork(processes(2), waits, told.in()); });
  auto up = parent.starts(2);
  const int unlucky = up[0].number;
  started other = up[1];
  ::kill(up[0].pid, SIGKILL);
  for (int deaths = 1; deaths < 4; ++deaths) {
    const started again = parent.start();
    CHECK(again.number == unlucky);
    ::kill(again.pid, SIGKILL);
  }
  CHECK_FALSE(parent.line("starting it again in 400 ms").empty());
  ::kill(other.pid, SIGKILL);
  other = parent.start();
  CHECK(other.number != unlucky);  // before the one that has 400 ms to wait
  CHECK(parent.start().number == unlucky);
}

TEST_CASE("a thousand kills leave no zombie") {
  // More processes rather than more kills of each, which would have to wait out its pauses.
  constexpr int width = 128;
  const int rounds = static_cast<int>(8 / backends_here().size());
  int kills = 0;
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    for (int round = 0; round < rounds / 4; ++round) {
      reports told;
      supervisor parent(b, [&] { return coax::prefork(processes(width), waits, told.in()); });
      std::map<int, int> starts;
      std::map<int, pid_t> last;
      std::size_t most = 0;
      // Each is killed four times, as soon as it has reported its start.
      for (int i = 0; i < 5 * width; ++i) {
        const started one = parent.start();
        REQUIRE(one.number != 0);
        CHECK(last[one.number] != one.pid);
        last[one.number] = one.pid;
        if (++starts[one.number] == 5) continue;
        ::kill(one.pid, SIGKILL);
        ++kills;
        if (i % 32 == 0) most = std::max(most, children_of(parent.pid()).size());
      }
      CHECK(starts.size() == width);
      CHECK(most <= width);
      for (int i = 0; i < 5 * width; ++i) told.next('r', 0ms);
      const auto left = children_of(parent.pid());
      CHECK(left.size() == width);
      CHECK(std::none_of(left.begin(), left.end(),
                         [](const process_entry& e) { return e.state == 'Z'; }));
      parent.send(SIGTERM);
      CHECK(parent.end().exited_with(0));
      CHECK(parent.count(" ended: killed by signal 9") == 4 * width);
      CHECK(parent.count(" ended: exit status 0\n") == width);
    }
  }
  CHECK(kills >= 1000);
}

TEST_CASE("a parent whose lines nobody reads any more goes on") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] {
      int ends[2];
      if (::pipe(ends) != 0) return 99;
      ::close(ends[0]);
      ::dup2(ends[1], STDERR_FILENO);
      return coax::prefork(processes(1), waits, told.in());
    });
    const report first = told.next('r');
    REQUIRE(first.pid != 0);
    ::kill(first.pid, SIGKILL);
    const report second = told.next('r');
    CHECK(second.pid != 0);
    CHECK(second.pid != first.pid);
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("nor does one wait for room for its lines") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const coax::unique_fd nobody_reads(ends[0]);
    const coax::unique_fd full(ends[1]);
    ::fcntl(full.get(), F_SETFL, O_NONBLOCK);
    while (::write(full.get(), "x", 1) == 1) {
    }
    ::fcntl(full.get(), F_SETFL, 0);
    supervisor parent(b, [&] {
      ::dup2(full.get(), STDERR_FILENO);
      return coax::prefork(processes(1), waits, told.in());
    });
    const report first = told.next('r');
    REQUIRE(first.pid != 0);
    ::kill(first.pid, SIGKILL);
    const report second = told.next('r');
    CHECK(second.pid != 0);
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

// ThreadSanitizer puts off what a signal handler does.
#if !defined(COAX_THREAD_SANITIZER)
namespace {

/// As careless code beside `prefork` does. Tells 'h' before.
void wait_for_any_at_sigusr1(int tell) {
  static int told_in = -1;
  told_in = tell;
  std::signal(SIGUSR1, [](int) {
    reports::tell(told_in, 'h');
    ::waitpid(-1, nullptr, 0);
  });
}

}  // namespace

TEST_CASE("a process that somebody else has waited for is started again") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] {
      wait_for_any_at_sigusr1(told.in());
      return coax::prefork(processes(1), waits, told.in());
    });
    const report first = told.next('r');
    REQUIRE(first.pid != 0);
    parent.send(SIGUSR1);
    REQUIRE(told.next('h').pid == parent.pid());
    ::kill(first.pid, SIGKILL);
    const report second = told.next('r');
    CHECK(second.pid != 0);
    CHECK(parent.line("somebody else has waited for it") != "");
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("a process that somebody else has waited for after the stop counts as failed") {
  const auto takes_its_time = [](int tell) -> task<> {
    auto stopped = coax::signals({SIGTERM});
    reports::tell(tell, 'r');
    co_await std::move(stopped);
    reports::tell(tell, 's');
    co_await coax::sleep_for(1h);
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] {
      wait_for_any_at_sigusr1(told.in());
      return coax::prefork(processes(1), takes_its_time, told.in());
    });
    const report first = told.next('r');
    REQUIRE(first.pid != 0);
    parent.send(SIGTERM);
    REQUIRE(told.next('s').pid == first.pid);
    parent.send(SIGUSR1);
    REQUIRE(told.next('h').pid == parent.pid());
    ::kill(first.pid, SIGKILL);
    CHECK(parent.end().exited_with(1));
  }
}
#endif

TEST_CASE("a process that fails with a multiple of 256 has failed all the same") {
  supervisor parent(coax::backend::epoll, [] {
    return coax::prefork(processes(1), []() -> task<int> { co_return 512; });
  });
  CHECK(parent.line("ended: ").find("exit status 1;") != std::string::npos);
}
