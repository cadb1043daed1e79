#include <coax/net/stream.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>

#include "pairs.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// What stream::receive gives, in which order, and what is left when it ends.

namespace {

using namespace std::chrono_literals;
using coax::errc;
using coax::leased_buffer;
using coax::stream;
using coax::task;

/// Receives once; what came as text, or the error's message in angle brackets.
task<std::string> receive_text(stream& from) {
  auto lease = co_await coax::within(patience, from.receive());
  co_return lease ? std::string(text_of(lease->bytes())) : "<" + lease.error().message() + ">";
}

/// Receives until that fails, and gives why it did.
task<std::error_code> receive_to_end(stream& from, std::string& into) {
  while (true) {
    auto lease = co_await coax::within(patience, from.receive());
    if (!lease) co_return lease.error();
    into.append(text_of(lease->bytes()));
  }
}
task<> see(stream& s, std::string& bytes, std::error_code& why) {
  why = co_await receive_to_end(s, bytes);
}

/// The kernel below the test, which may be a simulated one.
coax::syscalls& here() { return coax::syscalls::current(); }
bool is_simulated() { return here().first_descriptor() > 0; }

void send_now(const coax::unique_fd& to, std::string_view text, int flags = 0) {
  REQUIRE(here().send(to.get(), text.data(), text.size(), MSG_NOSIGNAL | flags) ==
          std::ssize(text));
}

/// Sends without waiting until the kernel takes no more. Result: what it took.
std::size_t flood(int fd, std::span<const std::byte> from) {
  std::size_t total = 0;
  while (total < from.size()) {
    const int n = here().send(fd, from.data() + total, from.size() - total, MSG_DONTWAIT);
    if (n <= 0) break;
    total += static_cast<std::size_t>(n);
  }
  return total;
}

/// As raw_connected, on the kernel below the test.
raw_pair connected_here(transport t) {
  if (!is_simulated()) return raw_connected(t);
  const coax::unique_fd listening(here().socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in where = loopback();
  auto* const to = reinterpret_cast<sockaddr*>(&where);
  socklen_t size = sizeof where;
  REQUIRE(here().bind(listening.get(), to, size) == 0);
  REQUIRE(here().listen(listening.get(), 1) == 0);
  REQUIRE(here().getsockname(listening.get(), to, &size) == 0);
  coax::unique_fd far(here().socket(AF_INET, SOCK_STREAM, 0));
  REQUIRE(here().connect(far.get(), to, size) == -EINPROGRESS);
  coax::unique_fd near(here().accept(listening.get(), 0));
  REQUIRE(near);
  return {std::move(near), std::move(far)};
}

/// A stream and the socket of its peer, who is not on coax.
class with_peer {
 public:
  explicit with_peer(raw_pair both)
      : near(adopted(std::move(both.near))), far(std::move(both.far)) {}
  explicit with_peer(transport t) : with_peer(connected_here(t)) {}
  stream near;
  coax::unique_fd far;
};

template <class Body>
void on_each_transport(Body&& body) {
  for (const transport t : {transport::tcp, transport::unix_socket}) {
    INFO("over " << name_of(t));
    on_each_backend([&]() -> task<> { return body(t); });
  }
  on_simulation([&]() -> task<> { return body(transport::tcp); });
}

}  // namespace

TEST_CASE("receive gives what was sent, in a buffer of the reactor's") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    for (int i = 0; i < 100; ++i) {
      const std::string text = "message " + std::to_string(i);
      auto sent = co_await far.write(text);
      REQUIRE(sent);
      const std::string got = co_await receive_text(near);
      REQUIRE(got == text);
    }
  });
}

TEST_CASE("a receive waits until something comes") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    for (int round = 0; round < 3; ++round) {
      std::string got;
      auto body = [&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> { got = co_await receive_text(near); });
        co_await turns(3);
        CHECK(got.empty());
        auto sent = co_await far.write("abc");
        REQUIRE(sent);
      };
      co_await coax::with_scope(body);
      CHECK(got == "abc");
    }
  });
}

TEST_CASE("a lease can be moved, kept, changed, and written out again without a copy") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await far.write("abc");
    REQUIRE(sent);
    auto first = co_await near.receive();
    REQUIRE(first);
    const std::byte* where = first->bytes().data();
    leased_buffer kept = std::move(*first);
    CHECK(first->bytes().empty());
    CHECK(kept.bytes().data() == where);
    sent = co_await far.write("def");
    REQUIRE(sent);
    auto second = co_await near.receive();
    REQUIRE(second);
    CHECK(text_of(kept.bytes()) == "abc");
    CHECK(text_of(second->bytes()) == "def");
    kept.bytes()[0] = std::byte{'A'};
    auto back = co_await near.write(kept.bytes());
    REQUIRE(back);
    const std::string got = co_await receive_text(far);
    CHECK(got == "Abc");
    kept = std::move(*second);
    CHECK(text_of(kept.bytes()) == "def");
    leased_buffer none;
    CHECK(none.bytes().empty());
  });
}

TEST_CASE("a lease can be given to another task") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::string got;
    auto keep = [&](leased_buffer lease) -> task<> {
      co_await turns(3);
      got.append(text_of(lease.bytes()));
    };
    auto body = [&](coax::scope& s) -> task<> {
      for (const char* text : {"a", "b", "c"}) {
        auto sent = co_await far.write(std::string_view(text));
        REQUIRE(sent);
        auto lease = co_await near.receive();
        REQUIRE(lease);
        s.spawn(keep, std::move(*lease));
      }
    };
    co_await coax::with_scope(body);
    CHECK(got == "abc");
  });
}

TEST_CASE("a lease outlives its stream and its run") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    std::vector<leased_buffer> kept;
    {
      const auto reactor = reactor_of(b);
      run_clean(*reactor, [&]() -> task<> {
        with_peer both(transport::tcp);
        for (int i = 0; i < 5; ++i) {
          send_now(both.far, "still here");
          auto lease = co_await both.near.receive();
          REQUIRE(lease);
          kept.push_back(std::move(*lease));
        }
      });
    }
    for (const leased_buffer& lease : kept) CHECK(text_of(lease.bytes()) == "still here");
  }
}

TEST_CASE("a stream that outlives its run brings along what was received ahead") {
  for (const coax::backend first : backends_here())
    for (const coax::backend second : backends_here())
      for (const bool ended : {false, true}) {
        INFO("on " << name_of(first) << ", then on " << name_of(second));
        std::optional<with_peer> both;
        const auto one = reactor_of(first);
        coax::detail::run_on(*one, [&]() -> task<> {
          both.emplace(transport::tcp);
          send_now(both->far, "first");
          const std::string got = co_await receive_text(both->near);
          CHECK(got == "first");
          send_now(both->far, "second");
          if (ended) both->far.reset();
          co_await turns(5);
        });
        const auto other = reactor_of(second);
        coax::detail::run_on(*other, [&]() -> task<> {
          std::array<std::byte, 3> three;
          auto some = co_await coax::within(patience, both->near.read_exactly(three));
          REQUIRE(some);
          CHECK(text_of(three) == "sec");
          std::string got = co_await receive_text(both->near);
          CHECK(got == "ond");
          if (ended) {
            auto end = co_await coax::within(patience, both->near.receive());
            CHECK(end.error() == errc::end_of_stream);
          } else {
            send_now(both->far, "third");
            got = co_await receive_text(both->near);
            CHECK(got == "third");
          }
        });
      }
}

TEST_CASE("what was cut off in one run of a stream stays so in the next") {
  for (const coax::backend first : backends_here())
    for (const coax::backend second : backends_here()) {
      INFO("on " << name_of(first) << ", then on " << name_of(second));
      std::optional<with_peer> both;
      const auto one = reactor_of(first);
      coax::detail::run_on(*one, [&]() -> task<> {
        both.emplace(transport::tcp);
        send_now(both->far, "half of ");
        std::array<std::byte, 100> much;
        auto got = co_await coax::within(1ms, both->near.read_exactly(much));
        CHECK(got.error() == std::errc::timed_out);
        const std::vector<std::byte> more_than_fits(64 * 1024 * 1024);
        auto sent = co_await coax::within(1ms, both->near.write(more_than_fits));
        CHECK(sent.error() == std::errc::timed_out);
      });
      const auto other = reactor_of(second);
      coax::detail::run_on(*other, [&]() -> task<> {
        send_now(both->far, "a message");
        std::array<std::byte, 100> some;
        auto got = co_await coax::within(patience, both->near.read(some));
        CHECK(got.error() == errc::transfer_cut);
        auto sent = co_await coax::within(patience, both->near.write("x"));
        CHECK(sent.error() == errc::transfer_cut);
        both.reset();
      });
    }
}

TEST_CASE("what a stream has received ahead goes with it when it is closed after its run") {
  for (const coax::backend b : backends_here()) {
    const int before = open_descriptors();
    for (int i = 0; i < 3; ++i) {
      std::optional<with_peer> both;
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, [&]() -> task<> {
        both.emplace(transport::tcp);
        send_now(both->far, "first");
        const std::string got = co_await receive_text(both->near);
        CHECK(got == "first");  // and nothing of the one before it
        send_now(both->far, "second");
        co_await turns(5);
      });
    }
    CHECK(open_descriptors() == before);
  }
}

TEST_CASE("what was received ahead goes to later reads, in order") {
  on_each_transport([](transport t) -> task<> {
    with_peer both(t);
    send_now(both.far, "first");
    const std::string first = co_await receive_text(both.near);
    CHECK(first == "first");
    send_now(both.far, "0123456789");
    co_await turns(3);  // long enough for a multishot receive to have taken it
    std::array<std::byte, 4> four;
    auto some = co_await both.near.read(four);
    REQUIRE(some);
    CHECK(text_of(std::span(four).first(*some)) == "0123");
    auto rest = co_await both.near.receive();
    REQUIRE(rest);
    CHECK(text_of(rest->bytes()) == "456789");
    send_now(both.far, "ab");
    co_await turns(3);
    auto body = [&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto all = co_await coax::within(patience, both.near.read_exactly(four));
        REQUIRE(all);
      });
      co_await turns(3);
      send_now(both.far, "cdef");
    };
    co_await coax::with_scope(body);
    CHECK(text_of(four) == "abcd");
    const std::string last = co_await receive_text(both.near);
    CHECK(last == "ef");
  });
}

TEST_CASE("on io_uring what comes next is fetched ahead; on epoll it stays where it is") {
  for (const coax::backend b : backends_here()) {
    const auto reactor = reactor_of(b);
    run_clean(*reactor, [&]() -> task<> {
      with_peer both(transport::tcp);
      send_now(both.far, "first");
      const std::string first = co_await receive_text(both.near);
      CHECK(first == "first");
      send_now(both.far, "second");
      co_await turns(5);
      std::array<char, 16> some;
      const ssize_t left =
          ::recv(both.near.native_handle(), some.data(), some.size(), MSG_PEEK | MSG_DONTWAIT);
      CHECK(left == (b == coax::backend::io_uring ? -1 : 6));
      const std::string second = co_await receive_text(both.near);
      CHECK(second == "second");
    });
  }
}

TEST_CASE("the end is seen after the bytes that came with it") {
  for (const bool waits_first : {false, true}) {
    INFO("receiver " << (waits_first ? "waits" : "comes later"));
    on_each_transport([&](transport t) -> task<> {
      for (int i = 0; i < 200; ++i) {
        with_peer both(t);
        std::string bytes;
        std::error_code why;
        auto body = [&](coax::scope& s) -> task<> {
          if (waits_first) {
            s.spawn(see, std::ref(both.near), std::ref(bytes), std::ref(why));
            co_await turns(2);
          }
          send_now(both.far, "the last words", MSG_MORE);
          both.far.reset();  // in one segment with what MSG_MORE held back
          if (!waits_first) s.spawn(see, std::ref(both.near), std::ref(bytes), std::ref(why));
        };
        co_await coax::with_scope(body);
        REQUIRE(bytes == "the last words");
        REQUIRE(why == errc::end_of_stream);
        // It stays so.
        auto again = co_await both.near.receive();
        REQUIRE(again.error() == errc::end_of_stream);
        std::array<std::byte, 1> one;
        auto read = co_await both.near.read(one);
        REQUIRE(read.error() == errc::end_of_stream);
      }
    });
  }
}

TEST_CASE("bytes and the end that came before anybody asks are given to a read") {
  on_each_transport([](transport t) -> task<> {
    with_peer both(t);
    send_now(both.far, "x");
    const std::string first = co_await receive_text(both.near);
    CHECK(first == "x");
    send_now(both.far, "yz");
    co_await turns(2);
    both.far.reset();
    co_await turns(5);
    std::string rest;
    const std::error_code why = co_await read_to_end(both.near, rest);
    CHECK(rest == "yz");
    CHECK(why == errc::end_of_stream);
  });
}

TEST_CASE("a reset is seen by receive after the bytes that came before it") {
  for (const int order : {0, 1, 2})
    on_each_backend_and_simulation([&]() -> task<> {
      for (int i = 0; i < 100; ++i) {
        with_peer both(transport::tcp);
        std::string bytes;
        std::error_code why;
        auto body = [&](coax::scope& s) -> task<> {
          if (order == 0) {
            s.spawn(see, std::ref(both.near), std::ref(bytes), std::ref(why));
            co_await turns(2);
          }
          send_now(both.far, "x");
          if (order == 1) {
            bytes = co_await receive_text(both.near);
            send_now(both.far, "y");
          }
          reset_connection(std::move(both.far));
          if (order != 0) {
            co_await turns(i % 4);
            s.spawn(see, std::ref(both.near), std::ref(bytes), std::ref(why));
          }
        };
        co_await coax::with_scope(body);
        REQUIRE(bytes == (order == 1 ? "xy" : "x"));
        REQUIRE(why == std::errc::connection_reset);
        auto again = co_await coax::within(patience, both.near.receive());
        REQUIRE(again.error() == std::errc::connection_reset);
        std::array<std::byte, 1> one;
        auto read = co_await coax::within(patience, both.near.read(one));
        REQUIRE(read.error() == std::errc::connection_reset);
      }
    });
}

TEST_CASE("one task may receive at a time") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    std::string got;
    auto body = [&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> { got = co_await receive_text(near); });
      co_await turns(2);
      auto second = co_await near.receive();
      CHECK(second.error() == std::errc::device_or_resource_busy);
      std::array<std::byte, 1> one;
      auto read = co_await near.read(one);
      CHECK(read.error() == std::errc::device_or_resource_busy);
      auto sent = co_await far.write("abc");
      REQUIRE(sent);
    };
    co_await coax::with_scope(body);
    CHECK(got == "abc");
  });
}

TEST_CASE("a receive that times out or is cancelled loses no byte") {
  on_each_transport([](transport t) -> task<> {
    with_peer both(t);
    std::string seen;
    std::string sent;
    for (int i = 0; i < 200; ++i) {
      const std::string text = std::to_string(i) + ' ';
      std::optional<std::string> got;
      auto body = [&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> {
          auto lease = co_await both.near.receive();
          REQUIRE(lease);
          got = std::string(text_of(lease->bytes()));
        });
        co_await turns(i % 3);
        send_now(both.far, text);
        sent += text;
        co_await turns(i / 3 % 3);
        co_await s.join_within(0ms);
      };
      co_await coax::with_scope(body);
      if (got) seen += *got;
      auto now_or_never = co_await coax::within(0ms, both.near.receive());
      if (now_or_never) seen += text_of(now_or_never->bytes());
    }
    both.far.reset();
    const std::error_code why = co_await receive_to_end(both.near, seen);
    CHECK(why == errc::end_of_stream);
    CHECK(seen == sent);
  });
}

TEST_CASE("the loser of a race between two receives keeps its bytes") {
  on_each_backend_and_simulation([]() -> task<> {
    for (int i = 0; i < 50; ++i) {
      with_peer one(transport::tcp);
      with_peer two(transport::unix_socket);
      auto body = [&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> {
          co_await turns(i % 3);
          send_now(one.far, "one");
          send_now(two.far, "two");
        });
        auto ends = co_await coax::race(one.near.receive(), two.near.receive());
        if (auto& first = std::get<0>(ends)) {
          REQUIRE(*first);
          CHECK(text_of((*first)->bytes()) == "one");
        } else {
          const std::string left = co_await receive_text(one.near);
          CHECK(left == "one");
        }
        if (auto& second = std::get<1>(ends)) {
          REQUIRE(*second);
          CHECK(text_of((*second)->bytes()) == "two");
        } else {
          const std::string left = co_await receive_text(two.near);
          CHECK(left == "two");
        }
      };
      co_await coax::with_scope(body);
    }
  });
}

TEST_CASE("a receive that waits goes on when its stream is moved") {
  on_each_pair([](stream& near, stream& far) -> task<> {
    auto sent = co_await far.write("a");
    REQUIRE(sent);
    std::string got = co_await receive_text(near);
    auto body = [&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> { got += co_await receive_text(near); });
      co_await turns(2);
      stream moved = std::move(near);
      co_await turns(2);
      near = std::move(moved);
      auto more = co_await far.write("b");
      REQUIRE(more);
    };
    co_await coax::with_scope(body);
    CHECK(got == "ab");
    // And what was received ahead moves along.
    sent = co_await far.write("c");
    REQUIRE(sent);
    co_await turns(3);
    stream elsewhere = std::move(near);
    got = co_await receive_text(elsewhere);
    CHECK(got == "c");
  });
}

TEST_CASE("what comes while nobody receives is bounded, and nothing of it is lost") {
  on_each_transport([](transport t) -> task<> {
    const std::vector<std::byte> much = pattern(24u << 20, 3);
    with_peer both(t);
    std::string seen;
    send_now(both.far, "x");
    const std::string first = co_await receive_text(both.near);
    CHECK(first == "x");
    std::size_t taken = 0;
    for (int quiet = 0; quiet < 20;) {
      const std::size_t more = flood(both.far.get(), std::span(much).subspan(taken));
      taken += more;
      quiet = more == 0 ? quiet + 1 : 0;
      co_await turns(1);
    }
    // The buffers of two sockets, and what one batch of the kernel may bring.
    CHECK(taken < much.size());
    both.far.reset();
    const std::error_code why = co_await receive_to_end(both.near, seen);
    CHECK(why == errc::end_of_stream);
    REQUIRE(seen.size() == taken);
    CHECK((text_of(std::span(much).first(taken)) == seen));
  });
}

TEST_CASE("receives cancelled under a flood lose nothing") {
  on_each_transport([](transport t) -> task<> {
    const std::vector<std::byte> much = pattern(8u << 20, 4);
    with_peer both(t);
    std::string seen;
    std::size_t taken = 0;
    std::mt19937 random(7);
    while (taken < much.size() || seen.size() < taken) {
      taken += flood(both.far.get(),
                     std::span(much).subspan(
                         taken, std::min<std::size_t>(much.size() - taken, random() % 400'000)));
      auto body = [&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> {
          while (true) {
            auto lease = co_await both.near.receive();
            REQUIRE(lease);
            seen.append(text_of(lease->bytes()));
          }
        });
        co_await turns(static_cast<int>(random() % 4));
        s.cancel();
      };
      co_await coax::with_scope(body);
    }
    REQUIRE(seen.size() == much.size());
    CHECK((text_of(much) == seen));
  });
}

TEST_CASE("closing a stream that receives ends the receive, and its peer sees the end") {
  on_each_transport([](transport t) -> task<> {
    for (int i = 0; i < 20; ++i) {
      with_peer both(t);
      send_now(both.far, "x");
      const std::string first = co_await receive_text(both.near);
      CHECK(first == "x");
      std::error_code why;
      auto body = [&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> {
          auto lease = co_await both.near.receive();
          why = lease.error();
        });
        co_await turns(2);
        if (i % 2 == 0) send_now(both.far, "too late");
        stream closed = std::move(both.near);
      };
      co_await coax::with_scope(body);
      CHECK(why == std::errc::operation_canceled);
      co_await turns(5);
      char byte = 0;
      const int n = here().recv(both.far.get(), &byte, 1, MSG_DONTWAIT);
      CHECK((n == 0 || n == -ECONNRESET));
    }
  });
}

TEST_CASE("bytes never reach the connection that has the same number next") {
  on_each_transport([](transport t) -> task<> {
    int reused = 0;
    int last = -1;
    for (int i = 0; i < 100; ++i) {
      with_peer both(t);
      reused += both.near.native_handle() == last;
      last = both.near.native_handle();
      const std::string mine = "connection " + std::to_string(i);
      send_now(both.far, mine);
      const std::string got = co_await receive_text(both.near);
      REQUIRE(got == mine);
      // Left behind: unread bytes, and a multishot receive where there is one.
      send_now(both.far, "unread");
      co_await turns(i % 4);
      stream closed = std::move(both.near);
      if (i % 3 == 0) {
        closed = adopted(std::move(connected_here(t).near));
        co_await turns(3);
      }
    }
    CHECK(reused > 0);
  });
}

TEST_CASE("an orderly close after receive sends the last reply and drops what still comes") {
  on_each_transport([](transport t) -> task<> {
    with_peer both(t);
    send_now(both.far, "request");
    const std::string request = co_await receive_text(both.near);
    CHECK(request == "request");
    send_now(both.far, "more that nobody wants");
    co_await turns(3);
    auto sent = co_await both.near.write("the last reply");
    REQUIRE(sent);
    auto body = [&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        auto closed = co_await both.near.close();
        CHECK(closed);
      });
      co_await turns(3);
      std::array<char, 64> reply;
      const int n = here().recv(both.far.get(), reply.data(), reply.size(), 0);
      CHECK(std::string_view(reply.data(), static_cast<std::size_t>(std::max(n, 0))) ==
            "the last reply");
      both.far.reset();
    };
    co_await coax::with_scope(body);
  });
}

namespace {

/// Echoes one connection by leases until its end.
task<> echo(stream& s) {
  while (auto lease = co_await coax::within(patience, s.receive())) {
    auto sent = co_await coax::within(patience, s.write(lease->bytes()));
    if (!sent) break;
  }
}

}  // namespace

TEST_CASE("more receivers than there are buffers are all served") {
  constexpr std::size_t count = 1500;
  static_assert(count > coax::detail::buffer_pool::count_max);
  on_each_backend([]() -> task<> {
    std::vector<with_peer> all;
    for (std::size_t i = 0; i < count; ++i) all.emplace_back(transport::unix_socket);
    std::vector<leased_buffer> kept;
    std::vector<int> got(count);
    auto body = [&](coax::scope& s) -> task<> {
      auto receive = [&](std::size_t i) -> task<> {
        for (int round = 0; round < 3; ++round) {
          auto lease = co_await coax::within(patience, all[i].near.receive());
          REQUIRE(lease);
          REQUIRE(text_of(lease->bytes()) == std::to_string(i));
          ++got[i];
          kept.push_back(std::move(*lease));
        }
      };
      for (std::size_t i = 0; i < count; ++i) s.spawn(receive, i);
      for (int round = 0; round < 3; ++round) {
        co_await turns(3);
        for (std::size_t i = 0; i < count; ++i) send_now(all[i].far, std::to_string(i));
        while (kept.size() < count * static_cast<std::size_t>(round + 1)) co_await coax::yield();
        if (round == 1) continue;  // the ring is dry for everybody
      }
    };
    co_await coax::with_scope(body);
    CHECK(std::all_of(got.begin(), got.end(), [](int n) { return n == 3; }));
    kept.clear();
    // With the buffers back, everything goes its usual way.
    for (std::size_t i = 0; i < count; ++i) {
      send_now(all[i].far, "again");
      const std::string again = co_await receive_text(all[i].near);
      REQUIRE(again == "again");
    }
  });
}

TEST_CASE("who hoards leases does not stop the others") {
  on_each_backend_and_simulation([]() -> task<> {
    with_peer hoarder(transport::tcp);
    with_peer other(transport::tcp);
    std::vector<leased_buffer> hoard;
    std::string sent;
    for (int i = 0; i < 3000; ++i) {
      const std::string text = std::to_string(i);
      sent += text;
      send_now(hoarder.far, text);
      auto lease = co_await coax::within(patience, hoarder.near.receive());
      REQUIRE(lease);
      hoard.push_back(std::move(*lease));
      send_now(other.far, text);
      const std::string got = co_await receive_text(other.near);
      REQUIRE(got == text);
    }
    std::string all;
    for (const leased_buffer& lease : hoard) all += text_of(lease.bytes());
    CHECK(all == sent);
  });
}

TEST_CASE("reads and receives of every kind take the bytes in their order") {
  for (const std::uint32_t seed : {1u, 2u, 3u, 4u, 5u, 6u}) {
    INFO("seed " << seed);
    on_each_transport([&](transport t) -> task<> {
      const std::vector<std::byte> all = pattern(3u << 20, seed);
      with_peer both(t);
      std::mt19937 random(seed);
      std::string seen;
      std::size_t taken = 0;
      std::array<std::byte, 40'000> space;
      std::vector<leased_buffer> kept;
      while (seen.size() < all.size()) {
        if (random() % 2 == 0 || taken == seen.size())
          taken += flood(both.far.get(),
                         std::span(all).subspan(
                             taken, std::min<std::size_t>(all.size() - taken, random() % 100'000)));
        const std::size_t there = taken - seen.size();
        const coax::timeout limit = random() % 3 == 0 ? 0ms : 10'000ms;
        co_await turns(static_cast<int>(random() % 3));
        if (there == 0) continue;
        switch (random() % 4) {
          case 0: {
            const auto into = std::span(space).first(1 + random() % space.size());
            auto n = co_await coax::within(limit, both.near.read(into));
            if (n) seen.append(text_of(into.first(*n)));
            break;
          }
          case 1: {
            const auto into =
                std::span(space).first(std::min<std::size_t>(there, 1 + random() % space.size()));
            auto n = co_await coax::within(patience, both.near.read_exactly(into));
            REQUIRE(n);
            seen.append(text_of(into));
            break;
          }
          default: {
            auto lease = co_await coax::within(limit, both.near.receive());
            if (!lease) {
              REQUIRE(lease.error() == std::errc::timed_out);
              break;
            }
            seen.append(text_of(lease->bytes()));
            if (random() % 4 == 0) kept.push_back(std::move(*lease));
            if (kept.size() > 100) kept.clear();
          }
        }
        REQUIRE(seen.size() <= taken);
      }
      CHECK((text_of(all) == seen));
    });
  }
}

TEST_CASE("many connections echo through leases at once") {
  on_each_backend_and_simulation([]() -> task<> {
    constexpr std::size_t count = 100;
    std::vector<with_peer> all;
    for (std::size_t i = 0; i < count; ++i)
      all.emplace_back(i % 2 == 0 ? transport::tcp : transport::unix_socket);
    auto body = [&](coax::scope& s) -> task<> {
      for (with_peer& one : all) s.spawn(echo, std::ref(one.near));
      for (int round = 0; round < 20; ++round) {
        for (with_peer& one : all) send_now(one.far, "round " + std::to_string(round));
        for (with_peer& one : all) {
          std::array<char, 32> text;
          int n = -1;
          while ((n = here().recv(one.far.get(), text.data(), text.size(), MSG_DONTWAIT)) < 0)
            co_await coax::yield();
          REQUIRE(std::string_view(text.data(), static_cast<std::size_t>(n)) ==
                  "round " + std::to_string(round));
        }
      }
      for (with_peer& one : all) one.far.reset();
    };
    co_await coax::with_scope(body);
  });
}

TEST_CASE(
    "that a connection was lost, and how, is told again also where there was no buffer to receive into") {
  on_each_backend_and_simulation([]() -> task<> {
    const auto body = [](stream& near, stream& far) -> task<> {
      std::vector<coax::leased_buffer> kept;  // more than there are in the reactor's pool
      for (int i = 0; i < 1100; ++i) {
        auto sent = co_await far.write("x");
        auto got = co_await near.receive();
        REQUIRE((sent && got));
        kept.push_back(std::move(*got));
      }
      co_await coax::with_scope([&](coax::scope& s) -> task<> {
        s.spawn([&]() -> task<> {
          for (int i = 0; i < 3; ++i) {
            auto lost = co_await near.receive();
            CHECK(lost.error() == std::errc::connection_reset);
          }
        });
        co_await turns(5);
        const linger at_once{1, 0};
        REQUIRE(coax::syscalls::current().setsockopt(far.native_handle(), SOL_SOCKET, SO_LINGER,
                                                     &at_once, sizeof at_once) == 0);
        const stream gone = std::move(far);
      });
    };
    co_await with_connected_pair(body);
  });
}
