#include "../io/each_backend.hpp"
#include "serve.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace outside;
using coax::task;

task<int> leaves_with(int value, int tell) {
  reports::tell(tell, 'r');
  co_return value;
}

task<> fails(int tell, bool with_std_exception) {
  auto stopped = coax::signals({SIGTERM});  // only the first life fails
  reports::tell(tell, 'r');
  co_await coax::yield();
  if (with_std_exception) throw std::runtime_error("what went wrong");
  throw 7;
}

/// Which process serves each of these; by pid.
std::map<pid_t, int> served_by(std::vector<client>& clients) {
  std::map<pid_t, int> by;
  for (client& each : clients) ++by[each.greeting()];
  return by;
}

/// Those that have been greeted come first; waits until there are `count`.
std::size_t wait_for_greeted(std::vector<client>& clients, std::size_t count) {
  std::size_t greeted = 0;
  comes_true([&] {
    const auto rest = std::partition(clients.begin(), clients.end(),
                                     [](const client& c) { return c.has_input(); });
    greeted = static_cast<std::size_t>(rest - clients.begin());
    return greeted >= count;
  });
  return greeted;
}

}  // namespace

TEST_CASE(
    "two processes of three workers serve six of twelve clients; each that leaves lets one in") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    door in;
    reports told;
    supervisor parent(b, [&] {
      return coax::prefork(processes(2), serve, std::ref(in.listener()), 3, told.in());
    });
    in.leave();
    INFO(parent.words());
    const auto up = parent.starts(2);
    for (int i = 0; i < 2; ++i) CHECK(told.next('r').what == 'r');

    std::set<int> ports;
    std::vector<client> waiting;
    for (int i = 0; i < 12; ++i) {
      waiting.emplace_back(in);
      ports.insert(waiting.back().port());
    }
    REQUIRE(wait_for_greeted(waiting, 6) == 6);
    struct one {
      client connection;
      pid_t by;
    };
    std::vector<one> live;
    std::map<pid_t, int> by;
    for (int i = 0; i < 6; ++i) {
      const pid_t pid = waiting.front().greeting();
      ++by[pid];
      live.push_back({std::move(waiting.front()), pid});
      waiting.erase(waiting.begin());
    }
    CHECK(by == std::map<pid_t, int>{{up[0].pid, 3}, {up[1].pid, 3}});
    for (one& each : live) CHECK(each.connection.echoes());
    // All workers are busy, and their processes have had the time to accept too much.
    for (const client& each : waiting) CHECK_FALSE(each.has_input());

    // Whichever process it is that has a worker again: alternately one and the other.
    for (int i = 0; i < 6; ++i) {
      const pid_t frees = up[static_cast<std::size_t>(i) % 2].pid;
      const auto leaves =
          std::find_if(live.begin(), live.end(), [&](const one& each) { return each.by == frees; });
      REQUIRE(leaves != live.end());
      live.erase(leaves);
      REQUIRE(wait_for_greeted(waiting, 1) == 1);
      CHECK(waiting.front().greeting() == frees);
      CHECK(waiting.front().echoes());
      live.push_back({std::move(waiting.front()), frees});
      waiting.erase(waiting.begin());
      for (const client& each : waiting) CHECK_FALSE(each.has_input());
    }
    live.clear();

    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
    std::vector<int> accepted;
    for (const report& each : told.all('a')) accepted.push_back(each.value);
    CHECK(accepted.size() == 12);
    CHECK(std::set<int>(accepted.begin(), accepted.end()) == ports);
  }
}

TEST_CASE("a process that is full strands nobody") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    door in;
    reports told;
    supervisor parent(b, [&] {
      return coax::prefork(processes(2), serve, std::ref(in.listener()), 3, told.in());
    });
    in.leave();
    const auto up = parent.starts(2);
    for (std::size_t full = 0; full < 2; ++full) {
      std::vector<client> held;
      std::vector<client> of_the_other;
      while (held.size() < 3) {
        REQUIRE(held.size() + of_the_other.size() < 6);
        client next(in);
        const pid_t by = next.greeting();
        REQUIRE((by == up[0].pid || by == up[1].pid));
        (by == up[full].pid ? held : of_the_other).push_back(std::move(next));
      }
      of_the_other.clear();
      const pid_t free = up[1 - full].pid;
      for (int round = 0; round < 10; ++round) {
        std::vector<client> one_by_one;
        for (int i = 0; i < 3; ++i) {
          one_by_one.emplace_back(in);
          CHECK(one_by_one.back().greeting() == free);
        }
        one_by_one.clear();
        std::vector<client> at_once;
        for (int i = 0; i < 3; ++i) at_once.emplace_back(in);
        CHECK(served_by(at_once) == std::map<pid_t, int>{{free, 3}});
      }
      for (client& each : held) CHECK(each.echoes());
    }
  }
}

TEST_CASE("the start of each process, with its backend, and its end is a line on stderr") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    door in;
    reports told;
    supervisor parent(b, [&] {
      return coax::prefork(processes(3), serve, std::ref(in.listener()), 1, told.in());
    });
    const auto up = parent.starts(3);
    std::set<int> numbers;
    std::set<pid_t> pids;
    for (const started& each : up) {
      numbers.insert(each.number);
      pids.insert(each.pid);
      CHECK(each.backend == name_of(b));
    }
    CHECK(numbers == std::set<int>{1, 2, 3});
    CHECK(pids.size() == 3);
    for (int i = 0; i < 3; ++i) CHECK(pids.count(told.next('r').pid) == 1);
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
    INFO(parent.words());
    for (const started& each : up)
      CHECK(parent.count("coax: process " + std::to_string(each.number) + " (pid " +
                         std::to_string(each.pid) + ") ended: exit status 0\n") == 1);
    CHECK(std::count(parent.words().begin(), parent.words().end(), '\n') == 6);
  }
}

TEST_CASE("a process that ends by itself is started again, whatever its status") {
  for (const coax::backend b : backends_here()) {
    for (const int value : {0, 7}) {
      reports told;
      supervisor parent(b,
                        [&] { return coax::prefork(processes(1), leaves_with, value, told.in()); });
      const pid_t first = told.next('r').pid;
      const pid_t second = told.next('r').pid;
      CHECK(first != 0);
      CHECK(second != 0);
      CHECK(second != first);
      CHECK(parent.line(") ended: exit status " + std::to_string(value) + "; starting it again") ==
            "coax: process 1 (pid " + std::to_string(first) + ") ended: exit status " +
                std::to_string(value) + "; starting it again");
    }
  }
}

TEST_CASE("an exception is told on stderr, and the process started again") {
  for (const coax::backend b : backends_here()) {
    for (const bool with_std_exception : {true, false}) {
      reports told;
      supervisor parent(
          b, [&] { return coax::prefork(processes(1), fails, told.in(), with_std_exception); });
      const report first = told.next('r');
      const std::string it = "coax: process 1 (pid " + std::to_string(first.pid) + ")";
      const char* const why =
          with_std_exception ? "what went wrong" : "an exception that is no std::exception";
      CHECK(parent.line(why) == it + ": " + why);
      CHECK(parent.line(" ended: ") == it + " ended: exit status 1; starting it again");
      CHECK(told.next('r').what == 'r');
    }
  }
}

TEST_CASE("the status is 0 only when every process gave 0 after the stop") {
  const auto gives_after_stop = [](int tell, int odd) -> task<int> {
    auto stopped = coax::signals({SIGINT, SIGTERM});
    reports::tell(tell, 'r');
    const int number = co_await std::move(stopped);
    co_return number == SIGTERM ? odd : 100;
  };
  for (const coax::backend b : backends_here()) {
    for (const int status : {0, 1, 3}) {
      reports told;
      supervisor parent(
          b, [&] { return coax::prefork(processes(2), gives_after_stop, told.in(), status); });
      for (int i = 0; i < 2; ++i) told.next('r');
      parent.send(SIGTERM);
      CHECK(parent.end().exited_with(status == 0 ? 0 : 1));
      CHECK(parent.count(") ended: exit status " + std::to_string(status) + "\n") == 2);
    }
  }
}

TEST_CASE("a stop that comes when the task of a process has ended does not change how that ends") {
  const auto leaves_output = [](int tell) -> task<> {
    auto stopped = coax::signals({SIGTERM});
    reports::tell(tell, 'r');
    co_await std::move(stopped);
    cookie_io_functions_t stops_when_written{};
    stops_when_written.write = [](void*, const char*, std::size_t size) {
      ::kill(::getpid(), SIGTERM);
      return static_cast<ssize_t>(size);
    };
    std::FILE* const out = ::fopencookie(nullptr, "w", stops_when_written);
    std::fputs("x", out);  // written as the process ends
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] { return coax::prefork(processes(1), leaves_output, told.in()); });
    told.next('r');
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("other signals than stops reach a process as often as they come, and use up no stop") {
  const auto hears_two = [](int tell) -> task<> {
    auto stopped = coax::signals({SIGTERM});
    for (int i = 0; i < 2; ++i) {
      auto heard = coax::signals({SIGUSR1});
      reports::tell(tell, 'r');
      co_await std::move(heard);
    }
    reports::tell(tell, 'h');
    co_await std::move(stopped);
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] { return coax::prefork(processes(1), hears_two, told.in()); });
    for (int i = 0; i < 2; ++i) {
      const report each = told.next('r');
      REQUIRE(each.pid != 0);
      ::kill(each.pid, SIGUSR1);
    }
    REQUIRE(told.next('h').pid != 0);
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
  }
}

TEST_CASE("one that failed after the stop counts, though another ends well after it") {
  // Each takes its status from a pipe, so that the test says who ends when.
  const auto gives_what_it_reads = [](int from, int tell) -> task<int> {
    auto stopped = coax::signals({SIGTERM});
    reports::tell(tell, 'r');
    co_await std::move(stopped);
    char status = 100;
    static_cast<void>(!::read(from, &status, 1));
    co_return status;
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const coax::unique_fd from(ends[0]);
    const coax::unique_fd to(ends[1]);
    supervisor parent(
        b, [&] { return coax::prefork(processes(2), gives_what_it_reads, from.get(), told.in()); });
    for (int i = 0; i < 2; ++i) told.next('r');
    parent.send(SIGTERM);
    for (const char* status : {"\1", "\0"}) {
      REQUIRE(::write(to.get(), status, 1) == 1);
      CHECK(!parent.line(") ended: exit status " + std::to_string(*status)).empty());
    }
    CHECK(parent.end().exited_with(1));
  }
}

TEST_CASE("what parent and processes have printed is written, and once") {
  const auto prints = [](int tell) -> task<> {
    auto stopped = coax::signals({SIGTERM});
    std::printf("said by a process ");  // which stays in the buffer
    reports::tell(tell, 'r');
    co_await std::move(stopped);
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    reports told;
    supervisor parent(b, [&] {
      ::dup2(STDERR_FILENO, STDOUT_FILENO);
      std::printf("said by the parent ");
      const int status = coax::prefork(processes(2), prints, told.in());
      std::fflush(stdout);
      return status;
    });
    for (int i = 0; i < 2; ++i) told.next('r');
    parent.send(SIGTERM);
    CHECK(parent.end().exited_with(0));
    INFO(parent.words());
    CHECK(parent.count("said by the parent") == 1);
    CHECK(parent.count("said by a process") == 2);
  }
}

TEST_CASE("how a process has ended is told in words, without a word of its core") {
  constexpr int dumped = 0x80;
  CHECK(coax::detail::end_in_words(SIGSEGV) == "killed by signal 11");
  CHECK(coax::detail::end_in_words(SIGSEGV | dumped) == "killed by signal 11");
  CHECK(coax::detail::end_in_words(3 << 8) == "exit status 3");
}
