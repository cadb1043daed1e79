// libco's example_cond: a producer makes a task every second, and consumers wait for it.
//
//   condition [consumers] [milliseconds]
//
// By default 2 consumers, and a task every 1000 ms. Ctrl-C ends it.

#include <coax/coax.hpp>

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

using namespace std::chrono_literals;

/// All who use it run on one thread and see it whole between two awaits, so it needs no lock.
struct work {
  std::deque<int> tasks;
  coax::condition filled;
};

/// Ends when nobody reads what is printed any more.
coax::task<> produce(work& w, std::chrono::milliseconds pause) {
  for (int task = 0; std::ferror(stdout) == 0; ++task) {
    std::printf("producer: task %d\n", task);
    w.tasks.push_back(task);
    w.filled.notify_one();
    co_await coax::sleep_for(pause);
  }
}

coax::task<> consume(work& w, int me) {
  while (true) {
    while (w.tasks.empty()) {  // who is notified looks again: another may have taken it
      auto notified = co_await coax::within(1500ms, w.filled.wait());
      if (!notified) std::printf("consumer %d: nothing to do for 1.5 s\n", me);
    }
    std::printf("consumer %d: task %d\n", me, w.tasks.front());
    w.tasks.pop_front();
  }
}

coax::task<> until_stopped(int consumers, std::chrono::milliseconds pause) {
  work w;
  auto all = [&](coax::scope& s) -> coax::task<> {
    for (int i = 1; i <= consumers; ++i) s.spawn(consume, std::ref(w), i);
    co_return;
  };
  co_await coax::race(coax::with_scope(all), produce(w, pause), coax::signals({SIGINT, SIGTERM}));
}

int number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value > 0) return value;
  std::fprintf(stderr, "condition: \"%s\" is not a positive number\n", std::string(text).c_str());
  std::exit(2);
}

int main(int argc, char** argv) {
  const auto given = std::span(argv, static_cast<std::size_t>(argc)).subspan(1);
  const int consumers = given.size() > 0 ? number(given[0]) : 2;
  const std::chrono::milliseconds pause(given.size() > 1 ? number(given[1]) : 1000);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a line is seen when it is written
  coax::run(until_stopped, consumers, pause);
  return std::ferror(stdout) != 0;
}
