#include <coax/net/listener.hpp>
#include <coax/process/signals.hpp>
#include <coax/process/threads.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>

#include "by_environment.hpp"
#include "from_outside.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace outside;
using coax::task;
using idle_workers = coax::worker_stack<coax::stream>;

task<> greet_and_hold(idle_workers& idle, const std::string& name) {
  std::array<std::byte, 8> some;
  while (auto conn = co_await idle.park()) {
    auto told = co_await conn->write(name);
    if (!told) continue;
    while (auto n = co_await conn->read(some)) {
    }
  }
}

task<> accept_when_idle(coax::listener& from, idle_workers& idle, std::atomic<int>& accepted) {
  while (auto worker = co_await idle.reserve()) {
    auto conn = co_await from.accept();
    if (conn) ++accepted;
    worker->hand_off(std::move(conn).value());
  }
}

/// Serves until SIGUSR1, greeting with the number of the thread; each that serves counts itself.
task<> serve_in_thread(coax::listener& from, int workers, std::atomic<int>& serving,
                       std::atomic<int>& accepted) {
  idle_workers idle;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    auto stopped = coax::signals({SIGUSR1});
    const std::string name = std::to_string(++serving) + "\n";
    for (int i = 0; i < workers; ++i) s.spawn(greet_and_hold, std::ref(idle), std::ref(name));
    co_await coax::race(accept_when_idle(from, idle, accepted), std::move(stopped));
    idle.close();
    co_await s.join_within(0ms);
  });
}

/// run_threads in a thread of its own, while this one is the outside; it ends when this object goes.
class threads_that_serve {
 public:
  threads_that_serve(int n, coax::listener& from, int workers)
      : thread_([this, n, &from, workers] {
          coax::run_threads(n, serve_in_thread, std::ref(from), workers, std::ref(serving),
                            std::ref(accepted));
        }) {
    CHECK(comes_true([&] { return serving == n; }));
  }
  threads_that_serve(const threads_that_serve&) = delete;
  threads_that_serve& operator=(const threads_that_serve&) = delete;
  ~threads_that_serve() {
    ::kill(::getpid(), SIGUSR1);
    thread_.join();
  }

  std::atomic<int> serving{0};
  std::atomic<int> accepted{0};

 private:
  std::thread thread_;
};

}  // namespace

TEST_CASE("threads that share a listener accept each connection once") {
  by_environment([](const std::string&) {
    door in;
    int served = 0;
    std::map<pid_t, int> by;
    {
      threads_that_serve threads(4, in.listener(), 8);
      for (int round = 0; round < 10; ++round) {
        std::vector<client> clients;
        for (int i = 0; i < 30; ++i) clients.emplace_back(in);
        for (client& each : clients) ++by[each.greeting()];
        for (const client& each : clients) CHECK_FALSE(each.has_input());  // greeted once
      }
      for (const auto& [name, count] : by) served += name >= 1 && name <= 4 ? count : 0;
      CHECK(threads.accepted == 300);
    }
    CHECK(served == 300);
  });
}

TEST_CASE("a thread that is full strands nobody") {
  by_environment([](const std::string&) {
    door in;
    threads_that_serve threads(2, in.listener(), 3);
    for (int round = 0; round < 5; ++round) {
      std::vector<client> clients;
      for (int i = 0; i < 12; ++i) clients.emplace_back(in);
      // Six at a time: as those go, the six that wait come in. Whoever is served first need not have come first.
      for (int half = 0; half < 2; ++half) {
        std::vector<client> served;
        std::map<pid_t, int> by;
        while (served.size() < 6) {
          std::vector<client>::iterator next;
          REQUIRE(comes_true([&] {
            next = std::find_if(clients.begin(), clients.end(),
                                [](const client& c) { return c.has_input(); });
            return next != clients.end();
          }));
          ++by[next->greeting()];
          served.push_back(std::move(*next));
          clients.erase(next);
        }
        CHECK(by == std::map<pid_t, int>{{1, 3}, {2, 3}});
        CHECK(std::none_of(clients.begin(), clients.end(),
                           [](const client& c) { return c.has_input(); }));
      }
    }
  });
}
