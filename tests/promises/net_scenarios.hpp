#pragma once

/// Scenarios with connections over TCP on the loopback, and Unix sockets.

#include "task_scenarios.hpp"

#include <coax/io/unique_fd.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/stream.hpp>

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

namespace scenarios {

using coax::listener;
using coax::stream;
using coax::unique_fd;

// --- the plain sockets of those who do not use coax; no Catch2 here, which allocates ---

inline unique_fd plain_client(int listening) noexcept {
  sockaddr_storage where{};
  socklen_t size = sizeof where;
  ::getsockname(listening, reinterpret_cast<sockaddr*>(&where), &size);
  unique_fd client(::socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(client.get(), reinterpret_cast<const sockaddr*>(&where), size) != 0) std::abort();
  return client;
}

/// Two connected TCP sockets in non-blocking mode.
struct connected {
  connected() {
    auto from = listener::bind("127.0.0.1:0").value();
    near = plain_client(from.native_handle());
    far.reset(::accept4(from.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    ::fcntl(near.get(), F_SETFL, O_RDWR | O_NONBLOCK);
  }
  unique_fd near;
  unique_fd far;
};

inline stream adopted(unique_fd& fd) {
  stream made = stream::adopt(fd.get()).value();
  fd.release();
  return made;
}

/// Whether the other side has closed, waiting for that news a second at most; `false` at once when it should be open.
inline bool is_closed(int fd, bool should_be) noexcept {
  pollfd seen{fd, POLLIN | POLLRDHUP, 0};
  ::poll(&seen, 1, should_be ? 1000 : 0);
  return (seen.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

/// Takes all connections that wait in the backlog.
inline std::vector<unique_fd> backlog_of(int listening) {
  std::vector<unique_fd> all;
  while (true) {
    unique_fd next(::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!next) return all;
    all.push_back(std::move(next));
  }
}

inline bool is_end(std::error_code why) noexcept {
  return why == coax::errc::end_of_stream || why == std::errc::connection_reset ||
         why == std::errc::broken_pipe;
}

// --- scenarios ---

/// A client is cancelled in its exchange: the server sees a whole prefix of what was sent, and the end.
struct echo_exchange {
  static constexpr std::size_t size = 600;
  static constexpr int rounds = 3;
  connected sockets;
  stream client = adopted(sockets.near);
  stream server = adopted(sockets.far);
  int echoed = 0;
  bool differs = false;
  std::size_t received = 0;
  std::error_code why;

  static std::byte at(std::size_t position) noexcept {
    return static_cast<std::byte>(position * 7 % 251);
  }

  task<> subject() {
    const stream dropped = std::move(client);  // closed here
    std::array<std::byte, size> message;
    std::array<std::byte, size> back;
    auto& conn = const_cast<stream&>(dropped);
    for (int round = 0; round < rounds; ++round) {
      for (std::size_t i = 0; i < size; ++i)
        message[i] = at(static_cast<std::size_t>(round) * size + i);
      auto sent = co_await conn.write(message);
      sent.value();
      step();
      auto got = co_await conn.read_exactly(back);
      got.value();
      differs = differs || back != message;
      ++echoed;
    }
  }
  void over() noexcept { const stream closed = std::move(client); }
  task<> peer() {
    const stream dropped = std::move(server);
    auto& conn = const_cast<stream&>(dropped);
    std::array<std::byte, 256> some;
    while (true) {
      auto n = co_await conn.read(some);
      if (!n) why = n.error();
      if (!n) break;
      for (std::size_t i = 0; i < *n; ++i) differs = differs || some[i] != at(received + i);
      received += *n;
      step();
      auto sent = co_await conn.write(std::span(some).first(*n));
      if (!sent) why = sent.error();
      if (!sent) break;
    }
  }
  std::string verdict(endings seen) const {
    if (differs) return " bytes are lost or changed";
    if (seen.peer == ending::finished && !is_end(why) && why != std::errc::not_enough_memory)
      return " the peer ended with " + why.message();
    if (seen.subject == ending::finished && echoed != rounds) return " an echo is missing";
    return "";
  }
};

/// Who connects is cancelled: the listener sees a connection that says its word and ends, or none.
struct connect_and_write {
  listener at = listener::bind("127.0.0.1:0").value();

  task<> subject() {
    auto to = at.local_endpoint();
    step();
    auto made = co_await coax::connect(*to);
    stream conn = std::move(made).value();
    step();
    auto sent = co_await conn.write("x");
    sent.value();
    co_await coax::yield();
  }
  std::string verdict(endings seen) const {
    const std::vector<unique_fd> made = backlog_of(at.native_handle());
    if (made.size() > 1) return " there are two connections";
    if (seen.subject == ending::finished && made.empty()) return " there is no connection";
    for (const unique_fd& each : made) {
      if (!is_closed(each.get(), true)) return " the connection was left open";
      char word = 0;
      const auto got = ::recv(each.get(), &word, 1, MSG_DONTWAIT);
      if (seen.subject == ending::finished && got != 1) return " what was written did not arrive";
    }
    return "";
  }
};

/// Those who connect while somebody accepts from one of two listeners, or gives up to.
struct accepting {
  static constexpr int clients_max = 4;
  std::array<listener, 2> at{listener::bind("127.0.0.1:0").value(),
                             listener::bind("127.0.0.1:0").value()};
  std::array<unique_fd, clients_max> clients;
  int connected = 0;
  std::vector<stream> delivered;

  accepting() { delivered.reserve(clients_max); }

  void connect_one(std::size_t to) noexcept {
    clients[static_cast<std::size_t>(connected++)] = plain_client(at[to].native_handle());
  }
  task<> peer() {
    for (int i = 0; i < clients_max; ++i) {
      connect_one(static_cast<std::size_t>(i / 2) % 2);
      step();
      for (int turns = 0; turns < i; ++turns) co_await coax::yield();
    }
  }
  /// Every connection was delivered, is in the backlog, or was closed: none is open and nobody's.
  std::string verdict(endings seen, std::size_t closed_max) const {
    const std::vector<unique_fd> first = backlog_of(at[0].native_handle());
    const std::vector<unique_fd> second = backlog_of(at[1].native_handle());
    const std::size_t kept = delivered.size() + first.size() + second.size();
    const auto all = static_cast<std::size_t>(connected);
    if (kept > all) return " there are more connections than clients";
    if (all - kept > closed_max) return " too many connections were closed";
    std::size_t open = 0;
    for (std::size_t i = 0; i < all; ++i)
      if (!is_closed(clients[i].get(), false)) ++open;
    for (int tries = 0; tries < 100 && open != kept; ++tries) {  // the news of an end is on its way
      open = 0;
      for (std::size_t i = 0; i < all; ++i)
        if (!is_closed(clients[i].get(), tries % 2 == 0 && kept == 0)) ++open;
    }
    if (open != kept)
      return " a connection was lost: " + std::to_string(open) + " are open, " +
             std::to_string(kept) + " somebody's";
    if (!seen.asked && seen.subject == ending::finished && delivered.size() != all)
      return " not all were accepted";
    return "";
  }
};

struct accept_one_after_the_other : accepting {
  task<> subject() {
    for (int i = 0; i < clients_max; ++i) {
      auto made = co_await at[static_cast<std::size_t>(i / 2) % 2].accept();
      delivered.push_back(std::move(made).value());
      step();
    }
  }
  std::string verdict(endings seen) const { return accepting::verdict(seen, 1); }
};

struct race_of_accepts : accepting {
  task<> subject() {
    while (delivered.size() < clients_max) {
      auto made = co_await coax::race(at[0].accept(), at[1].accept());
      if (std::get<0>(made)) delivered.push_back(std::move(*std::get<0>(made)).value());
      if (std::get<1>(made)) delivered.push_back(std::move(*std::get<1>(made)).value());
      step();
    }
  }
  std::string verdict(endings seen) const { return accepting::verdict(seen, 2); }
};

/// A read of whole messages is cut: what is read afterwards begins with a message, or nothing is read any more.
struct read_cut_in_the_middle {
  static constexpr std::size_t message_size = 16;
  static constexpr int messages = 4;
  connected sockets;
  stream near = adopted(sockets.near);
  int whole = 0;
  bool wrong = false;
  bool done = false;

  static std::byte letter(int message) noexcept { return static_cast<std::byte>('a' + message); }

  task<> subject() {
    std::array<std::byte, message_size> message;
    for (; whole < messages; ++whole) {
      step();
      auto got = co_await near.read_exactly(message);
      got.value();
      for (const std::byte b : message) wrong = wrong || b != letter(whole);
    }
  }
  void over() noexcept { done = true; }
  task<> peer() {
    std::array<std::byte, message_size * messages> all;
    for (std::size_t i = 0; i < all.size(); ++i)
      all[i] = letter(static_cast<int>(i / message_size));
    constexpr std::size_t piece = 6;
    for (std::size_t at = 0; at < all.size(); at += piece) {
      if (::write(sockets.far.get(), &all[at], std::min(piece, all.size() - at)) <= 0) std::abort();
      step();
      co_await coax::yield();
      co_await coax::yield();
      while (aimed.asked && !done) co_await coax::yield();  // nothing comes that would end the read
    }
    ::shutdown(sockets.far.get(), SHUT_WR);
  }
  task<> afterwards() {
    std::array<std::byte, message_size> message;
    auto got = co_await near.read(message);
    if (got)
      wrong = wrong || message[0] != letter(whole);
    else if (got.error() == coax::errc::end_of_stream)
      wrong = wrong || whole != messages;
    else
      wrong = wrong || got.error() != coax::errc::transfer_cut;
  }
  std::string verdict(endings seen) const {
    if (wrong) return " a read began in the middle of a message";
    if (seen.subject == ending::finished && whole != messages) return " a message is missing";
    return "";
  }
};

/// A write is cut: the peer has whole messages only, or nothing can be written any more.
struct write_cut_in_the_middle {
  static constexpr std::size_t message_size = 24 * 1024;
  static constexpr int messages = 3;
  unique_fd far;
  stream near = open(far);
  std::vector<std::byte> message = std::vector<std::byte>(message_size, std::byte{'m'});
  bool done = false;
  std::size_t received = 0;
  bool wrong = false;

  static stream open(unique_fd& far) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0)
      std::abort();
    const int little = 4096;
    ::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    far.reset(ends[1]);
    unique_fd near(ends[0]);
    return adopted(near);
  }
  std::size_t take(std::size_t at_most) noexcept {
    std::array<std::byte, 4096> some;
    const auto n = ::read(far.get(), some.data(), std::min(at_most, some.size()));
    if (n > 0) received += static_cast<std::size_t>(n);
    return n > 0 ? static_cast<std::size_t>(n) : 0;
  }

  task<> subject() {
    for (int i = 0; i < messages; ++i) {
      step();
      auto sent = co_await near.write(message);
      sent.value();
    }
  }
  void over() noexcept { done = true; }
  task<> peer() {
    while (!done) {
      if (!aimed.asked) take(3000);  // afterwards nothing makes room that would end the write
      step();
      co_await coax::yield();
    }
    while (take(4096) != 0) continue;
  }
  task<> afterwards() {
    const bool half_sent = received % message_size != 0;
    auto more = co_await near.write("zz");
    wrong = half_sent ? more || more.error() != coax::errc::transfer_cut : !more;
  }
  std::string verdict(endings seen) const {
    if (wrong) return " after " + std::to_string(received) + " bytes";
    if (seen.subject == ending::finished && received != messages * message_size)
      return " bytes are missing";
    return "";
  }
};

/// A server that lingers over its close is cancelled: the client has the whole reply, or sees the end.
struct lingering_close {
  static constexpr std::size_t request_size = 60'000;
  static constexpr std::size_t reply_size = 20'000;
  connected sockets;
  stream client = adopted(sockets.near);
  stream server = adopted(sockets.far);
  std::vector<std::byte> request = std::vector<std::byte>(request_size);
  std::vector<std::byte> reply = std::vector<std::byte>(reply_size);
  std::error_code closed_with;
  std::size_t received = 0;
  std::error_code why;

  task<> subject() {
    stream conn = std::move(server);
    std::array<std::byte, 100> some;
    auto got = co_await conn.read(some);
    got.value();
    step();
    auto sent = co_await conn.write(reply);
    sent.value();
    step();
    auto closed = co_await conn.close();
    closed_with = closed.error();
  }
  void over() noexcept { const stream closed = std::move(server); }
  task<> peer() {
    stream conn = std::move(client);
    auto sent = co_await conn.write(request);
    if (!sent) why = sent.error();
    if (!sent) co_return;
    static_cast<void>(!conn.shutdown_write());
    std::array<std::byte, 4096> some;
    while (true) {
      auto n = co_await conn.read(some);
      if (!n) why = n.error();
      if (!n) break;
      received += *n;
      step();
    }
  }
  std::string verdict(endings seen) const {
    if (received > reply_size) return " more came than was sent";
    if (seen.peer == ending::finished && !is_end(why) && why != std::errc::not_enough_memory)
      return " the client ended with " + why.message();
    if (seen.subject == ending::finished && seen.peer == ending::finished &&
        (closed_with || received != reply_size || why != coax::errc::end_of_stream) &&
        !seen.asked && !seen.short_of_memory)
      return " the reply was lost: " + std::to_string(received) + " bytes, " +
             closed_with.message();
    return "";
  }
};

/// The server coax is made for: an acceptor, workers, their stack. Cancelled, it leaves no client waiting.
struct server_with_idle_workers {
  static constexpr int clients = 3;
  using idle_workers = coax::worker_stack<stream>;
  std::optional<listener> at = listener::bind("127.0.0.1:0").value();
  coax::endpoint where = at->local_endpoint().value();
  coax::event all_done;
  bool left_waiting = false;
  int served = 0;

  task<> readwrite_routine(idle_workers& g_readwrite) {
    std::array<std::byte, 256> buf;
    while (auto conn = co_await g_readwrite.park()) {
      const token t;
      step();
      while (auto n = co_await coax::within(60s, conn->read(buf))) {
        auto sent = co_await conn->write(std::span(buf).first(*n));
        if (!sent) break;
      }
    }
  }
  task<> accept_routine(idle_workers& g_readwrite) {
    while (auto worker = co_await g_readwrite.reserve()) {
      step();
      auto conn = co_await at->accept();
      step();
      worker->hand_off(std::move(conn).value());
    }
  }
  task<> subject() {
    idle_workers g_readwrite;
    co_await coax::with_scope([&](scope& s) -> task<> {
      for (int i = 0; i < 2; ++i)
        s.spawn([this](idle_workers& idle) -> task<> { return readwrite_routine(idle); },
                std::ref(g_readwrite));
      co_await coax::race(accept_routine(g_readwrite), all_done.wait());
      step();
      g_readwrite.close();
      const bool by_themselves = co_await s.join_within(10s);
      static_cast<void>(by_themselves);
    });
  }
  void over() noexcept { at.reset(); }

  task<> client() {
    auto made = co_await coax::connect(where);
    if (!made) co_return;
    stream conn = std::move(*made);
    std::array<std::byte, 5> back;
    for (int i = 0; i < 2; ++i) {
      auto sent = co_await conn.write("hello");
      if (!sent) co_return;
      step();
      auto got = co_await coax::within(5s, conn.read_exactly(back));
      if (!got) left_waiting = left_waiting || got.error() == std::errc::timed_out;
      if (!got) co_return;
    }
    ++served;
  }
  task<> peer() {
    const at_end done([this] { all_done.set(); });
    co_await coax::when_all(client(), client(), client());
  }
  std::string verdict(endings seen) const {
    if (left_waiting) return " a client was left waiting";
    if (!seen.asked && !seen.short_of_memory && seen.subject == ending::finished &&
        served != clients)
      return " a client was not served";
    return "";
  }
};

template <class F>
void for_each_net_scenario(F&& f) {
  f.template operator()<echo_exchange>("echo exchange");
  f.template operator()<connect_and_write>("connect");
  f.template operator()<accept_one_after_the_other>("accept");
  f.template operator()<race_of_accepts>("race of accepts");
  f.template operator()<read_cut_in_the_middle>("read_exactly cut");
  f.template operator()<write_cut_in_the_middle>("write cut");
  f.template operator()<lingering_close>("lingering close");
  f.template operator()<server_with_idle_workers>("server with idle workers");
}

}  // namespace scenarios
