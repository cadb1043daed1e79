#include <coax/io/reactor.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/task/fatal.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <netinet/tcp.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using coax::endpoint;
using coax::listener;
using coax::stream;
using coax::task;

using connected = std::optional<coax::result<stream>>;

task<> connect_one(endpoint to, connected& into) {
  auto got = co_await coax::connect(to);
  into.emplace(std::move(got));
}

endpoint bound_to(int fd) {
  sockaddr_storage where{};
  socklen_t size = sizeof where;
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&where), &size) == 0);
  return endpoint::from_sockaddr(reinterpret_cast<const sockaddr*>(&where), size);
}

/// A port of this machine that is taken, so that nobody else gets it, and on which nobody listens.
class closed_port {
 public:
  closed_port() {
    const sockaddr_in any = loopback();
    REQUIRE(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0);
  }
  endpoint where() const { return bound_to(fd_.get()); }
  void give_back() { fd_.reset(); }

 private:
  coax::unique_fd fd_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
};

/// A listener whose backlog is full: it answers nobody until some are accepted.
class full_listener {
 public:
  explicit full_listener(const endpoint& where)
      : fd_(::socket(where.family(), SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    REQUIRE(::bind(fd_.get(), where.data(), where.size()) == 0);
    REQUIRE(::listen(fd_.get(), 0) == 0);
    waiting_ = raw_client_of(fd_.get());
  }
  endpoint where() const { return bound_to(fd_.get()); }
  coax::unique_fd accept_one() {
    return coax::unique_fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }

 private:
  coax::unique_fd fd_;
  coax::unique_fd waiting_;
};

endpoint abstract_name() {
  static int count = 0;
  return endpoint::parse("unix:@coax-connect-test-" + std::to_string(::getpid()) + "-" +
                         std::to_string(++count))
      .value();
}

}  // namespace

TEST_CASE("connect gives a connection to who listens") {
  on_each_backend([]() -> task<> {
    for (const char* where : {"127.0.0.1:0", "[::1]:0", "unix:@coax-connect-success"}) {
      auto from = listener::bind(where);
      if (!from) {
        WARN(where << " cannot be listened on here: not tested");
        continue;
      }
      auto client = co_await coax::connect(from->local_endpoint().value());
      REQUIRE(client);
      CHECK(client->remote_endpoint().value() == from->local_endpoint().value());
      auto served = co_await from->accept();
      REQUIRE(served);
      auto sent = co_await client->write("hello");
      REQUIRE(sent);
      const std::string got = co_await read_text(*served);
      CHECK(got == "hello");
      CHECK((::fcntl(client->native_handle(), F_GETFD) & FD_CLOEXEC) != 0);
    }
  });
}

TEST_CASE("a connection sends small writes at once") {
  on_each_backend([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    auto client = co_await coax::connect(from->local_endpoint().value());
    REQUIRE(client);
    int nodelay = 0;
    socklen_t size = sizeof nodelay;
    REQUIRE(::getsockopt(client->native_handle(), IPPROTO_TCP, TCP_NODELAY, &nodelay, &size) == 0);
    CHECK(nodelay != 0);
  });
}

TEST_CASE("a port nobody listens on refuses") {
  on_each_backend([]() -> task<> {
    const closed_port nobody;
    for (int i = 0; i < 20; ++i) {
      auto client = co_await coax::connect(nobody.where());
      CHECK(client.error() == std::errc::connection_refused);
    }
  });
}

TEST_CASE("connecting to an address that TCP cannot reach fails with network_unreachable") {
  on_each_backend([]() -> task<> {
    // TCP knows no broadcast and no multicast, whatever the routes are.
    for (const char* where : {"255.255.255.255:80", "224.0.0.1:80"}) {
      auto client = co_await coax::connect(endpoint::parse(where).value());
      CHECK(client.error() == std::errc::network_unreachable);
    }
  });
}

TEST_CASE("an endpoint that is none is an invalid argument") {
  on_each_backend_and_simulation([]() -> task<> {
    auto client = co_await coax::connect(endpoint());
    CHECK(client.error() == std::errc::invalid_argument);
  });
}

TEST_CASE("a Unix path that is not there is told from one that nobody listens on") {
  on_each_backend([]() -> task<> {
    auto missing = co_await coax::connect(endpoint::parse("unix:/no/such/socket").value());
    CHECK(missing.error() == std::errc::no_such_file_or_directory);
    auto no_socket = co_await coax::connect(endpoint::parse("unix:/dev/null").value());
    CHECK(no_socket.error() == std::errc::connection_refused);
    auto nobody = co_await coax::connect(abstract_name());
    CHECK(nobody.error() == std::errc::connection_refused);
  });
}

TEST_CASE("connecting to a full listener waits until its timeout") {
  on_each_backend([]() -> task<> {
    const full_listener full(endpoint::parse("127.0.0.1:0").value());
    for (int i = 0; i < 3; ++i) {
      auto client = co_await coax::within(5ms, coax::connect(full.where()));
      CHECK(client.error() == std::errc::timed_out);
    }
  });
}

TEST_CASE("connecting can be cancelled, at every step") {
  on_each_backend([]() -> task<> {
    const full_listener full(endpoint::parse("127.0.0.1:0").value());
    const full_listener full_unix(abstract_name());
    for (int given = 0; given < 5; ++given) {
      connected over_tcp;
      connected over_unix;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(connect_one, full.where(), std::ref(over_tcp));
        s.spawn(connect_one, full_unix.where(), std::ref(over_unix));
        co_await turns(given);
        const bool by_itself = co_await s.join_within(0ms);
        CHECK(!by_itself);
      });
      CHECK((!over_tcp && !over_unix));
    }
  });
}

TEST_CASE("a connection made together with its cancellation is delivered or closed") {
  on_each_backend_and_simulation([]() -> task<> {
    for (int given = 0; given < 5; ++given) {
      auto from = listener::bind("127.0.0.1:0");
      REQUIRE(from);
      connected client;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(connect_one, from->local_endpoint().value(), std::ref(client));
        co_await turns(given);
        co_await s.join_within(0ms);
      });
      if (client) {
        REQUIRE(*client);
        continue;
      }
      // Whatever came of it, it is closed: who accepts it sees the end.
      auto served = co_await coax::within(5ms, from->accept());
      if (!served) continue;
      std::string nothing;
      const std::error_code why = co_await read_to_end(*served, nothing);
      CHECK(why);
    }
  });
}

TEST_CASE("connecting to a full Unix listener waits and then succeeds") {
  on_each_backend([]() -> task<> {
    full_listener full(abstract_name());
    connected client;
    coax::unique_fd first;
    coax::unique_fd second;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(connect_one, full.where(), std::ref(client));
      co_await turns(3);
      CHECK(!client);
      first = full.accept_one();
      while (!client) co_await coax::sleep_for(1ms);
      second = full.accept_one();
    });
    REQUIRE(*client);
    auto sent = co_await (*client)->write("hello");
    CHECK(sent);
    char got[8];
    CHECK(::recv(second.get(), got, sizeof got, 0) == 5);
  });
}

TEST_CASE("a socket that has connected to itself is refused") {
  /// Does what the kernel does when it happens to pick the port that is connected to.
  class picks_that_port final : public coax::syscalls {
   public:
    int picked = 0;
    int connect(int fd, const sockaddr* to, socklen_t size) noexcept override {
      pick(fd, to, size);
      return syscalls::connect(fd, to, size);
    }
#if !defined(COAX_WITHOUT_URING)
    int ring_submit(io_uring& ring) noexcept override {
      pick_for(ring);
      return syscalls::ring_submit(ring);
    }
    int ring_submit_and_wait(io_uring& ring) noexcept override {
      pick_for(ring);
      return syscalls::ring_submit_and_wait(ring);
    }
    void pick_for(io_uring& ring) noexcept {
      for (unsigned at = ring.sq.sqe_head; at != ring.sq.sqe_tail; ++at) {
        const io_uring_sqe& sqe = ring.sq.sqes[at & ring.sq.ring_mask];
        if (sqe.opcode == IORING_OP_CONNECT)
          pick(sqe.fd, reinterpret_cast<const sockaddr*>(sqe.addr),
               static_cast<socklen_t>(sqe.off));
      }
    }
#endif
    void pick(int fd, const sockaddr* to, socklen_t size) noexcept {
      if (::bind(fd, to, size) == 0) ++picked;
    }
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    picks_that_port kernel;
    const auto reactor = reactor_of(b, kernel);
    run_clean(*reactor, []() -> task<> {
      closed_port nobody;
      const endpoint there = nobody.where();
      nobody.give_back();
      auto client = co_await coax::connect(there);
      CHECK(client.error() == std::errc::connection_refused);
    });
    CHECK(kernel.picked == 1);
  }
}

TEST_CASE("a connect that is interrupted goes on") {
  class interrupted final : public coax::syscalls {
   public:
    int connects = 0;
    int connect(int fd, const sockaddr* to, socklen_t size) noexcept override {
      ++connects;
      if (to->sa_family == AF_UNIX)
        return connects % 3 != 0 ? -EINTR : syscalls::connect(fd, to, size);
      const int answer = syscalls::connect(fd, to, size);
      return answer == 0 || answer == -EINPROGRESS ? -EINTR : answer;
    }
  };
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    interrupted kernel;
    const auto reactor = reactor_of(b, kernel);
    run_clean(*reactor, []() -> task<> {
      for (const endpoint& where : {endpoint::parse("127.0.0.1:0").value(), abstract_name()}) {
        auto from = listener::bind(where);
        REQUIRE(from);
        auto client = co_await coax::connect(from->local_endpoint().value());
        REQUIRE(client);
        auto sent = co_await client->write("x");
        CHECK(sent);
      }
      const closed_port nobody;
      auto refused = co_await coax::connect(nobody.where());
      CHECK(refused.error() == std::errc::connection_refused);
    });
    CHECK(kernel.connects >= 3);
  }
}

TEST_CASE("many connections are made at once") {
  on_each_backend_and_simulation([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    constexpr std::size_t count = 100;
    std::vector<connected> clients(count);
    std::vector<stream> served;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (connected& c : clients)
        s.spawn(connect_one, from->local_endpoint().value(), std::ref(c));
      while (served.size() < count) {
        auto next = co_await coax::within(patience, from->accept());
        REQUIRE(next);
        served.push_back(std::move(*next));
      }
    });
    for (const connected& c : clients) CHECK(*c);
  });
}

TEST_CASE("a TCP connect that finds no free port fails at once") {
  class without_ports final : public coax::syscalls {
   public:
    int connect(int, const sockaddr*, socklen_t) noexcept override { return -EAGAIN; }
  } kernel;
  const auto reactor = reactor_of(coax::backend::epoll, kernel);
  run_clean(*reactor, []() -> task<> {
    const closed_port nobody;
    auto client = co_await coax::within(patience, coax::connect(nobody.where()));
    CHECK(client.error() == std::errc::resource_unavailable_try_again);
  });
}

namespace {

/// No operation ever ends by itself, and no wait takes time: the clock goes to its deadline.
class skips_waits final : public coax::reactor {
 public:
  explicit skips_waits(coax::syscalls& calls = coax::syscalls::kernel())
      : reactor(calls, coax::clock::time_point(1h)) {}
  std::string_view backend() const noexcept override { return "a test"; }
  coax::clock::time_point now() const noexcept override { return now_; }

 private:
  bool submit(coax::operation&) noexcept override { return false; }
  void cancel(coax::operation& op) noexcept override { given_up(op); }
  void poll(std::optional<coax::clock::time_point> deadline) noexcept override {
    if (!deadline) coax::detail::fatal("the test waits for something that never comes");
    now_ = std::max(now_, *deadline);
  }
  coax::clock::time_point now_{1h};
};

}  // namespace

TEST_CASE("connecting to a full Unix listener looks for room ten times a second or more often") {
  class full_for_long final : public coax::syscalls {
   public:
    int connect(int, const sockaddr*, socklen_t) noexcept override {
      return ++tries < 100 ? -EAGAIN : -ECONNREFUSED;
    }
    int tries = 0;
  } kernel;
  skips_waits reactor(kernel);
  run_clean(reactor, [&]() -> task<> {
    const auto begin = coax::now();
    auto client = co_await coax::connect(abstract_name());
    CHECK(client.error() == std::errc::connection_refused);
    CHECK(coax::now() - begin <= 100 * 100ms);
    CHECK(coax::now() - begin > 90 * 90ms);  // and not all the time
  });
}

TEST_CASE("of several addresses each has its time, and the last all there is") {
  skips_waits reactor;
  run_clean(reactor, []() -> task<> {
    const auto begin = coax::now();
    const closed_port nobody;
    const std::vector<endpoint> silent(3, nobody.where());
    auto client = co_await coax::within(1h, coax::detail::connect_to_first(silent, 2s));
    CHECK(client.error() == std::errc::timed_out);
    CHECK(coax::now() - begin == 1h);
  });
}
