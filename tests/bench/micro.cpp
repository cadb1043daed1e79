// What coroutines cost by themselves, without a kernel or beside it. One line of JSON: for each
// loop (alone, io_uring, epoll) nanoseconds by name; and allocations a message of an echo.
//
//   micro [seconds]     for each figure; by default 0.1

#include "allocations.hpp"
#include "minimal_task.hpp"

#include "../task/manual_loop.hpp"

#include <coax/coax.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using stopwatch = std::chrono::steady_clock;

namespace {

double seconds_each = 0.1;

// As many as a turn of the loop runs, so that its visit to the kernel is shared by all of them.
constexpr std::size_t together = 256;

/// One figure: rounds of some operations, timed, and the median of nanoseconds an operation.
class figure {
 public:
  bool goes_on() const { return spent_ < seconds_each || rounds_.size() < 5; }

  /// `operations` were done since `begun`.
  void add(stopwatch::time_point begun, std::size_t operations) {
    const std::chrono::duration<double> took = stopwatch::now() - begun;
    spent_ += took.count();
    rounds_.push_back(took.count() * 1e9 / static_cast<double>(operations));
  }

  double median() {
    const auto middle = rounds_.begin() + static_cast<std::ptrdiff_t>(rounds_.size() / 2);
    std::nth_element(rounds_.begin(), middle, rounds_.end());
    return *middle;
  }

 private:
  double spent_ = 0;
  std::vector<double> rounds_;
};

using bench = coax::task<> (*)(figure&);

coax::task<> nothing() { co_return; }

/// A task that is created, run to its end without a wait, and destroyed, by awaiting it.
coax::task<> create_run_destroy(figure& f) {
  constexpr std::size_t times = 10'000;
  while (f.goes_on()) {
    const auto begun = stopwatch::now();
    for (std::size_t i = 0; i < times; ++i) co_await nothing();
    f.add(begun, times);
  }
}

minimal_task least() { co_return; }

/// The least a task can be, not even awaited.
coax::task<> create_run_destroy_least(figure& f) {
  constexpr std::size_t times = 10'000;
  while (f.goes_on()) {
    const auto begun = stopwatch::now();
    for (std::size_t i = 0; i < times; ++i) {
      const minimal_task t = least();
      t.run();
    }
    f.add(begun, times);
  }
  co_return;
}

/// Children that end at once, and the scope that waits for all of them.
coax::task<> spawn_join(figure& f) {
  while (f.goes_on()) {
    const auto begun = stopwatch::now();
    co_await coax::with_scope([](coax::scope& s) -> coax::task<> {
      for (std::size_t i = 0; i < together; ++i) s.spawn(nothing);
      co_return;
    });
    f.add(begun, together);
  }
}

/// `together` tasks at once, each of which does `fn(times)`.
template <class F>
coax::task<> all_together(figure& f, std::size_t times, F fn) {
  while (f.goes_on()) {
    stopwatch::time_point begun;
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      for (std::size_t i = 0; i < together; ++i) s.spawn(fn, times);
      co_await coax::yield();
      begun = stopwatch::now();
    });
    f.add(begun, together * times);
  }
}

coax::task<> yield_often(std::size_t times) {
  for (std::size_t i = 0; i < times; ++i) co_await coax::yield();
}
coax::task<> yield(figure& f) { co_await all_together(f, 100, yield_often); }

/// An acceptor reserves and hands over, workers park: what a connection goes through.
coax::task<> work(coax::worker_stack<int>& idle) {
  while (auto item = co_await idle.park()) static_cast<void>(*item);
}
coax::task<> hand_off(figure& f) {
  coax::worker_stack<int> idle;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < 64; ++i) s.spawn(work, std::ref(idle));
    constexpr int times = 10'000;
    while (f.goes_on()) {
      const auto begun = stopwatch::now();
      for (int i = 0; i < times; ++i) {
        auto worker = co_await idle.reserve();
        worker->hand_off(i);
      }
      f.add(begun, times);
    }
    idle.close();
  });
}

class dud final : public coax::timer {
  void expired() noexcept override {}
};

/// A timer set and dropped among 10,000 others, as nearly all timeouts are.
coax::task<> timer_set_cancel(figure& f) {
  coax::timers& all = coax::loop::current().deadlines();
  const coax::clock::time_point now = coax::now();
  std::vector<dud> others(10'000);
  for (std::size_t i = 0; i < others.size(); ++i)
    all.set(others[i], now + 1h + std::chrono::microseconds(i * 997));
  dud one;
  constexpr int times = 10'000;
  while (f.goes_on()) {
    const auto begun = stopwatch::now();
    for (int i = 0; i < times; ++i) {
      all.set(one, now + 60s + std::chrono::microseconds(i));
      all.drop(one);
    }
    f.add(begun, times);
  }
  for (dud& other : others) all.drop(other);
  co_return;
}

/// Wakes everybody who waits for `tick`, turn after turn.
coax::task<> drive(coax::event& tick, const bool& stop) {
  while (!stop) {
    tick.set();
    tick.reset();
    co_await coax::yield();
  }
}

/// Tasks that wait for an event which comes at the next turn.
template <class Wait>
coax::task<> wait_often(coax::event& tick, std::size_t times, Wait wait) {
  for (std::size_t i = 0; i < times; ++i) static_cast<void>(co_await wait(tick));
}
template <class Wait>
coax::task<> waits(figure& f, Wait wait) {
  constexpr std::size_t times = 100;
  while (f.goes_on()) {
    coax::event tick;
    bool stop = false;
    stopwatch::time_point begun;
    co_await coax::with_scope([&](coax::scope& driver) -> coax::task<> {
      driver.spawn(drive, std::ref(tick), std::cref(stop));
      co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
        for (std::size_t i = 0; i < together; ++i)
          s.spawn(wait_often<Wait>, std::ref(tick), times, wait);
        begun = stopwatch::now();
        co_return;
      });
      stop = true;
    });
    f.add(begun, together * times);
  }
}

/// The same wait alone and under a deadline: the difference is what `within` costs.
coax::task<> event_wait(figure& f) {
  co_await waits(f, [](coax::event& e) { return e.wait(); });
}
coax::task<> event_wait_within(figure& f) {
  co_await waits(f, [](coax::event& e) { return coax::within(60s, e.wait()); });
}

coax::task<> send_often(coax::channel<int>& to, int times) {
  for (int i = 0; i < times; ++i) {
    auto sent = co_await to.send(i);
    if (!sent) co_return;
  }
}
/// An item sent and received, through a channel that holds 64.
coax::task<> channel_item(figure& f) {
  constexpr int times = 10'000;
  while (f.goes_on()) {
    coax::channel<int> items(64);
    const auto begun = stopwatch::now();
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.spawn(send_often, std::ref(items), times);
      for (int i = 0; i < times; ++i) {
        auto item = co_await items.receive();
        if (!item) break;
      }
    });
    f.add(begun, times);
  }
}

/// Locked and unlocked, with nobody else there.
coax::task<> mutex_lock(figure& f) {
  coax::mutex m;
  constexpr int times = 10'000;
  while (f.goes_on()) {
    const auto begun = stopwatch::now();
    for (int i = 0; i < times; ++i) {
      auto guard = co_await m.lock();
      static_cast<void>(guard);
    }
    f.add(begun, times);
  }
}

constexpr std::pair<const char*, bench> benches[] = {
    {"create_run_destroy", create_run_destroy},
    {"create_run_destroy_least", create_run_destroy_least},
    {"spawn_join", spawn_join},
    {"yield", yield},
    {"hand_off", hand_off},
    {"channel", channel_item},
    {"mutex", mutex_lock},
    {"timer_set_cancel", timer_set_cancel},
    {"event_wait", event_wait},
    {"event_wait_within", event_wait_within},
};

// --- allocations a message ---

using echo = coax::task<> (*)(coax::stream);

coax::task<> echo_by_read(coax::stream conn) {
  std::array<std::byte, 1024> buf;
  while (auto n = co_await coax::within(60s, conn.read(buf))) {
    auto sent = co_await coax::within(60s, conn.write(std::span(buf).first(*n)));
    if (!sent) break;
  }
}

coax::task<> echo_by_receive(coax::stream conn) {
  while (auto data = co_await coax::within(60s, conn.receive())) {
    auto sent = co_await coax::within(60s, conn.write(data->bytes()));
    if (!sent) break;
  }
}

/// Both ends in this program, on TCP: the client's part counts too. The first messages are to warm up.
coax::task<> allocations_each(echo serve, double& each) {
  auto listener = coax::listener::bind("127.0.0.1:0");
  auto address = listener.value().local_endpoint();
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    auto client = co_await coax::connect(address.value());
    auto served = co_await listener->accept();
    s.spawn(serve, std::move(served.value()));
    std::array<std::byte, 64> message{};
    constexpr std::uint64_t warm_up = 100;
    constexpr std::uint64_t counted = 1'000;
    std::uint64_t before = 0;
    for (std::uint64_t i = 0; i < warm_up + counted; ++i) {
      if (i == warm_up) before = allocations_of_this_program().count;
      auto sent = co_await coax::within(10s, client->write(message));
      sent.value();
      auto got = co_await coax::within(10s, client->read_exactly(message));
      got.value();
    }
    const std::uint64_t made = allocations_of_this_program().count - before;
    each = static_cast<double>(made) / static_cast<double>(counted);
    auto closed = co_await client->close();
    closed.value();
  });
}

// --- the loops ---

class json_object {
 public:
  void add(const std::string& name, double value) {
    char text[64];
    std::snprintf(text, sizeof(text), "%.4g", value);
    add(name, std::string(text));
  }
  void add(const std::string& name, const std::string& value) {
    text_ += (text_.empty() ? "\"" : ", \"") + name + "\": " + value;
  }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

template <class RunTask>
void time_all(json_object& into, RunTask&& run) {
  for (const auto& [name, body] : benches) {
    figure f;
    run([&f, make = body] { return make(f); });
    into.add(name, f.median());
  }
}

std::string on_a_backend(coax::backend wanted) {
  json_object figures;
  const auto run = [wanted](auto&& make) {
    const std::unique_ptr<coax::reactor> r = coax::make_reactor({.backend = wanted});
    coax::detail::run_on(*r, make);
  };
  time_all(figures, run);
  double each = 0;
  run([&] { return allocations_each(echo_by_read, each); });
  figures.add("allocations_read", each);
  run([&] { return allocations_each(echo_by_receive, each); });
  figures.add("allocations_receive", each);
  return figures.text();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) seconds_each = std::atof(argv[1]);
  ::unsetenv("COAX_BACKEND");  // which would overrule what is asked for here
  json_object all;
  {
    json_object figures;
    time_all(figures, [](auto&& make) { manual_loop().run(make()); });
    all.add("alone", figures.text());
  }
#if !defined(COAX_WITHOUT_URING)
  if (!coax::detail::try_ring()) all.add("io_uring", on_a_backend(coax::backend::io_uring));
#endif
  all.add("epoll", on_a_backend(coax::backend::epoll));
  std::puts(all.text().c_str());
}
