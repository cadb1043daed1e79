#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/within.hpp>

#include "pairs.hpp"

#include <netinet/tcp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

// Opening listeners, and who may accept from one; for what accepting rides out see accept_test.cpp.

namespace {

using namespace std::chrono_literals;
using coax::errc;
using coax::listener;
using coax::stream;
using coax::task;

using accepted = std::optional<coax::result<stream>>;

task<> accept_one(listener& from, accepted& into) {
  auto got = co_await from.accept();
  into.emplace(std::move(got));
}

int option_of(int fd, int level, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  REQUIRE(::getsockopt(fd, level, option, &value, &size) == 0);
  return value;
}

bool has_ipv6() { return static_cast<bool>(listener::bind("[::1]:0")); }

/// A directory of this test's own.
class scratch_directory {
 public:
  scratch_directory() { REQUIRE(::mkdtemp(path_) != nullptr); }
  scratch_directory(const scratch_directory&) = delete;
  scratch_directory& operator=(const scratch_directory&) = delete;
  ~scratch_directory() {
    ::unlink(socket_path().c_str());
    ::rmdir(path_);
  }
  std::string socket_path() const { return std::string(path_) + "/socket"; }

 private:
  char path_[32] = "/tmp/coax-listener-XXXXXX";
};

/// Connects to `where` and exchanges a byte each way with what `from` accepts.
task<> check_serves(listener& from, coax::endpoint where) {
  auto client = co_await coax::connect(where);
  REQUIRE(client);
  auto served = co_await from.accept();
  REQUIRE(served);
  auto asked = co_await client->write("?");
  REQUIRE(asked);
  const std::string question = co_await read_text(*served);
  CHECK(question == "?");
  auto answered = co_await served->write("!");
  REQUIRE(answered);
  const std::string answer = co_await read_text(*client);
  CHECK(answer == "!");
}

}  // namespace

static_assert(std::is_trivially_destructible_v<
              coax::listen_options>);  // so g++ 12 takes it inside a co_await

TEST_CASE("a listener is bound from text and knows its real port") {
  on_each_backend_and_simulation([]() -> task<> {
    auto bound = listener::bind("127.0.0.1:0");
    REQUIRE(bound);
    CHECK(bound->is_open());
    auto where = bound->local_endpoint();
    REQUIRE(where);
    CHECK(where->port() != 0);
    CHECK(where->to_string() == "127.0.0.1:" + std::to_string(where->port()));
    co_await check_serves(*bound, *where);
  });
}

TEST_CASE("a listener is bound from an endpoint") {
  on_each_backend_and_simulation([]() -> task<> {
    auto bound = listener::bind(coax::endpoint::ip("127.0.0.1", 0).value());
    REQUIRE(bound);
    co_await check_serves(*bound, bound->local_endpoint().value());
  });
}

TEST_CASE("a listener needs no reactor") {
  const int before = open_descriptors();
  {
    auto bound = listener::bind("127.0.0.1:0");
    REQUIRE(bound);
    listener moved = std::move(*bound);
    CHECK(!bound->is_open());
    CHECK(bound->native_handle() == -1);
    CHECK(moved.local_endpoint());
    auto other = listener::bind("127.0.0.1:0");
    REQUIRE(other);
    moved = std::move(*other);  // closes the first
    CHECK(open_descriptors() == before + 1);
    moved.close();
    moved.close();
    CHECK(open_descriptors() == before);
    CHECK(moved.local_endpoint().error() == std::errc::bad_file_descriptor);
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("a bad address is told apart at once and leaves nothing open") {
  const int before = open_descriptors();
  CHECK(listener::bind("localhost:80").error() == errc::bad_address);
  CHECK(listener::bind("").error() == errc::bad_address);
  CHECK(listener::bind("127.0.0.1").error() == errc::bad_port);
  CHECK(listener::bind("127.0.0.1:70000").error() == errc::bad_port);
  CHECK(listener::bind("unix:/" + std::string(200, 'x')).error() == errc::path_too_long);
  CHECK(listener::bind("unix:/no/such/directory/socket").error() ==
        std::errc::no_such_file_or_directory);
  CHECK(listener::bind("203.0.113.1:0").error() == std::errc::address_not_available);
  CHECK(!listener::bind(coax::endpoint()));
  CHECK(open_descriptors() == before);
}

TEST_CASE("a port in use is address_in_use") {
  auto first = listener::bind("127.0.0.1:0");
  REQUIRE(first);
  const auto where = first->local_endpoint().value();
  CHECK(listener::bind(where).error() == std::errc::address_in_use);
  first->close();
  CHECK(listener::bind(where));
}

TEST_CASE("a port whose last connections are not forgotten yet can be bound again") {
  on_each_backend([]() -> task<> {
    std::optional<listener> first(listener::bind("127.0.0.1:0").value());
    const auto where = first->local_endpoint().value();
    {
      auto client = co_await coax::connect(where);
      auto served = co_await first->accept();
      REQUIRE((client && served));
      {
        const stream closed_by_server = std::move(*served);
      }  // whose side waits in TIME_WAIT then
      std::string nothing;
      co_await read_to_end(*client, nothing);
    }
    first.reset();
    auto again = listener::bind(where);
    CHECK(again);
  });
}

TEST_CASE("reuse_port lets several listen on one port") {
  coax::listen_options shared;
  shared.reuse_port = true;
  auto first = listener::bind("127.0.0.1:0", shared);
  REQUIRE(first);
  const auto where = first->local_endpoint().value();
  CHECK(listener::bind(where, shared));
  CHECK(listener::bind(where).error() == std::errc::address_in_use);
}

TEST_CASE("accepted connections have the options of their listener") {
  for (const bool on : {false, true}) {
    on_each_backend([&]() -> task<> {
      coax::listen_options how;
      how.nodelay = on;
      how.keepalive = on;
      auto from = listener::bind("127.0.0.1:0", how);
      REQUIRE(from);
      const coax::unique_fd client = raw_client_of(from->native_handle());
      auto served = co_await from->accept();
      REQUIRE(served);
      CHECK((option_of(served->native_handle(), IPPROTO_TCP, TCP_NODELAY) != 0) == on);
      CHECK((option_of(served->native_handle(), SOL_SOCKET, SO_KEEPALIVE) != 0) == on);
      CHECK((::fcntl(served->native_handle(), F_GETFD) & FD_CLOEXEC) != 0);
    });
  }
  const coax::listen_options by_default;
  CHECK((by_default.nodelay && !by_default.keepalive && !by_default.reuse_port &&
         !by_default.v6only));
}

TEST_CASE("v6only decides whether an IPv6 listener takes IPv4 connections") {
  if (!has_ipv6()) {
    WARN("no IPv6 on this machine: not tested");
    return;
  }
  on_each_backend_and_simulation([]() -> task<> {
    for (const bool v6only : {false, true}) {
      coax::listen_options how;
      how.v6only = v6only;
      auto from = listener::bind("[::]:0", how);
      REQUIRE(from);
      const auto port = from->local_endpoint().value().port();
      co_await check_serves(*from, coax::endpoint::ip("::1", port).value());
      auto over_v4 = co_await coax::connect(coax::endpoint::ip("127.0.0.1", port).value());
      if (v6only)
        CHECK(over_v4.error() == std::errc::connection_refused);
      else
        CHECK(over_v4);
    }
  });
}

TEST_CASE("a listener on a Unix path serves, and leaves its file when it is closed") {
  const scratch_directory scratch;
  on_each_backend([&]() -> task<> {
    const std::string text = "unix:" + scratch.socket_path();
    {
      auto from = listener::bind(text);
      REQUIRE(from);
      CHECK(from->local_endpoint().value().to_string() == text);
      co_await check_serves(*from, coax::endpoint::parse(text).value());
      CHECK(listener::bind(text).error() == std::errc::address_in_use);
    }
    struct stat status{};
    CHECK(::stat(scratch.socket_path().c_str(), &status) ==
          0);  // it stays, for its owner to remove
    CHECK(listener::bind(text).error() == std::errc::address_in_use);
    auto nobody = co_await coax::connect(coax::endpoint::parse(text).value());
    CHECK(nobody.error() == std::errc::connection_refused);
    ::unlink(scratch.socket_path().c_str());
  });
}

TEST_CASE("a listener on a name in the abstract namespace serves") {
  on_each_backend([]() -> task<> {
    const std::string text = "unix:@coax-listener-test-" + std::to_string(::getpid());
    auto from = listener::bind(text);
    REQUIRE(from);
    co_await check_serves(*from, coax::endpoint::parse(text).value());
  });
}

TEST_CASE("many connections are accepted in the order in which they came") {
  on_each_backend([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    std::vector<coax::unique_fd> clients;
    for (char c = 'a'; c <= 'z'; ++c) {
      clients.push_back(raw_client_of(from->native_handle()));
      REQUIRE(::send(clients.back().get(), &c, 1, 0) == 1);
    }
    std::string order;
    for (std::size_t i = 0; i < clients.size(); ++i) {
      auto served = co_await from->accept();
      REQUIRE(served);
      order += co_await read_text(*served);
    }
    CHECK(order == "abcdefghijklmnopqrstuvwxyz");
  });
}

TEST_CASE("a closed listener fails accept with bad_file_descriptor") {
  on_each_backend_and_simulation([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    from->close();
    CHECK(!from->is_open());
    auto none = co_await from->accept();
    CHECK(none.error() == std::errc::bad_file_descriptor);
  });
}

TEST_CASE(
    "a listener that is closed or given another's socket tells the task that accepts, and refuses the next") {
  for (const bool given_another : {false, true}) {
    for (int given = 1; given < 4; ++given) {
      on_each_backend_and_simulation([&]() -> task<> {
        auto from = listener::bind("127.0.0.1:0");
        REQUIRE(from);
        const auto where = from->local_endpoint().value();
        accepted got;
        co_await coax::with_scope([&](coax::scope& s) -> task<> {
          s.spawn(accept_one, std::ref(*from), std::ref(got));
          co_await turns(given);
          if (given_another)
            *from = listener::bind("127.0.0.1:0").value();
          else
            from->close();
          co_await turns(10);
          REQUIRE(got);
        });
        CHECK(got->error() == std::errc::operation_canceled);
        auto refused = co_await coax::connect(where);
        CHECK(refused.error() == std::errc::connection_refused);
      });
    }
  }
}

TEST_CASE("a second task that accepts is turned away at once, and the first goes on") {
  on_each_backend([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    accepted first;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(*from), std::ref(first));
      for (int i = 0; i < 3; ++i) {
        co_await turns(1);
        auto second = co_await from->accept();
        CHECK(second.error() == std::errc::device_or_resource_busy);
      }
      CHECK(!first);
      const coax::unique_fd client = raw_client_of(from->native_handle());
      while (!first) co_await coax::yield();
    });
    CHECK(*first);
  });
}

TEST_CASE("an accept that was cancelled keeps its place until it has unwound") {
  on_each_backend_and_simulation([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    accepted first;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accept_one, std::ref(*from), std::ref(first));
      co_await turns();
      s.cancel();
      auto second = co_await coax::shield(from->accept());
      CHECK(second.error() == std::errc::device_or_resource_busy);
    });
    CHECK(!first);
    auto third = co_await coax::within(0s, from->accept());
    CHECK(third.error() == std::errc::timed_out);
  });
}

TEST_CASE("an accept that timed out leaves the listener as it was") {
  on_each_backend([]() -> task<> {
    auto from = listener::bind("127.0.0.1:0");
    REQUIRE(from);
    for (int i = 0; i < 3; ++i) {
      auto none = co_await coax::within(1ms, from->accept());
      CHECK(none.error() == std::errc::timed_out);
    }
    co_await check_serves(*from, from->local_endpoint().value());
    const coax::unique_fd client = raw_client_of(from->native_handle());
    auto at_once = co_await coax::within(0ms, from->accept());  // ready: it beats its timeout
    CHECK(at_once);
  });
}

TEST_CASE("a connection that comes together with the cancellation is accepted later, or closed") {
  on_each_backend([]() -> task<> {
    for (int round = 0; round < 60; ++round) {
      auto from = listener::bind("127.0.0.1:0");
      REQUIRE(from);
      accepted got;
      coax::unique_fd raw;
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn(accept_one, std::ref(*from), std::ref(got));
        co_await turns(2);
        raw = raw_client_of(from->native_handle());
        co_await turns(round % 3);
        co_await s.join_within(0ms);
      });
      if (!got) co_await accept_one(*from, got);  // the kernel kept it
      REQUIRE(*got);
      auto sent = co_await (*got)->write("x");
      CHECK(sent);
      stream client = adopted(std::move(raw));
      const std::string heard = co_await read_text(client);
      CHECK(heard == "x");
    }
  });
}

TEST_CASE("a listener that is given another's socket serves connections of that kind") {
  /// After which the reactor of a TCP stream need not ask for more, and that of a Unix socket has to.
  class short_reads final : public coax::syscalls {
   public:
    int recv(int fd, void* into, std::size_t, int flags) noexcept override {
      return syscalls::recv(fd, into, 1, flags);
    }
  } kernel;
  const auto reactor = reactor_of(coax::backend::epoll, kernel);
  run_clean(*reactor, []() -> task<> {
    auto from = listener::bind("127.0.0.1:0").value();
    from = listener::bind("unix:@coax-listener-given-" + std::to_string(::getpid())).value();
    const coax::unique_fd client = raw_client_of(from.native_handle());
    auto served = co_await from.accept();
    REQUIRE(served);
    std::array<std::byte, 8> some;
    auto none = co_await coax::within(0ms, served->read(some));  // from now on epoll tells
    CHECK(none.error() == std::errc::timed_out);
    REQUIRE(::send(client.get(), "ab", 2, 0) == 2);
    for (const char* each : {"a", "b"}) {
      const std::string got = co_await read_text(*served);
      CHECK(got == each);
    }
  });
}
