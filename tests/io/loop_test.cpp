#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>

#include <csignal>
#include <thread>
#include <utility>
#include <vector>

// Turns of the reactor: who gets one, and how other threads get in.

TEST_CASE("an operation completes beside a task that never lets the ready queue run dry") {
  on_each_backend([]() -> coax::task<> {
    fd_pair p = unix_pair();
    bool done = false;
    int spins = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        std::array<std::byte, 16> some;
        for (int i = 0; i < 100; ++i) {
          auto n = co_await coax::read(p.ours.get(), some);
          REQUIRE(n);
        }
        done = true;
      });
      while (!done && spins < 1'000'000) {
        if (spins % 10 == 0) put(p.theirs, "x");
        co_await coax::yield();
        ++spins;
      }
      s.cancel();
    };
    co_await coax::with_scope(body);
    CHECK(done);
    CHECK(spins < 10'000);
  });
}

TEST_CASE("a timer fires beside a task that never lets the ready queue run dry") {
  on_each_backend([]() -> coax::task<> {
    bool fired = false;
    int spins = 0;
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        co_await coax::sleep_for(std::chrono::microseconds(200));
        fired = true;
      });
      for (; !fired && spins < 100'000'000; ++spins) co_await coax::yield();
    };
    co_await coax::with_scope(body);
    CHECK(fired);
  });
}

namespace {

/// Takes what is sent or received on one descriptor as done at once, and counts.
class bottomless final : public coax::syscalls {
 public:
  int recv(int fd, void* into, std::size_t size, int flags) noexcept override {
    if (fd != endless) return syscalls::recv(fd, into, size, flags);
    ++calls;
    return static_cast<int>(size);
  }
  int send(int fd, const void* from, std::size_t size, int flags) noexcept override {
    if (fd != endless) return syscalls::send(fd, from, size, flags);
    ++calls;
    return static_cast<int>(size);
  }
  int endless = -1;
  int calls = 0;
};

}  // namespace

TEST_CASE("a socket that never has to wait does not keep another from being served") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    bottomless calls;
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, [&]() -> coax::task<> {
      fd_pair flood = unix_pair();
      fd_pair quiet = unix_pair();
      const taken_over firehose(std::move(flood.ours));
      const taken_over other(std::move(quiet.ours));
      calls.endless = firehose.get();
      bool served = false;
      bool told = false;
      int told_at = 0;
      auto body = [&](coax::scope& s) -> coax::task<> {
        s.spawn([&]() -> coax::task<> {
          std::array<std::byte, 16> some;
          auto n = co_await receive(other.get(), some);
          REQUIRE(n);
          served = true;
        });
        co_await turns();
        while (!served && calls.calls < 1'000'000) {
          auto n = co_await send_all(firehose.get(), "xxxx");
          REQUIRE(n);
          if (!told) {
            put(quiet.theirs, "x");
            told_at = calls.calls;
          }
          told = true;
        }
        s.cancel();
      };
      co_await coax::with_scope(body);
      CHECK(served);
      CHECK(calls.calls - told_at < 1000);
    });
  }
}

namespace {

struct counting_node final : coax::ready_node {
  std::size_t* count = nullptr;
  std::size_t all = 0;
  gate* last = nullptr;

 private:
  void run() noexcept override {
    if (++*count == all) last->open();
  }
};

}  // namespace

TEST_CASE("everything that two threads post arrives, while the reactor sleeps or not") {
  on_each_backend([]() -> coax::task<> {
    constexpr std::size_t each = 5000;
    std::vector<counting_node> nodes(2 * each);
    std::size_t arrived = 0;
    gate all_arrived;
    for (counting_node& node : nodes) {
      node.count = &arrived;
      node.all = nodes.size();
      node.last = &all_arrived;
    }
    coax::reactor& here = coax::reactor::current();
    const auto posts = [&](std::size_t from) {
      for (std::size_t i = from; i < from + each; ++i) {
        here.post(nodes[i]);
        if (i % 64 == 0) std::this_thread::yield();
      }
    };
    std::thread one(posts, std::size_t{0});
    std::thread two(posts, each);
    co_await all_arrived;
    one.join();
    two.join();
    CHECK(arrived == nodes.size());
  });
}

TEST_CASE("each post wakes a reactor that sleeps") {
  on_each_backend([]() -> coax::task<> {
    coax::reactor& here = coax::reactor::current();
    for (int i = 0; i < 200; ++i) {
      counting_node node;
      std::size_t arrived = 0;
      gate came;
      node.count = &arrived;
      node.all = 1;
      node.last = &came;
      std::thread other([&] { here.post(node); });
      co_await came;
      other.join();
      CHECK(arrived == 1);
    }
  });
}

namespace {

/// Has another thread post when a reactor that was woken is about to read its wake-up.
class posting final : public coax::syscalls {
 public:
  int read(int fd, void* into, std::size_t size) noexcept override {
    if (coax::ready_node* const node = std::exchange(late, nullptr))
      std::thread([&] { to->post(*node); }).join();
    return syscalls::read(fd, into, size);
  }
  coax::reactor* to = nullptr;
  coax::ready_node* late = nullptr;
};

}  // namespace

TEST_CASE("what is posted while a reactor wakes up is run") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    posting calls;
    const auto reactor = reactor_of(b, calls);
    run_clean(*reactor, [&]() -> coax::task<> {
      std::size_t arrived = 0;
      gate both;
      counting_node nodes[2];
      for (counting_node& node : nodes) {
        node.count = &arrived;
        node.all = 2;
        node.last = &both;
      }
      calls.to = reactor.get();
      calls.late = &nodes[1];
      std::thread([&] { reactor->post(nodes[0]); }).join();
      for (int i = 0; i < 1000 && arrived < 2; ++i) co_await coax::yield();
      CHECK(calls.late == nullptr);
      CHECK(arrived == 2);
    });
  }
}

TEST_CASE("wake ends a wait for which there is nothing else") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const auto reactor = reactor_of(b);
    const coax::reactor::session session(*reactor);
    reactor->turn();
    for (int i = 0; i < 50; ++i) {
      std::thread other([&] { reactor->wake(); });
      reactor->turn();
      other.join();
    }
  }
}

TEST_CASE("a post that came before the first turn is run") {
  for (const coax::backend b : backends_here()) {
    const auto reactor = reactor_of(b);
    counting_node node;
    std::size_t arrived = 0;
    gate came;
    node.count = &arrived;
    node.all = 1;
    node.last = &came;
    std::thread([&] { reactor->post(node); }).join();
    run_clean(*reactor, [&]() -> coax::task<> { co_await came; });
    CHECK(arrived == 1);
  }
}

TEST_CASE("signals that interrupt the reactor's sleep lose nothing") {
  struct sigaction before{};
  struct sigaction quiet{};
  quiet.sa_handler = [](int) {};
  REQUIRE(::sigaction(SIGUSR1, &quiet, &before) == 0);
  on_each_backend([]() -> coax::task<> {
    coax::reactor& here = coax::reactor::current();
    counting_node node;
    std::size_t arrived = 0;
    gate came;
    node.count = &arrived;
    node.all = 1;
    node.last = &came;
    const pthread_t sleeper = ::pthread_self();
    std::thread other([&] {
      for (int i = 0; i < 200; ++i) {
        ::pthread_kill(sleeper, SIGUSR1);
        std::this_thread::yield();
      }
      here.post(node);
    });
    const fd_pair pipe = pipe_to_us();
    auto body = [&](coax::scope& s) -> coax::task<> {
      s.spawn([&]() -> coax::task<> {
        std::array<std::byte, 1> some;
        static_cast<void>(co_await coax::read(pipe.ours.get(), some));
      });
      co_await came;
      put(pipe.theirs, "x");
    };
    co_await coax::with_scope(body);
    other.join();
    CHECK(arrived == 1);
  });
  REQUIRE(::sigaction(SIGUSR1, &before, nullptr) == 0);
}
