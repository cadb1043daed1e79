#include "../sim/conformance.hpp"
#include "each_backend.hpp"
#include "sockets.hpp"

#include <coax/task/scope.hpp>

#include <netinet/tcp.h>

#include <array>
#include <chrono>
#include <string>
#include <vector>

// How a peer ends a connection, what was unread by then, and when we look. The backends must tell the same story.

namespace {

enum class ending_by { fin, half_close, reset, our_shutdown };
enum class asked { receive, receive_full, send, poll_in, poll_out, poll_nothing };

struct scene {
  bool tcp;
  ending_by how;
  bool unread;  // data comes with the end
  bool waits;   // we wait already when it comes
  asked first;

  /// Whether there is no room when the end comes: how much is on the way is the kernel's own affair.
  bool is_full() const { return waits && (first == asked::send || first == asked::poll_out); }
  std::string name() const {
    static constexpr std::array<const char*, 4> hows{"FIN", "half-close", "RST", "our shutdown"};
    static constexpr std::array<const char*, 6> asks{"receive", "receive_full", "send",
                                                     "poll in", "poll out",     "poll nothing"};
    return std::string(tcp ? "tcp " : "unix ") + hows[static_cast<std::size_t>(how)] +
           (unread ? ", unread data" : "") +
           (waits ? ", waiting before it: " : ", looking after it: ") +
           asks[static_cast<std::size_t>(first)];
  }
  /// Whether it is a wait at all before the end comes, and one that the end ends.
  bool is_sensible() const {
    if (!tcp && how == ending_by::reset) return false;
    if (first != asked::poll_nothing) return true;
    return how == ending_by::reset || (how == ending_by::fin && !tcp);  // a FIN alone is no hang-up
  }
};

std::vector<scene> all_scenes() {
  std::vector<scene> all;
  for (const bool tcp : {true, false})
    for (const ending_by how :
         {ending_by::fin, ending_by::half_close, ending_by::reset, ending_by::our_shutdown})
      for (const bool unread : {false, true})
        for (const bool waits : {false, true})
          for (const asked first : {asked::receive, asked::receive_full, asked::send,
                                    asked::poll_in, asked::poll_out, asked::poll_nothing}) {
            const scene s{tcp, how, unread, waits, first};
            if (s.is_sensible()) all.push_back(s);
          }
  return all;
}

template <class T>
std::string told(const char* what, const coax::result<T>& r) {
  std::string text = std::string(" ") + what + ":";
  if (r)
    text += std::to_string(*r);
  else
    text += r.error() == coax::errc::end_of_stream ? "end" : r.error().message();
  return text;
}

coax::task<> ask(int fd, asked what, std::string& story) {
  std::array<std::byte, 100> some;
  switch (what) {
    case asked::receive: {
      auto n = co_await receive(fd, some);
      story += told("recv", n);
      break;
    }
    case asked::receive_full: {
      auto n = co_await receive_full(fd, some);
      story += told("full", n);
      break;
    }
    case asked::send: {
      auto n = co_await send_all(fd, "reply");
      story += told("send", n);
      break;
    }
    case asked::poll_in:
    case asked::poll_out:
    case asked::poll_nothing: {
      const short events = what == asked::poll_in    ? POLLIN
                           : what == asked::poll_out ? POLLOUT
                                                     : short{0};
      auto seen = co_await coax::poll(fd, events);
      // A wait for reading may have ended between the data and the hang-up behind it.
      if (seen && events == POLLIN) *seen = static_cast<short>(*seen & POLLIN);
      story += told("poll", seen);
      break;
    }
  }
}

void end(const scene& sc, const taken_over& ours, coax::unique_fd& theirs) {
  // What is corked leaves together with the FIN.
  const int on = 1;
  if (sc.how == ending_by::fin || sc.how == ending_by::half_close)
    here().setsockopt(theirs.get(), IPPROTO_TCP, TCP_CORK, &on, sizeof(on));
  if (sc.unread) put(theirs, "hello");
  const linger reset{1, 0};
  switch (sc.how) {
    case ending_by::fin:
      return theirs.reset();
    case ending_by::half_close:
      REQUIRE(here().shutdown(theirs.get(), SHUT_WR) == 0);
      return;
    case ending_by::reset:
      here().setsockopt(theirs.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
      return theirs.reset();
    case ending_by::our_shutdown:
      REQUIRE(here().shutdown(ours.get(), SHUT_RDWR) == 0);
      return;
  }
}

coax::task<> tell(const scene& sc, std::string& story) {
  fd_pair p = sc.tcp ? tcp_pair() : unix_pair();
  const taken_over ours(std::move(p.ours), sc.tcp);
  if (sc.is_full()) {
    // A little room may come later, when the peer's buffer has grown: then it did not wait, and there is no story.
    const int small = 4096;
    here().setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    while (fill(ours.get()) != 0) co_await coax::sleep_for(std::chrono::milliseconds(1));
  }
  bool ended = false;
  auto body = [&](coax::scope& s) -> coax::task<> {
    const auto first = [&]() -> coax::task<> {
      co_await ask(ours.get(), sc.first, story);
      ended = true;
    };
    if (sc.waits) s.spawn([&]() -> coax::task<> { return first(); });
    co_await turns();
    end(sc, ours, p.theirs);
    if (!sc.waits) s.spawn([&]() -> coax::task<> { return first(); });
    // A peer that has ended its own side only leaves us waiting for room.
    for (int i = 0; i < 200 && !ended; ++i) co_await coax::yield();
    if (!ended) {
      story += " waits";
      s.cancel();
    }
  };
  co_await coax::with_scope(body);
  if (!ended) co_return;
  for (int i = 0; i < 3; ++i) co_await ask(ours.get(), asked::receive, story);
  if (sc.how != ending_by::half_close || !sc.waits) {
    co_await ask(ours.get(), asked::send, story);
    co_await ask(ours.get(), asked::send, story);
  }
}

}  // namespace

TEST_CASE("however a connection ends, the backends and the simulation tell the same") {
  for (const scene& sc : all_scenes()) {
    INFO(sc.name());
    std::vector<std::string> stories;
    for (const coax::backend b : backends_here()) {
      INFO("on " << name_of(b));
      std::string story;
      const auto reactor = reactor_of(b);
      run_clean(*reactor, [&] { return tell(sc, story); });
      stories.push_back(story);
    }
    if (sc.tcp && !sc.is_full())
      on_simulation([&]() -> coax::task<> {
        stories.emplace_back();
        return tell(sc, stories.back());
      });
    for (const std::string& each : stories) CHECK(each == stories.front());
    const std::string& story = stories.front();
    if (!sc.unread || sc.how == ending_by::reset) continue;
    if (sc.first == asked::receive) CHECK(story.starts_with(" recv:5 recv:end"));
    if (sc.first == asked::receive_full) CHECK(story.starts_with(" full:end recv:end"));
  }
}

TEST_CASE("data and the end of the stream that come in one segment are both read") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    for (int round = 0; round < 400; ++round) {
      fd_pair p = tcp_pair();
      const taken_over socket(std::move(p.ours), true);
      std::array<std::byte, 100> some;
      // The reader has looked before, or waits, or comes for the first time.
      if (round % 4 == 1) {
        put(p.theirs, "first");
        auto n = co_await receive(socket.get(), some);
        CHECK(n.value() == 5);
      }
      const int on = 1;
      REQUIRE(here().setsockopt(p.theirs.get(), IPPROTO_TCP, TCP_CORK, &on, sizeof(on)) == 0);
      std::string story;
      auto body = [&](coax::scope& s) -> coax::task<> {
        const auto reads = [&]() -> coax::task<> {
          auto data = co_await receive(socket.get(), some);
          story += told("recv", data);
          auto end = co_await receive(socket.get(), some);
          story += told("recv", end);
        };
        if (round % 4 >= 2) s.spawn([&]() -> coax::task<> { return reads(); });
        if (round % 4 >= 2) co_await turns();
        put(p.theirs, "hello");
        REQUIRE(here().shutdown(p.theirs.get(), SHUT_WR) == 0);
        if (round % 4 == 1) co_await turns();
        if (round % 4 < 2) s.spawn([&]() -> coax::task<> { return reads(); });
        co_await turns(20);
        s.cancel();
      };
      co_await coax::with_scope(body);
      REQUIRE(story == " recv:5 recv:end");
    }
  });
}

TEST_CASE("urgent data between ordinary data neither hides any of it nor stops the reader") {
  on_each_backend([]() -> coax::task<> {
    for (const bool waits : {false, true}) {
      fd_pair p = tcp_pair();
      const taken_over socket(std::move(p.ours), true);
      std::string got;
      auto body = [&](coax::scope& s) -> coax::task<> {
        const auto reads = [&]() -> coax::task<> {
          std::array<std::byte, 100> some;
          while (auto n = co_await receive(socket.get(), some))
            got += text_of(std::span(some).first(*n));
        };
        if (waits) s.spawn([&]() -> coax::task<> { return reads(); });
        co_await turns();
        for (int i = 0; i < 5; ++i) {
          put(p.theirs, "ab");
          REQUIRE(::send(p.theirs.get(), "!", 1, MSG_OOB) == 1);
          put(p.theirs, "cd");
          if (i == 0 && !waits) s.spawn([&]() -> coax::task<> { return reads(); });
          co_await turns(i);
        }
        co_await turns(20);
        std::erase(got, '!');  // the next urgent byte makes the one before it an ordinary one
        CHECK(got == "abcdabcdabcdabcdabcd");
        p.theirs.reset();
        co_await turns(20);
        s.cancel();
      };
      co_await coax::with_scope(body);
    }
  });
}

TEST_CASE("more data after a short read is read") {
  on_each_backend_and_simulation([]() -> coax::task<> {
    fd_pair p = tcp_pair();
    const taken_over socket(std::move(p.ours), true);
    std::array<std::byte, 100> some;
    for (int i = 0; i < 200; ++i) {
      put(p.theirs, "hello");
      auto n = co_await receive(socket.get(), some);
      REQUIRE(n.value() == 5);
      if (i % 3 == 0) co_await turns(1);
      if (i % 5 == 0) {
        // More than fits at a time: the rest comes without another word from the kernel.
        put(p.theirs, std::string(150, 'x'));
        auto full = co_await receive_full(socket.get(), some);
        REQUIRE(full);
        auto rest = co_await receive(socket.get(), some);
        REQUIRE(rest.value() == 50);
      }
    }
  });
}
