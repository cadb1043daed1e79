#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/resolve.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/within.hpp>

#include "../process/across_threads.hpp"
#include "pairs.hpp"

#include <netdb.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

// Names, and connections to those who have one. Nothing here asks a name server.

namespace {

using namespace std::chrono_literals;
using coax::endpoint;
using coax::listener;
using coax::stream;
using coax::task;

/// A system with names of its own.
class names final : public coax::syscalls {
 public:
  std::optional<int> look_up(const std::string& host,
                             std::vector<sockaddr_storage>& found) override {
    ++asked;
    if (host == "busy.example") return EAI_AGAIN;
    const auto known = addresses.find(host);
    if (known == addresses.end()) return EAI_NONAME;
    for (const std::string& each : known->second) {
      const endpoint at = endpoint::ip(each, 12345).value();
      std::memcpy(&found.emplace_back(), at.data(), at.size());
    }
    return 0;
  }
  std::map<std::string, std::vector<std::string>> addresses;
  int asked = 0;
};

/// `body(names&)` on each backend, where `names` are all that is known.
template <class Body>
void with_names(const Body& body) {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    names known;
    const auto reactor = reactor_of(b, known);
    run_clean(*reactor, [&] { return body(known); });
  }
}

std::vector<std::string> texts(const std::vector<endpoint>& endpoints) {
  std::vector<std::string> all;
  for (const endpoint& each : endpoints) all.push_back(each.to_string());
  return all;
}

/// Listens on `address` at a port that is free there, or at `port`.
listener listens(const char* address, std::uint16_t port = 0) {
  return listener::bind(endpoint::ip(address, port).value()).value();
}

/// What getaddrinfo(3) says of `host`: 0 when it has an address. A machine without /etc/hosts may not even know itself.
int asked_directly(const char* host, std::vector<std::string>& addresses) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* all = nullptr;
  const int answer = ::getaddrinfo(host, nullptr, &wanted, &all);
  if (answer != 0) return answer;
  for (const addrinfo* each = all; each != nullptr; each = each->ai_next) {
    std::array<char, NI_MAXHOST> text{};
    REQUIRE(::getnameinfo(each->ai_addr, each->ai_addrlen, text.data(), text.size(), nullptr, 0,
                          NI_NUMERICHOST) == 0);
    if (std::count(addresses.begin(), addresses.end(), text.data()) == 0)
      addresses.emplace_back(text.data());
  }
  ::freeaddrinfo(all);
  return 0;
}

task<> accepts_one(listener& from) {
  auto conn = co_await from.accept();
  static_cast<void>(conn);
}

}  // namespace

TEST_CASE("resolve gives the addresses of a name, each once, with the port") {
  std::vector<std::string> addresses;
  const int answer = asked_directly("localhost", addresses);
  on_each_backend([&]() -> task<> {
    auto found = co_await coax::resolve("localhost", 9000);
    if (answer != 0) {
      CHECK(found.error() == coax::resolve_error(answer));
      co_return;
    }
    REQUIRE(found);
    CHECK(found->size() == addresses.size());
    for (const std::string& each : addresses)
      CHECK(std::count(found->begin(), found->end(), endpoint::ip(each, 9000).value()) == 1);
  });
}

TEST_CASE("resolve takes numeric addresses as they are") {
  with_names([](names& known) -> task<> {
    for (const char* const address : {"127.0.0.1", "::1", "fe80::1%lo", "0.0.0.0"}) {
      auto found = co_await coax::resolve(address, 80);
      REQUIRE(found);
      CHECK(*found == std::vector<endpoint>{endpoint::ip(address, 80).value()});
    }
    CHECK(known.asked == 0);
  });
}

TEST_CASE("a port that cannot be is refused, and is not another one") {
  on_each_backend([]() -> task<> {
    for (const int port : {-1, 65'536, 70'000}) {
      CHECK(endpoint::ip("127.0.0.1", port).error() == coax::errc::bad_port);
      for (const char* const host : {"127.0.0.1", "localhost"}) {
        auto none = co_await coax::resolve(host, port);
        CHECK(none.error() == coax::errc::bad_port);
        auto nobody = co_await coax::connect(host, port);
        CHECK(nobody.error() == coax::errc::bad_port);
      }
    }
    CHECK(endpoint::ip("127.0.0.1", 65'535).value().port() == 65'535);
  });
}

TEST_CASE("resolve says why a name has no address") {
  on_each_backend([]() -> task<> {
    auto none = co_await coax::resolve("", 80);
    CHECK(none.error() == coax::resolve_error(EAI_NONAME));
    auto cut = co_await coax::resolve(std::string("localhost\0.example", 18), 80);
    CHECK(cut.error() == coax::resolve_error(EAI_NONAME));
    // Too long for a question to a name server, so the answer comes from the C library.
    auto too_long = co_await coax::resolve(std::string(300, 'a'), 80);
    REQUIRE_FALSE(too_long);
    CHECK(too_long.error().category() == coax::resolve_error(EAI_NONAME).category());
    auto no_scope = co_await coax::resolve("fe80::1%nosuchinterface", 80);
    CHECK(no_scope.error() == std::errc::no_such_device);
  });
}

TEST_CASE("errors of resolve have the words of getaddrinfo, and are not to be taken for errno") {
  for (const int code : {EAI_NONAME, EAI_AGAIN, EAI_FAIL, EAI_MEMORY, EAI_SERVICE}) {
    const std::error_code error = coax::resolve_error(code);
    CHECK(error);
    CHECK(error.message() == ::gai_strerror(code));
    CHECK(error.category().name() == std::string("getaddrinfo"));
    CHECK(error != std::error_code(code, std::system_category()));
  }
}

TEST_CASE("a system with names of its own answers at once") {
  with_names([](names& known) -> task<> {
    known.addresses = {{"two.example", {"10.0.0.1", "fd00::1", "10.0.0.1"}}, {"none.example", {}}};
    auto two = co_await coax::resolve("two.example", 81);
    REQUIRE(two);
    CHECK(texts(*two) == std::vector<std::string>{"10.0.0.1:81", "[fd00::1]:81"});
    auto none = co_await coax::resolve("none.example", 81);
    CHECK(none.error() == coax::resolve_error(EAI_NONAME));
    auto unknown = co_await coax::resolve("localhost", 81);
    CHECK(unknown.error() == coax::resolve_error(EAI_NONAME));
    auto busy = co_await coax::resolve("busy.example", 81);
    CHECK(busy.error() == coax::resolve_error(EAI_AGAIN));
  });
}

TEST_CASE("resolve under within, in a race and cancelled leaves nothing behind") {
  on_each_backend([]() -> task<> {
    auto in_time = co_await coax::within(1h, coax::resolve("localhost", 80));
    CHECK((in_time || in_time.error() != std::errc::timed_out));
    auto at_once = co_await coax::within(0ms, coax::resolve("localhost", 80));
    CHECK((at_once || at_once.error() == std::errc::timed_out));
    auto raced = co_await coax::race(coax::resolve("localhost", 80), coax::yield());
    static_cast<void>(raced);
    co_await coax::with_scope([](coax::scope& s) -> task<> {
      for (int i = 0; i < 50; ++i)
        s.spawn([]() -> task<> {
          auto found = co_await coax::resolve("localhost", 80);
          static_cast<void>(found);
        });
      co_await coax::yield();
      s.cancel();
    });
    co_await until_pool_is_done();  // what was given up goes on, with files open
  });
}

TEST_CASE("connect takes a name and a port") {
  on_each_backend_and_simulation([]() -> task<> {
    auto from = listens("127.0.0.1");
    const std::uint16_t port = from.local_endpoint().value().port();
    std::vector<std::string> hosts{"127.0.0.1"};
    std::vector<std::string> addresses;
    if (coax::reactor::current().backend() == "simulation" ||
        asked_directly("localhost", addresses) == 0)
      hosts.push_back("localhost");
    for (const std::string& host : hosts) {
      auto client = co_await coax::within(10s, coax::connect(host, port));
      REQUIRE(client);
      auto served = co_await from.accept();
      REQUIRE(served);
      auto sent = co_await client->write("hello");
      REQUIRE(sent);
      const std::string got = co_await read_text(*served);
      CHECK(got == "hello");
    }
  });
}

TEST_CASE("connect tries the addresses of a name in order until one answers") {
  with_names([](names& known) -> task<> {
    auto from = listens("127.0.0.3");
    const endpoint there = from.local_endpoint().value();
    known.addresses["three.example"] = {"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"};
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(accepts_one, std::ref(from));
      auto client = co_await coax::within(10s, coax::connect("three.example", there.port()));
      REQUIRE(client);
      CHECK(client->remote_endpoint().value() == there);
    });
  });
}

TEST_CASE("the error of connect is that of the address that was tried last") {
  with_names([](names& known) -> task<> {
    auto taken = listens("127.0.0.1");
    const std::uint16_t port = taken.local_endpoint().value().port();
    known.addresses["last.example"] = {"127.0.0.2", "255.255.255.255"};
    known.addresses["first.example"] = {"255.255.255.255", "127.0.0.2"};
    auto last = co_await coax::connect("last.example", port);
    REQUIRE_FALSE(last);
    CHECK(last.error() != std::errc::connection_refused);
    auto first = co_await coax::connect("first.example", port);
    CHECK(first.error() == std::errc::connection_refused);
    auto unknown = co_await coax::connect("unknown.example", port);
    CHECK(unknown.error() == coax::resolve_error(EAI_NONAME));
  });
}

TEST_CASE("an address that does not answer does not keep the next one from being tried") {
  on_each_backend([]() -> task<> {
    // Its backlog is full: it answers nobody.
    const coax::unique_fd full(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in any = loopback();
    REQUIRE(::bind(full.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0);
    REQUIRE(::listen(full.get(), 0) == 0);
    const coax::unique_fd waiting = raw_client_of(full.get());
    sockaddr_in at{};
    socklen_t size = sizeof at;
    REQUIRE(::getsockname(full.get(), reinterpret_cast<sockaddr*>(&at), &size) == 0);
    const endpoint silent = endpoint::from_sockaddr(reinterpret_cast<const sockaddr*>(&at), size);
    auto from = listens("127.0.0.1");
    const endpoint answers = from.local_endpoint().value();
    const std::vector<endpoint> three{silent, silent, answers};
    auto client = co_await coax::detail::connect_to_first(three, 1ms);
    REQUIRE(client);
    CHECK(client->remote_endpoint().value() == answers);
    const std::vector<endpoint> two{silent, answers};
    auto late = co_await coax::within(1ms, coax::detail::connect_to_first(two, 1h));
    CHECK(late.error() == std::errc::timed_out);
  });
}

TEST_CASE("a host is copied: the text it was given as may be gone when the task runs") {
  on_each_backend([]() -> task<> {
    auto later = [] {
      std::string host = "127.0.0.1";
      host += "";
      return coax::resolve(host, 80);
    }();
    auto found = co_await std::move(later);
    REQUIRE(found);
    CHECK(texts(*found) == std::vector<std::string>{"127.0.0.1:80"});
  });
}
