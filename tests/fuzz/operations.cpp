// Operations in any order: bytes start them, cancel them, let their time run out, close under them
// and make the kernel fail, on one host that is connected to itself. Afterwards nothing is in
// flight and no frame is left, and no byte was lost, doubled or out of order meanwhile.

#include "../task/own_root.hpp"
#include "require.hpp"

#include <coax/io/fd.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/stream.hpp>
#include <coax/sim.hpp>
#include <coax/task/awaitable.hpp>
#include <coax/task/frames.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include <poll.h>

#include <array>
#include <bitset>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

namespace {

namespace sim = coax::sim;
using namespace std::chrono_literals;
using coax::result;
using coax::stream;
using coax::task;

class cancellable final : public own_root<> {
 public:
  using own_root::own_root;

 private:
  void ended(outcome how) noexcept override {
    require(how == outcome::unwound || promise().exception() == nullptr,
            "an operation throws nothing");
    own_root::ended(how);
  }
};

/// One way of a connection. Each byte has a value of its own, so that what arrives tells what was
/// sent: nothing else, nothing twice.
class direction {
 public:
  enum class writing { all, some, borrowed };

  struct message {
    std::size_t first = 0;
    std::size_t size = 0;
    writing how = writing::all;
    bool ended = false;  // with a result, which is that so many were sent
    std::size_t sent = 0;
  };

  /// A new message, of fewer bytes where there are no more values. Its number.
  std::size_t begin(std::size_t size, writing how) {
    const std::size_t left = values().size() - next_;
    messages_.push_back({.first = next_, .size = std::min(size, left), .how = how});
    next_ += messages_.back().size;
    return messages_.size() - 1;
  }
  std::span<const std::byte> bytes(std::size_t number) const {
    return std::span(values()).subspan(messages_[number].first, messages_[number].size);
  }
  void sent(std::size_t number, std::size_t count) {
    message& m = messages_[number];
    require(count <= m.size, "no more was sent than was given");
    require(m.how == writing::some || count == m.size, "a write writes all");
    require(m.size == 0 || count > 0, "a write writes something");
    m.ended = true;
    m.sent = count;
  }

  void arrived(std::span<const std::byte> bytes) {
    std::size_t least = 0;
    for (const std::byte b : bytes) {
      const auto value = std::to_integer<std::size_t>(b);
      require(value < next_, "what arrives was sent");
      require(value >= least, "what arrives is in order");
      require(!seen_.test(value), "what arrives has not arrived before");
      seen_.set(value);
      least = value + 1;
    }
  }

  /// A read of several steps may be cut off, and what it had is gone.
  void may_drop() { ++dropping_; }
  void dropped_nothing() { --dropping_; }

  /// `complete`: the receiver has read to the end of what there was.
  void verify(bool complete) const {
    bool cut = false;
    for (const message& m : messages_) {
      std::size_t seen = 0;
      for (std::size_t i = m.first; i < m.first + m.size; ++i) seen += seen_.test(i) ? 1 : 0;
      if (m.ended) {
        require(seen <= m.sent, "no more arrives than was sent");
        require(!complete || dropping_ != 0 || seen == m.sent, "what was sent arrives");
      } else {
        require(m.how != writing::some || seen == 0, "a write that was given up sent nothing");
        require(m.how != writing::all || m.size == 0 || seen < m.size,
                "a write that sent everything was not given up");
      }
      if (m.how == writing::borrowed) continue;
      require(!cut || seen == 0, "nothing follows half a message");
      cut = cut || (!m.ended && seen > 0);
    }
  }

 private:
  static constexpr std::size_t values_max = 256;
  static const std::array<std::byte, values_max>& values() {
    static const auto all = [] {
      std::array<std::byte, values_max> made{};
      for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<std::byte>(i);
      return made;
    }();
    return all;
  }

  std::vector<message> messages_;
  std::bitset<values_max> seen_;
  std::size_t next_ = 0;
  int dropping_ = 0;
};

/// One end of a connection.
struct side {
  std::optional<stream> open;
  bool was_closed = false;
  int reading = 0;  // operations that have begun and not ended
  int writing = 0;
  direction out;
};

/// Counts an operation for as long as its coroutine lives.
class under_way {
 public:
  explicit under_way(int& count) noexcept : count_(count) { ++count_; }
  under_way(const under_way&) = delete;
  under_way& operator=(const under_way&) = delete;
  ~under_way() { --count_; }

 private:
  int& count_;
};

struct connection {
  std::uint16_t port = 0;  // of the client, by which its two ends find each other
  side client;
  side server;
  bool failed = false;  // reset or closed: what was on its way may be lost
};

constexpr auto for_ever = coax::clock::duration::max();

/// `what`, alone or with a timer.
template <class What>
task<coax::await_result_t<What>> in_time(coax::clock::duration limit, What what) {
  if (limit == for_ever) co_return co_await std::move(what);
  co_return co_await coax::within(limit, std::move(what));
}

class script {
 public:
  script(sim::world& w, sim::oracle& decide, std::size_t decisions)
      : world_(w), decide_(decide), decisions_(decisions) {}

  void runs_on(sim::host& here) { here_ = &here; }

  task<> run() {
    const std::size_t in_flight = coax::reactor::current().in_flight();
    listen();
    for (int steps = 0; steps < steps_max && decide_.decisions().size() < decisions_; ++steps)
      co_await step();
    world_.stop_faults();
    co_await coax::sleep_for(20ms);  // longer than any timer runs
    for (const auto& each : connections_) {
      is_not_overlooked(each->client);
      is_not_overlooked(each->server);
    }
    for (const auto& each : roots_) each->cancel();
    for (int turns = 0; turns < turns_max && !all_ended(); ++turns) co_await coax::yield();
    require(all_ended(), "what is cancelled ends");
    require(coax::reactor::current().in_flight() == in_flight, "nothing is left in flight");
    for (const auto& each : connections_) {
      co_await read_out(*each, each->server, each->client.out);
      co_await read_out(*each, each->client, each->server.out);
    }
    connections_.clear();
    listener_.reset();
    require(coax::reactor::current().in_flight() == in_flight, "nothing is left in flight");
    // The number of a stream that has received stays taken until the last completion of that.
    for (int turns = 0; turns < turns_max && here_->open_fds() != 0; ++turns)
      co_await coax::yield();
    require(here_->open_fds() == 0, "no descriptor is left open");
  }

 private:
  static constexpr int steps_max = 500;
  static constexpr int turns_max = 1000;
  static constexpr std::size_t roots_max = 24;
  static constexpr std::size_t connections_max = 24;
  static constexpr std::size_t sides_max = 6;  // few, so that operations meet

  task<> step() {
    std::erase_if(roots_, [](const auto& each) { return each->has_ended(); });
    switch (decide_.choose(20)) {
      case 0:
      case 1:
        if (connections_.size() < connections_max) start(connects(some_time()));
        break;
      case 2:
        if (listener_) start(accepts(some_time()));
        break;
      case 3:
        if (listener_) start(accepts_borrowed(some_time()));
        break;
      case 4:
        with_side([&](connection& c, side& s, direction& in) {
          start(reads(c, s, in, some_size(), some_time()));
        });
        break;
      case 5:
        with_side([&](connection& c, side& s, direction& in) {
          start(reads_exactly(c, s, in, some_size(), some_time()));
        });
        break;
      case 6:
        with_side(
            [&](connection& c, side& s, direction& in) { start(receives(c, s, in, some_time())); });
        break;
      case 7:
        with_side([&](connection& c, side& s, direction& in) {
          start(reads_borrowed(c, s, in, some_size(), some_time()));
        });
        break;
      case 8:
      case 9:
        with_side([&](connection& c, side& s, direction&) {
          start(writes(c, s, direction::writing::all, some_size(), some_time()));
        });
        break;
      case 10:
        with_side([&](connection& c, side& s, direction&) {
          start(writes(c, s, direction::writing::some, some_size(), some_time()));
        });
        break;
      case 11:
        with_side([&](connection& c, side& s, direction&) {
          start(writes(c, s, direction::writing::borrowed, some_size(), some_time()));
        });
        break;
      case 12:
        with_side([&](connection& c, side& s, direction&) {
          constexpr std::array<short, 6> events{POLLIN,    POLLOUT, POLLIN | POLLOUT,
                                                POLLRDHUP, POLLPRI, 0};
          start(polls(c, s, events[decide_.choose(events.size())], some_time()));
        });
        break;
      case 13:
        start(polls_all(some_time()));
        break;
      case 14:
      case 15:
        if (!roots_.empty()) roots_[decide_.choose(roots_.size())]->cancel();
        break;
      case 16:
        with_side([&](connection& c, side& s, direction&) { end(c, s); });
        break;
      case 17:
        if (decide_.choose(4) == 0)
          listener_ ? listener_.reset() : listen();
        else
          for (std::size_t turns = 1 + decide_.choose(3); turns > 0; --turns)
            co_await coax::yield();
        break;
      case 18:
        co_await coax::sleep_for(std::chrono::milliseconds(1 + decide_.choose(4)));
        break;
      default:
        co_await coax::yield();
    }
  }

  /// Nobody waits for what is there already.
  static void is_not_overlooked(const side& s) {
    if (!s.open) return;
    pollfd now{s.open->native_handle(), POLLIN | POLLOUT, 0};
    static_cast<void>(coax::syscalls::current().poll(&now, 1));
    require(s.reading == 0 || (now.revents & POLLIN) == 0, "who waits to read is woken");
    require(s.writing == 0 || (now.revents & POLLOUT) == 0, "who waits to write is woken");
  }

  // --- what a step takes from the bytes ---

  std::size_t some_size() { return decide_.choose(24); }
  coax::clock::duration some_time() {
    const auto drawn = static_cast<int>(decide_.choose(8));
    return drawn == 0 ? for_ever : std::chrono::milliseconds(drawn - 1);
  }
  template <class F>
  void with_side(F use) {
    std::array<connection*, sides_max> ends{};
    std::size_t count = 0;
    for (auto each = connections_.rbegin(); each != connections_.rend() && count < sides_max;
         ++each)
      if ((*each)->client.open || (*each)->server.open) ends[count++] = each->get();
    if (count == 0) return;
    const auto drawn = static_cast<std::size_t>(decide_.choose(2 * count));
    connection& c = *ends[drawn / 2];
    side& own = drawn % 2 == 0 ? c.client : c.server;
    side& other = drawn % 2 == 0 ? c.server : c.client;
    if (own.open) use(c, own, other.out);
  }

  void start(task<> t) {
    if (roots_.size() < roots_max) roots_.push_back(std::make_unique<cancellable>(std::move(t)));
  }
  bool all_ended() const {
    for (const auto& each : roots_)
      if (!each->has_ended()) return false;
    return true;
  }

  // --- connections ---

  void listen() {
    auto bound = coax::listener::bind("127.0.0.1:9000");
    if (bound) listener_.emplace(std::move(*bound));
    ++times_listened_;
  }

  task<> connects(coax::clock::duration limit) {
    auto made = co_await in_time(limit, coax::connect(server_));
    if (!made) {
      check(made.error(), limit, false);
      co_return;
    }
    const auto named = made->local_endpoint();
    require(bool(named), "a connection has an address");
    join(std::move(*made), named->port(), &connection::client);
  }
  task<> accepts(coax::clock::duration limit) {
    if (!listener_) co_return;
    const int listened = times_listened_;
    auto made = co_await in_time(limit, listener_->accept());
    if (made)
      accepted(std::move(*made));
    else
      check(made.error(), limit, !listener_ || listened != times_listened_);
  }
  task<> accepts_borrowed(coax::clock::duration limit) {
    if (!listener_) co_return;
    const int listened = times_listened_;
    auto fd = co_await in_time(limit, coax::accept(listener_->native_handle()));
    if (!fd) {
      check(fd.error(), limit, !listener_ || listened != times_listened_);
      co_return;
    }
    auto made = stream::adopt(fd->get());
    require(bool(made), "what was accepted is a stream");
    fd->release();
    accepted(std::move(*made));
  }
  void accepted(stream made) {
    const auto named = made.remote_endpoint();
    if (named) join(std::move(made), named->port(), &connection::server);  // else it was reset
  }
  void join(stream made, std::uint16_t port, side connection::* which) {
    connection* found = nullptr;
    for (const auto& each : connections_)
      if (each->port == port && !((*each).*which).open && !((*each).*which).was_closed)
        found = each.get();
    if (found == nullptr) {
      connections_.push_back(std::make_unique<connection>());
      found = connections_.back().get();
      found->port = port;
    }
    (found->*which).open.emplace(std::move(made));
  }

  /// Closes, at once or with all there is to it, or ends the writing side.
  void end(connection& c, side& s) {
    switch (decide_.choose(3)) {
      case 0:
        static_cast<void>(s.open->shutdown_write());
        return;
      case 1: {
        closed(c, s);
        s.open.reset();
        return;
      }
      default:
        closed(c, s);
        start(lingers(std::move(*s.open)));
        s.open.reset();
    }
  }
  static void closed(connection& c, side& s) {
    s.was_closed = true;
    c.failed = true;
  }
  static task<> lingers(stream s) {
    auto ended = co_await s.close();
    static_cast<void>(ended);
  }

  // --- operations ---

  /// An error is one that its caller can do something about.
  static void check(const std::error_code& why, coax::clock::duration limit, bool was_closed) {
    require(why != std::errc::interrupted && why != std::errc::resource_unavailable_try_again,
            "interruptions, and what is not ready, are waited out");
    require(was_closed || why != std::errc::operation_canceled,
            "only what was closed is cancelled without being asked to");
    require(limit != for_ever || why != std::errc::timed_out, "without a timer no time runs out");
  }
  static void failed(connection& c, const side& s, const std::error_code& why,
                     coax::clock::duration limit) {
    check(why, limit, s.was_closed);
    if (why == std::errc::connection_reset || why == std::errc::broken_pipe) c.failed = true;
  }

  static task<> reads(connection& c, side& s, direction& in, std::size_t size,
                      coax::clock::duration limit) {
    if (!s.open) co_return;
    const under_way counted(s.reading);
    std::vector<std::byte> into(size);  // exact, so that a byte too far is seen
    auto n = co_await in_time(limit, s.open->read(into));
    if (!n) {
      failed(c, s, n.error(), limit);
      co_return;
    }
    require(*n <= size && (*n > 0 || size == 0), "a read gives at least a byte, and what fits");
    in.arrived(std::span(into).first(*n));
  }
  static task<> reads_exactly(connection& c, side& s, direction& in, std::size_t size,
                              coax::clock::duration limit) {
    if (!s.open) co_return;
    const under_way counted(s.reading);
    std::vector<std::byte> into(size);
    in.may_drop();
    auto n = co_await in_time(limit, s.open->read_exactly(into));
    if (!n) {
      failed(c, s, n.error(), limit);
      co_return;
    }
    in.dropped_nothing();
    require(*n == size, "an exact read fills its buffer");
    in.arrived(into);
  }
  static task<> receives(connection& c, side& s, direction& in, coax::clock::duration limit) {
    if (!s.open) co_return;
    const under_way counted(s.reading);
    auto lease = co_await in_time(limit, s.open->receive());
    if (!lease) {
      failed(c, s, lease.error(), limit);
      co_return;
    }
    require(!lease->bytes().empty(), "what is received has bytes");
    in.arrived(lease->bytes());
  }
  static task<> reads_borrowed(connection& c, side& s, direction& in, std::size_t size,
                               coax::clock::duration limit) {
    if (!s.open) co_return;
    const under_way counted(s.reading);
    std::vector<std::byte> into(size);
    auto n = co_await in_time(limit, coax::read(s.open->native_handle(), into));
    if (!n) {
      failed(c, s, n.error(), limit);
      co_return;
    }
    require(*n <= size && (*n > 0 || size == 0), "a read gives at least a byte, and what fits");
    in.arrived(std::span(into).first(*n));
  }
  static task<> writes(connection& c, side& s, direction::writing how, std::size_t size,
                       coax::clock::duration limit) {
    if (!s.open) co_return;
    const under_way counted(s.writing);
    const std::size_t message = s.out.begin(size, how);
    const std::vector<std::byte> from(s.out.bytes(message).begin(), s.out.bytes(message).end());
    result<std::size_t> n = 0;
    if (how == direction::writing::all)
      n = co_await in_time(limit, s.open->write(from));
    else if (how == direction::writing::some)
      n = co_await in_time(limit, s.open->write_some(from));
    else
      n = co_await in_time(limit, coax::write(s.open->native_handle(), from));
    if (n)
      s.out.sent(message, *n);
    else
      failed(c, s, n.error(), limit);
  }
  static task<> polls(connection& c, side& s, short events, coax::clock::duration limit) {
    if (!s.open) co_return;
    auto seen = co_await in_time(limit, coax::poll(s.open->native_handle(), events));
    if (!seen) {
      failed(c, s, seen.error(), limit);
      co_return;
    }
    require(*seen != 0 && (*seen & ~(events | POLLERR | POLLHUP)) == 0,
            "a poll gives what was asked for");
  }
  task<> polls_all(coax::clock::duration limit) {
    std::vector<pollfd> all;
    for (const auto& each : connections_)
      for (const side* s : {&each->client, &each->server})
        if (s->open) all.push_back({s->open->native_handle(), POLLIN, 0});
    auto ready = co_await in_time(limit, coax::poll(all));
    if (!ready) {
      check(ready.error(), limit, false);
      co_return;
    }
    require(*ready > 0 && *ready <= all.size(), "a poll of many gives how many are ready");
  }

  /// Reads what is left for `s`, and compares what it has had with what was sent.
  static task<> read_out(connection& c, side& s, direction& in) {
    bool complete = s.open && !c.failed;
    std::array<std::byte, 64> into;
    while (s.open) {
      auto n = co_await coax::within(10ms, s.open->read(into));
      if (n) {
        in.arrived(std::span(into).first(*n));
        continue;
      }
      complete =
          complete && (n.error() == std::errc::timed_out || n.error() == coax::errc::end_of_stream);
      break;
    }
    in.verify(complete);
  }

  sim::world& world_;
  sim::oracle& decide_;
  std::size_t decisions_;
  sim::host* here_ = nullptr;
  const coax::endpoint server_ = coax::endpoint::parse("127.0.0.1:9000").value();
  std::optional<coax::listener> listener_;
  int times_listened_ = 0;
  std::vector<std::unique_ptr<connection>> connections_;
  std::vector<std::unique_ptr<cancellable>> roots_;  // they refer to the connections
};

/// What the kernel is like. A fault that is on is a decision at each call.
sim::options drawn(sim::oracle& decide) {
  constexpr double on = 0.5;
  sim::options how;
  if (decide.choose(2) != 0) how.completion = sim::completion::ring;
  const auto faults = static_cast<unsigned>(decide.choose(256));
  if ((faults & 1) != 0) how.short_io = on;
  if ((faults & 2) != 0) how.eintr = on;
  if ((faults & 4) != 0) how.eagain = on;
  if ((faults & 8) != 0) how.reset = on;
  if ((faults & 16) != 0) how.econnaborted = on;
  if ((faults & 32) != 0) how.emfile = on;
  if ((faults & 64) != 0) how.enobufs = on;
  if ((faults & 128) != 0) how.enomem = on;
  constexpr std::array<std::size_t, 4> buffers{16, 1, 5, 64 * 1024};
  how.send_buffer = buffers[decide.choose(buffers.size())];
  how.receive_buffer = buffers[decide.choose(buffers.size())];
  if (decide.choose(4) == 1) how.fds_max = 8;
  return how;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto frames = coax::detail::frames::live();
  {
    sim::oracle decide = sim::oracle::of_bytes(std::as_bytes(std::span(data, size)));
    sim::world w(drawn(decide), decide);
    script all(w, decide, size);
    sim::host& here = w.host("host", &script::run, &all);
    all.runs_on(here);
    w.run_to_end(1h);
    w.run_until_quiet(1h);
    require(here.open_fds() == 0 && here.connections() == 0, "no connection is left");
  }
  require(coax::detail::frames::live() == frames, "no frame is left");
  return 0;
}
