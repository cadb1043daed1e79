#include <coax/io/fd.hpp>
#include <coax/net/listener.hpp>
#include <coax/sync/limited_scope.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

// Two processes that accept from one listener, each on a reactor of its own. The clients are this
// process, with plain blocking sockets and no reactor.

namespace {

using namespace std::chrono_literals;
using coax::listener;
using coax::stream;
using coax::task;

using idle_workers = coax::worker_stack<stream>;

/// Tells the client which process serves it, and holds it until it goes.
task<> serve_one_by_one(idle_workers& idle, char name) {
  const std::string greeting(1, name);
  while (auto conn = co_await idle.park()) {
    auto told = co_await conn->write(greeting);
    if (!told) continue;
    std::string nothing;
    co_await read_to_end(*conn, nothing);
  }
}

task<> accept_when_idle(listener& from, idle_workers& idle) {
  while (auto worker = co_await idle.reserve()) {
    auto conn = co_await from.accept();
    worker->hand_off(std::move(conn).value());
  }
}

/// Ends when the parent says so.
task<> told_to_end(int control) {
  std::array<std::byte, 1> none;
  auto ended = co_await coax::read(control, none);
  static_cast<void>(ended);
}

task<> serve_with(listener& from, int workers, char name, int control) {
  idle_workers idle;
  co_await coax::with_scope([&](coax::scope& s) -> task<> {
    for (int i = 0; i < workers; ++i) s.spawn(serve_one_by_one, std::ref(idle), name);
    co_await coax::race(accept_when_idle(from, idle), told_to_end(control));
    idle.close();
    co_await s.join_within(0ms);
  });
}

/// Gives up accepting every now and then, and takes it up again.
task<> serve_between_timeouts(listener& from, int, char name, int control) {
  const std::string greeting(1, name);
  const auto accept_in_bursts = [&]() -> task<> {
    while (true) {
      auto conn = co_await coax::within(300us, from.accept());
      if (!conn) continue;
      auto told = co_await conn->write(greeting);
      static_cast<void>(told);
    }
  };
  co_await coax::race(accept_in_bursts(), told_to_end(control));
}

/// Accepts, greets, and keeps the client until that goes. When it has its first one it takes all descriptors that
/// are left, and then ends its side of that connection.
task<> serve_without_descriptors(listener& from, int, char name, int control) {
  const std::string greeting(1, name);
  coax::limited_scope* serving = nullptr;
  const auto accept_and_greet = [&]() -> task<> {
    while (true) {
      auto conn = co_await from.accept();
      if (!conn) co_return;
      co_await serving->spawn(
          [](stream one, std::string text) -> task<> {
            auto told = co_await one.write(text);
            std::string nothing;
            if (told) co_await read_to_end(one, nothing);
          },
          std::move(conn).value(), greeting);
    }
  };
  auto first = co_await from.accept();
  REQUIRE(first);
  auto told = co_await first->write(greeting);
  REQUIRE(told);
  co_await coax::with_scope(100, [&](coax::limited_scope& s) -> task<> {
    serving = &s;
    const auto fills_up = [&]() -> task<> {
      co_await turns(3);  // by now it accepts
      rlimit few{};
      REQUIRE(::getrlimit(RLIMIT_NOFILE, &few) == 0);
      few.rlim_cur = 64;
      REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
      while (::dup(control) >= 0) continue;
      REQUIRE(first->shutdown_write());
      co_await told_to_end(control);
    };
    co_await coax::race(accept_and_greet(), fills_up());
    s.cancel();
  });
}

using routine = task<> (*)(listener&, int, char, int);

/// A child process that serves until this object goes.
class server_process {
 public:
  server_process(coax::backend b, listener& from, routine serve, int workers, char name) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    coax::unique_fd theirs(ends[0]);
    control_.reset(ends[1]);
    child_ = ::fork();
    REQUIRE(child_ >= 0);
    if (child_ != 0) return;
    ::alarm(60);  // a child that hangs must not hang the test
    control_.reset();
    int status = 1;
    try {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, [&] { return serve(from, workers, name, theirs.get()); });
      status = reactor->in_flight() == 0 ? 0 : 2;
    } catch (...) {
      status = 3;
    }
    ::_exit(status);
  }
  server_process(server_process&& other) noexcept
      : control_(std::move(other.control_)), child_(std::exchange(other.child_, -1)) {}
  server_process& operator=(server_process&&) = delete;
  ~server_process() {
    if (child_ < 0) return;
    CHECK(::write(control_.get(), "x", 1) ==
          1);  // closing would not do: later children hold a copy
    int how = -1;
    CHECK(::waitpid(child_, &how, 0) == child_);
    CHECK(how == 0);
  }

 private:
  coax::unique_fd control_;
  pid_t child_ = -1;
};

/// Who serves this client; 0 when nobody does.
char greeting_of(const coax::unique_fd& client) {
  pollfd readable{client.get(), POLLIN, 0};
  char name = 0;
  if (::poll(&readable, 1, 20'000) == 1 && ::recv(client.get(), &name, 1, 0) == 1) return name;
  return 0;
}

/// The events of `fd` in the epoll(7) descriptors of this process, as proc(5) tells them; 0 where none has it.
std::uint32_t watched_events(int fd) {
  std::uint32_t events = 0;
  for (int set = 0; set < 1024; ++set) {
    std::ifstream info("/proc/self/fdinfo/" + std::to_string(set));
    std::string word;
    while (info >> word) {
      int number = -1;
      std::string of_what;
      std::uint32_t bits = 0;
      if (word != "tfd:") continue;
      info >> number >> of_what >> std::hex >> bits >> std::dec;
      if (number == fd) events |= bits;
    }
  }
  return events;
}

}  // namespace

TEST_CASE("epoll: a connection wakes one of those that wait for it, and none that does not wait") {
  const auto reactor = reactor_of(coax::backend::epoll);
  run_clean(*reactor, []() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    const int fd = from->native_handle();
    CHECK(watched_events(fd) == 0);
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([](listener& l) -> task<> { static_cast<void>(co_await l.accept()); },
              std::ref(*from));
      co_await turns(3);
      const std::uint32_t events = watched_events(fd);
      CHECK((events & EPOLLIN) != 0);
      CHECK((events & EPOLLEXCLUSIVE) != 0);
      s.cancel();
    });
    CHECK(watched_events(fd) == 0);
  });
}

TEST_CASE("two processes share a listener: each connection is served once, and none is stranded") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    std::vector<server_process> servers;
    servers.emplace_back(b, *from, serve_with, 3, 'a');
    servers.emplace_back(b, *from, serve_with, 3, 'b');
    for (int round = 0; round < 10; ++round) {
      std::vector<coax::unique_fd> clients;
      for (int i = 0; i < 12; ++i) clients.push_back(raw_client_of(from->native_handle()));
      // Six at a time: as those go, the six in the backlog come in.
      for (int half = 0; half < 2; ++half) {
        std::map<char, int> served;
        for (std::size_t i = 0; i < 6; ++i) ++served[greeting_of(clients[i])];
        CHECK(served == std::map<char, int>{{'a', 3}, {'b', 3}});
        clients.erase(clients.begin(), clients.begin() + 6);
      }
    }
  }
}

TEST_CASE("a process without idle workers leaves connections to the one that has some") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    std::vector<server_process> servers;
    servers.emplace_back(b, *from, serve_with, 1, 'a');
    servers.emplace_back(b, *from, serve_with, 8, 'b');
    for (int round = 0; round < 30; ++round) {
      std::vector<coax::unique_fd> clients;
      std::map<char, int> served;
      for (int i = 0; i < 9; ++i) {
        clients.push_back(raw_client_of(from->native_handle()));
        if (round % 2 == 0)
          ++served[greeting_of(clients.back())];  // one after the other, or all at once
      }
      if (round % 2 != 0)
        for (const coax::unique_fd& client : clients) ++served[greeting_of(client)];
      CHECK(served == std::map<char, int>{{'a', 1}, {'b', 8}});
    }
  }
}

TEST_CASE("processes that give up accepting and take it up again strand nothing") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    std::vector<server_process> servers;
    servers.emplace_back(b, *from, serve_between_timeouts, 0, 'a');
    servers.emplace_back(b, *from, serve_between_timeouts, 0, 'b');
    int served = 0;
    for (int i = 0; i < 500; ++i) {
      const coax::unique_fd client = raw_client_of(from->native_handle());
      const char by = greeting_of(client);
      served += by == 'a' || by == 'b' ? 1 : 0;
    }
    CHECK(served == 500);
  }
}

TEST_CASE("a process that has run out of descriptors leaves connections to the other") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    std::vector<server_process> servers;
    servers.emplace_back(b, *from, serve_with, 4, 'a');
    servers.emplace_back(b, *from, serve_without_descriptors, 0, 'b');
    std::vector<coax::unique_fd> clients;
    char by = 0;
    do {
      clients.push_back(raw_client_of(from->native_handle()));
      by = greeting_of(clients.back());
      REQUIRE(by != 0);
    } while (by != 'b');
    const coax::unique_fd first = std::move(clients.back());
    clients.clear();
    REQUIRE(greeting_of(first) == 0);  // its end: that process has no descriptors any more
    for (int i = 0; i < 8; ++i) {
      clients.push_back(raw_client_of(from->native_handle()));
      by = greeting_of(clients.back());
      CHECK((by == 'a' || by == 'b'));
      if (clients.size() == 4) clients.clear();
    }
  }
}

TEST_CASE("a process that ends leaves the listener to the other") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    const server_process stays(b, *from, serve_with, 2, 'a');
    {
      const server_process goes(b, *from, serve_with, 2, 'b');
    }
    for (int i = 0; i < 4; ++i) {
      const coax::unique_fd client = raw_client_of(from->native_handle());
      CHECK(greeting_of(client) == 'a');
    }
  }
}
