#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/within.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

// Tasks that are woken together write together: what each has written waits until all have run.

namespace {

/// One of them: says "hello" when it hears something.
struct greeter {
  greeter() : pair(unix_pair()), socket(std::move(pair.ours)) {}

  coax::task<> greets() {
    std::array<std::byte, 16> some;
    auto heard = co_await receive(socket.get(), some);
    if (!heard) co_return;
    if (before) before();
    auto written = co_await send_all(socket.get(), "hello");
    sent.emplace(written);
    auto more = co_await coax::within(std::chrono::hours(1), receive(socket.get(), some));
    if (!more) ended = more.error();
  }
  /// What has arrived is what it was told.
  bool is_consistent() {
    const std::string arrived = drain(pair.theirs.get());
    return arrived == (sent && *sent ? "hello" : "");
  }

  fd_pair pair;
  taken_over socket;
  std::function<void()> before;
  std::optional<coax::result<std::size_t>> sent;
  std::error_code ended;
};

struct greeters {
  explicit greeters(int count) {
    for (int i = 0; i < count; ++i) all.emplace_back(std::make_unique<greeter>());
  }
  greeter& operator[](std::size_t i) { return *all[i]; }

  /// All hear something in one turn.
  coax::task<> wake() {
    for (const auto& each : all) roots.emplace_back(std::make_unique<cancellable>(each->greets()));
    co_await turns();
    for (const auto& each : all) put(each->pair.theirs, "x");
    co_await turns();
  }
  coax::task<> end() {
    for (const auto& each : roots) each->cancel();
    for (const auto& each : roots) co_await end_of(*each);
  }

  std::vector<std::unique_ptr<greeter>> all;
  std::vector<std::unique_ptr<cancellable>> roots;
};

}  // namespace

TEST_CASE("tasks that are woken together all get their writes through") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    greeters together(100);  // more than are served in a row
    co_await together.wake();
    for (const auto& each : together.all) {
      for (int i = 0; i < 1000 && !each->sent; ++i) co_await turns();
      REQUIRE(each->sent);
      CHECK(*each->sent);
      CHECK(each->is_consistent());
    }
    co_await together.end();
  });
}

TEST_CASE("a write that waits among others is made or not when its task is cancelled") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (std::size_t canceller = 0; canceller < 4; ++canceller) {
      greeters together(4);
      together[canceller].before = [&] {
        for (const auto& root : together.roots) root->cancel();
      };
      co_await together.wake();
      co_await together.end();
      for (const auto& each : together.all) CHECK(each->is_consistent());
    }
  });
}

TEST_CASE("a write that waits among others fails when its descriptor is closed, or has been made") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (std::size_t closer = 0; closer < 4; ++closer) {
      greeters together(4);
      together[closer].before = [&] {
        for (const auto& each : together.all) each->socket.close();
      };
      co_await together.wake();
      for (const auto& each : together.all) {
        for (int i = 0; i < 1000 && !each->sent; ++i) co_await turns();
        if (each->sent && !*each->sent) {
          const std::error_code why = each->sent->error();
          CHECK((why == std::errc::operation_canceled || why == std::errc::bad_file_descriptor));
        }
        CHECK(each->is_consistent());
      }
      co_await together.end();
    }
  });
}

TEST_CASE("a limit of nothing lets a write that waits among others be tried") {
  on_each_backend([]() -> coax::task<> {
    constexpr std::size_t count = 8;
    std::vector<fd_pair> pairs;
    for (std::size_t i = 0; i < count; ++i) pairs.push_back(unix_pair());
    std::size_t sent = 0;
    const auto greets = [&](fd_pair& pair) -> coax::task<> {
      const taken_over socket(std::move(pair.ours));
      std::array<std::byte, 16> some;
      auto heard = co_await receive(socket.get(), some);
      REQUIRE(heard);
      auto written =
          co_await coax::within(std::chrono::seconds(0), send_all(socket.get(), "hello"));
      if (written) ++sent;
      CHECK(drain(pair.theirs.get()) == (written ? "hello" : ""));
    };
    std::vector<std::unique_ptr<cancellable>> roots;
    for (fd_pair& pair : pairs) roots.push_back(std::make_unique<cancellable>(greets(pair)));
    co_await turns();
    for (const fd_pair& pair : pairs) put(pair.theirs, "x");
    for (const auto& root : roots) co_await end_of(*root);
    CHECK(sent == count);
  });
}

TEST_CASE("what was posted by one of them can be taken back by another") {
  struct probe final : coax::ready_node {
    void run() noexcept override { has_run = true; }
    bool has_run = false;
  };
  on_each_backend_and_simulation([]() -> coax::task<> {
    coax::reactor& here = coax::reactor::current();
    greeters together(40);
    probe posted;
    together[0].before = [&] { CHECK(here.post(posted)); };
    // One that is not served in the same row.
    together[30].before = [&] {
      if (!posted.has_run) here.withdraw(posted);
    };
    co_await together.wake();
    for (const auto& each : together.all)
      for (int i = 0; i < 1000 && !each->sent; ++i) co_await turns();
    if (here.backend() == "epoll") CHECK_FALSE(posted.has_run);
    co_await together.end();
  });
}

TEST_CASE("a task that writes without end, in pieces, keeps neither timers nor others waiting") {
  on_each_backend([]() -> coax::task<> {
    const coax::unique_fd sink(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    REQUIRE(sink);
    // To a descriptor in blocking mode 4 KB are written at a time: more pieces than are tried in a row.
    const std::vector<std::byte> much(100'000);
    bool stops = false;
    int written = 0;
    const auto writes = [&]() -> coax::task<> {
      while (!stops) {
        auto n = co_await coax::write(sink.get(), much);
        REQUIRE(n);
        ++written;
      }
    };
    fd_pair p = unix_pair();
    const taken_over socket(std::move(p.ours));
    cancellable root(writes());
    co_await turns();
    co_await coax::sleep_for(std::chrono::milliseconds(1));
    put(p.theirs, "x");
    std::array<std::byte, 1> some;
    auto heard = co_await receive(socket.get(), some);
    CHECK(heard);
    stops = true;
    co_await end_of(root);
    CHECK(written > 0);
  });
}
