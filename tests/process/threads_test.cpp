#include <coax/io/fd.hpp>
#include <coax/io/thread_sanitizer.hpp>
#include <coax/net/listener.hpp>
#include <coax/process/signals.hpp>
#include <coax/process/threads.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>

#include "by_environment.hpp"
#include "from_outside.hpp"

#include <sys/resource.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using namespace outside;
using coax::task;

/// Counts those that live, across threads.
class counted {
 public:
  explicit counted(std::atomic<int>& living) noexcept : living_(living) { ++living_; }
  counted(const counted&) = delete;
  counted& operator=(const counted&) = delete;
  ~counted() { --living_; }

 private:
  std::atomic<int>& living_;
};

/// Threads that wait until all of them have come this far.
task<> until(const std::atomic<int>& count, int wanted) {
  while (count < wanted) co_await coax::yield();
}

task<> sleeps_for_ever() { co_await coax::sleep_for(1h); }

task<> nothing() { co_return; }

}  // namespace

TEST_CASE("run_threads runs each in a thread and on a reactor of its own") {
  by_environment([](const std::string& backend) {
    for (const int n : {1, 2, 7}) {
      std::mutex mutex;
      std::set<std::thread::id> threads;
      std::set<coax::reactor*> reactors;
      std::atomic<int> here{0};
      int right_backend = 0;
      const auto life = [&]() -> task<> {
        {
          const std::lock_guard lock(mutex);
          threads.insert(std::this_thread::get_id());
          reactors.insert(&coax::reactor::current());
          right_backend += coax::reactor::current().backend() == backend ? 1 : 0;
        }
        ++here;
        co_await until(here, n);  // all at once, or their addresses could be the same
      };
      coax::run_threads(n, life);
      CHECK(threads.size() == static_cast<std::size_t>(n));
      CHECK(reactors.size() == static_cast<std::size_t>(n));
      CHECK(right_backend == n);
      CHECK(threads.count(std::this_thread::get_id()) == 0);
    }
  });
}

TEST_CASE("run_threads shares its arguments, and returns when the last has ended") {
  by_environment([](const std::string&) {
    std::atomic<int> ended{0};
    const auto life = [](std::atomic<int>& turn, const std::unique_ptr<int>& shared,
                         std::atomic<int>& over) -> task<> {
      const int mine = ++turn;
      co_await coax::sleep_for(std::chrono::milliseconds(mine * *shared));
      ++over;
    };
    std::atomic<int> turn{0};
    coax::run_threads(4, life, turn, std::make_unique<int>(2), std::ref(ended));
    CHECK(ended == 4);
  });
}

TEST_CASE("what run_threads cannot do is an error, and runs nothing") {
  for (const int n : {0, -1}) {
    CHECK_THROWS_AS(coax::run_threads(n, nothing), std::invalid_argument);
    CHECK_THROWS_WITH(coax::run_threads(n, nothing), contains(std::to_string(n)));
  }
  by_environment([](const std::string&) {
    std::atomic<int> ran{0};
    const auto runs = [&]() -> task<> {
      ++ran;
      co_return;
    };
    const auto inside = [&]() -> task<> {
      CHECK_THROWS_AS(coax::run_threads(2, runs), std::logic_error);
      co_await coax::yield();
    };
    coax::run(inside);
    coax::run_threads(2, nothing);
    ::setenv("COAX_BACKEND", "kqueue", 1);
    CHECK_THROWS_AS(coax::run_threads(3, runs), std::invalid_argument);
    CHECK(ran == 0);
  });
}

TEST_CASE(
    "an exception in one thread cancels the others, wherever they wait, and is thrown when all have ended") {
  by_environment([](const std::string&) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const coax::unique_fd out(ends[0]);
    const coax::unique_fd in(ends[1]);
    constexpr int kinds = 6;
    for (int round = 0; round < 10; ++round) {
      auto shared = coax::listener::bind("127.0.0.1:0");
      std::atomic<int> turn{0};
      std::atomic<int> living{0};
      const auto life = [&]() -> task<> {
        const counted here(living);
        const int mine = turn++;
        std::array<std::byte, 8> some;
        switch (mine) {
          case 0:
            co_await until(living, kinds);
            for (int i = 0; i < round; ++i) co_await coax::yield();
            throw std::domain_error("of the first");
          case 1:
            co_await coax::sleep_for(1h);
            break;
          case 2: {
            auto n = co_await coax::read(out.get(), some);
            static_cast<void>(n);
            break;
          }
          case 3: {
            auto conn = co_await shared->accept();
            static_cast<void>(conn);
            break;
          }
          case 4: {
            const int number = co_await coax::signals({SIGUSR2});
            static_cast<void>(number);
            break;
          }
          default: {
            co_await coax::with_scope([&](coax::scope& s) -> task<> {
              for (int i = 0; i < 100; ++i) s.spawn(sleeps_for_ever);
              while (true) co_await coax::yield();
            });
          }
        }
      };
      CHECK_THROWS_AS(coax::run_threads(kinds, life), std::domain_error);
      CHECK(living == 0);
      CHECK(turn == kinds);
    }
  });
}

TEST_CASE("a thread that fails before the others have begun cancels them too") {
  by_environment([](const std::string&) {
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> turn{0};
      std::atomic<int> living{0};
      const auto life = [&]() -> task<> {
        const counted here(living);
        if (turn++ == 0) throw std::out_of_range("at once");
        co_await coax::sleep_for(1h);
      };
      CHECK_THROWS_AS(coax::run_threads(6, life), std::out_of_range);
      CHECK(living == 0);
    }
  });
}

TEST_CASE("a call that throws before there is a task is an exception of the thread") {
  by_environment([](const std::string&) {
    std::atomic<int> turn{0};
    const auto waits = []() -> task<> { co_await coax::sleep_for(1h); };
    const auto is_no_coroutine = [&]() -> task<> {
      if (turn++ == 0) throw std::length_error("by the call");
      return waits();
    };
    CHECK_THROWS_AS(coax::run_threads(4, is_no_coroutine), std::length_error);
  });
}

TEST_CASE("of several exceptions one is thrown") {
  by_environment([](const std::string&) {
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> turn{0};
      const auto life = [&]() -> task<> {
        const int mine = turn++;
        co_await until(turn, 4);
        throw std::runtime_error(std::to_string(mine));
      };
      std::string which;
      try {
        coax::run_threads(4, life);
      } catch (const std::runtime_error& e) {
        which = e.what();
      }
      CHECK((which == "0" || which == "1" || which == "2" || which == "3"));
    }
  });
}

TEST_CASE("a thread that has ended well is not disturbed by one that fails later") {
  by_environment([](const std::string&) {
    std::atomic<int> turn{0};
    std::atomic<int> well{0};
    const auto life = [&]() -> task<> {
      if (turn++ > 0) {
        ++well;
        co_return;
      }
      co_await until(well, 3);
      for (int i = 0; i < 100; ++i) co_await coax::yield();
      throw std::domain_error("late");
    };
    CHECK_THROWS_AS(coax::run_threads(4, life), std::domain_error);
    CHECK(well == 3);
  });
}

#if !defined(COAX_THREAD_SANITIZER) && \
    !defined(__SANITIZE_ADDRESS__)  // they need more address space than there is room for
TEST_CASE("when a thread cannot be started, those that were are cancelled") {
  for (const coax::backend b : backends_here()) {
    supervisor process(b, [] {
      // Room for a few stacks, of 8 MiB as a rule.
      unsigned long pages = 0;
      std::FILE* file = std::fopen("/proc/self/statm", "re");
      if (file == nullptr || std::fscanf(file, "%lu", &pages) != 1) return 1;
      std::fclose(file);
      const auto room =
          rlim_t{pages} * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + (rlim_t{256} << 20);
      const rlimit limit{room, room};
      ::setrlimit(RLIMIT_AS, &limit);
      std::atomic<int> living{0};
      const auto life = [&]() -> task<> {
        const counted here(living);
        co_await coax::sleep_for(1h);
      };
      try {
        coax::run_threads(1000, life);
      } catch (const std::system_error&) {
        return living == 0 ? 0 : 2;
      }
      return 3;
    });
    CHECK(process.end().exited_with(0));
    INFO(process.words());
  }
}
#endif
