#include <coax/sync/channel.hpp>

#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"
#include "../task/death.hpp"
#include "../task/manual_loop.hpp"
#include "../task/probes.hpp"
#include "random_trial.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

namespace {

using numbers = coax::channel<int>;

/// Sends, and says which was taken: "1 2", or "3 refused" by a channel that is closed.
coax::task<> sends(numbers& c, std::string& log, int from, int to) {
  for (int i = from; i <= to; ++i) {
    const bool sent = co_await c.send(i);
    log += "s" + std::to_string(i) + (sent ? " " : "refused ");
  }
}

/// Receives until the channel is closed.
coax::task<> receives(numbers& c, std::string& log, char name) {
  while (auto value = co_await c.receive()) {
    log += name;
    log += std::to_string(*value) + " ";
  }
  log += name;
  log += "end ";
}

coax::task<> receives_one(numbers& c, std::string& log, char name) {
  const auto value = co_await c.receive();
  log += name;
  log += (value ? std::to_string(*value) : "end") + " ";
}

std::string taken(std::string& log) { return std::exchange(log, {}); }

}  // namespace

TEST_CASE("a channel gives what was sent, in order, then the end", "[channel]") {
  for (const std::size_t capacity : {0U, 1U, 2U, 5U, 100U}) {
    test_loop loop;
    numbers c(capacity);
    std::vector<int> got;
    loop.run([&]() -> coax::task<> {
      auto producer = [&]() -> coax::task<> {
        for (int i = 0; i < 50; ++i) {
          const bool sent = co_await c.send(i);
          CHECK(sent);
        }
        c.close();
      };
      co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
        s.spawn(std::ref(producer));
        while (auto value = co_await c.receive()) got.push_back(*value);
      });
    });
    REQUIRE(got.size() == 50);
    for (int i = 0; i < 50; ++i) CHECK(got[static_cast<std::size_t>(i)] == i);
  }
}

TEST_CASE("a full channel makes who sends wait, until somebody receives", "[channel]") {
  test_loop loop;
  numbers c(2);
  std::string log;
  watched<> a(*loop, sends(c, log, 1, 4));
  loop->settle();
  CHECK(taken(log) == "s1 s2 ");
  watched<> r(*loop, receives_one(c, log, 'r'));
  loop->settle();
  CHECK(taken(log) == "r1 s3 ");
  watched<> t(*loop, receives(c, log, 't'));
  loop->settle();
  CHECK(taken(log) == "t2 t3 t4 s4 ");
  loop->inside([&] { c.close(); });
  loop->settle();
  CHECK(log == "tend ");
}

TEST_CASE("with a capacity of 0 a send waits for the receive that takes its value", "[channel]") {
  test_loop loop;
  numbers c(0);
  std::string log;
  watched<> a(*loop, sends(c, log, 1, 2));
  loop->settle();
  CHECK(log.empty());
  watched<> r(*loop, receives_one(c, log, 'r'));
  loop->settle();
  CHECK(taken(log) == "r1 s1 ");
  watched<> q(*loop, receives_one(c, log, 'q'));
  watched<> p(*loop, receives_one(c, log, 'p'));
  loop->settle();
  CHECK(taken(log) == "q2 s2 ");
  loop->inside([&] {
    CHECK(c.try_send(3));
    CHECK_FALSE(c.try_send(4));
  });
  loop->settle();
  CHECK(log == "p3 ");
}

TEST_CASE("those who wait to send and those who wait to receive have their turn in order",
          "[channel]") {
  test_loop loop;
  numbers c(1);
  std::string log;
  watched<> r1(*loop, receives_one(c, log, 'a'));
  watched<> r2(*loop, receives_one(c, log, 'b'));
  watched<> r3(*loop, receives_one(c, log, 'c'));
  loop->settle();
  loop->inside([&] {
    CHECK(c.try_send(1));
    CHECK(c.try_send(2));
    CHECK(c.try_send(3));
    CHECK(c.try_send(4));
    CHECK_FALSE(c.try_send(5));
  });
  loop->settle();
  CHECK(taken(log) == "a1 b2 c3 ");
  watched<> s1(*loop, sends(c, log, 10, 10));
  watched<> s2(*loop, sends(c, log, 20, 20));
  loop->settle();
  watched<> r4(*loop, receives_one(c, log, 'd'));
  watched<> s3(*loop, sends(c, log, 30, 30));
  loop->settle();
  CHECK(taken(log) == "d4 s10 ");
  watched<> rest(*loop, receives(c, log, 'r'));
  loop->settle();
  CHECK(taken(log) == "r10 r20 r30 s20 s30 ");
  loop->inside([&] { c.close(); });
  loop->settle();
}

TEST_CASE("after close nothing is sent any more, and what was sent is still received",
          "[channel]") {
  test_loop loop;
  numbers c(2);
  std::string log;
  watched<> a(*loop, sends(c, log, 1, 5));
  watched<> b(*loop, sends(c, log, 11, 12));
  loop->settle();
  CHECK(taken(log) == "s1 s2 ");
  loop->inside([&] {
    c.close();
    c.close();
    CHECK_FALSE(c.try_send(7));
  });
  loop->settle();
  CHECK(taken(log) == "s3refused s4refused s5refused s11refused s12refused ");
  watched<> r(*loop, receives(c, log, 'r'));
  loop->settle();
  CHECK(log == "r1 r2 rend ");
}

TEST_CASE("close tells everybody who waits to receive that nothing will come", "[channel]") {
  test_loop loop;
  numbers c(2);
  std::string log;
  watched<> a(*loop, receives(c, log, 'a'));
  watched<> b(*loop, receives(c, log, 'b'));
  loop->settle();
  loop->inside([&] {
    CHECK(c.try_send(1));  // to a
    c.close();
  });
  loop->settle();
  CHECK(log == "a1 aend bend ");
}

TEST_CASE("a send that a receive made room for in the turn of a close has sent", "[channel]") {
  test_loop loop;
  numbers c(1);
  std::string log;
  watched<> a(*loop, sends(c, log, 1, 2));
  watched<> b(*loop, sends(c, log, 3, 3));
  loop->settle();
  CHECK(taken(log) == "s1 ");
  watched<> r(*loop, receives_one(c, log, 'r'));
  loop->inside([&] {
    loop->settle();  // r takes 1, 2 takes its place
    c.close();       // 3 has not been sent
  });
  loop->settle();
  CHECK(taken(log) == "r1 s2 s3refused ");
  watched<> rest(*loop, receives(c, log, 'q'));
  loop->settle();
  CHECK(log == "q2 qend ");
}

TEST_CASE("a send that is cancelled or times out has not sent", "[channel]") {
  for (int gone = 0; gone < 3; ++gone) {
    test_loop loop;
    numbers c(0);
    std::string log;
    std::unique_ptr<watched<>> all[3];
    for (int i = 0; i < 3; ++i) all[i] = std::make_unique<watched<>>(*loop, sends(c, log, i, i));
    loop->settle();
    all[gone]->cancel_from_outside();
    watched<> r(*loop, receives(c, log, 'r'));
    loop->settle();
    CHECK(all[gone]->unwound());
    CHECK(log.find("r" + std::to_string(gone)) == std::string::npos);
    CHECK(log.size() == 2 * std::string("r1 s1 ").size());
    loop->inside([&] { c.close(); });
    loop->settle();
  }
  test_loop loop;
  numbers c(1);
  loop.run([&]() -> coax::task<> {
    CHECK(c.try_send(1));
    auto late = co_await coax::within(1s, c.send(2));
    CHECK(late.error() == std::errc::timed_out);
    auto first = co_await c.receive();
    CHECK(first == 1);
    auto in_time = co_await coax::within(0s, c.send(3));
    REQUIRE(in_time);
    CHECK(*in_time);
    auto third = co_await c.receive();
    CHECK(third == 3);
    c.close();
    auto closed = co_await coax::within(1s, c.send(4));
    REQUIRE(closed);
    CHECK_FALSE(*closed);
  });
}

TEST_CASE("a receive that was cancelled or timed out takes nothing; one that was served beats both",
          "[channel]") {
  for (const bool by_time : {false, true}) {
    for (const bool served_first : {false, true}) {
      test_loop loop;
      numbers c(1);
      std::string log;
      watched<> a(*loop, [](numbers& from, std::string& says) -> coax::task<> {
        const auto got = co_await coax::within(1s, from.receive());
        says += got ? "a" + std::to_string(**got) + " " : "timed out ";
      }(c, log));
      watched<> b(*loop, receives_one(c, log, 'b'));
      loop->settle();
      if (served_first) loop->inside([&] { CHECK(c.try_send(1)); });
      if (by_time)
        loop->advance(1s);
      else
        a.cancel_from_outside();
      if (!served_first) loop->inside([&] { CHECK(c.try_send(1)); });
      loop->settle();
      const bool timed_out = by_time && !served_first;
      CHECK(log == (served_first ? "a1 " : timed_out ? "timed out b1 " : "b1 "));
      CHECK(a.has_ended());
      b.cancel_from_outside();
      loop->settle();
    }
  }
}

TEST_CASE("a channel that is ready completes even while the task is being cancelled", "[channel]") {
  test_loop loop;
  numbers c(2);
  std::string log;
  loop.run([&]() -> coax::task<> {
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.cancel();
      co_await sends(c, log, 1, 3);
    });
    CHECK(taken(log) == "s1 s2 ");
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.cancel();
      co_await receives(c, log, 'r');
    });
    CHECK(taken(log) == "r1 r2 ");
    c.close();
    co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
      s.cancel();
      co_await sends(c, log, 4, 4);
      co_await receives(c, log, 'r');
    });
    CHECK(log == "s4refused rend ");
  });
}

TEST_CASE("a race that a receive and another branch both win loses nothing", "[channel]") {
  test_loop loop;
  numbers c(1);
  std::string log;
  watched<> a(*loop, [](numbers& from, std::string& says) -> coax::task<> {
    const auto won = co_await coax::race(from.receive(), coax::sleep_for(1s));
    if (std::get<0>(won)) says += std::to_string(**std::get<0>(won));
    if (std::get<1>(won)) says += " slept";
  }(c, log));
  loop->settle();
  loop->inside([&] { CHECK(c.try_send(1)); });
  loop->advance(1s);
  loop->settle();
  CHECK(log == "1 slept");
}

TEST_CASE("values move through a channel, and each is destroyed once", "[channel]") {
  for (const std::size_t capacity : {0U, 1U, 3U}) {
    const counted::census census;
    test_loop loop;
    {
      coax::channel<counted> c(capacity);
      loop.run([&]() -> coax::task<> {
        auto producer = [&]() -> coax::task<> {
          for (int i = 0; i < 10; ++i) {
            const bool sent = co_await c.send(counted(i));
            CHECK(sent);
          }
          auto late = co_await coax::within(1s, c.send(counted(10)));
          CHECK(bool(late) == (capacity > 0));
          c.close();
          const bool refused = co_await c.send(counted(11));
          CHECK_FALSE(refused);
        };
        co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
          s.spawn(std::ref(producer));
          for (int i = 0; i < 10; ++i) {
            auto value = co_await c.receive();
            CHECK(value->value == i);
          }
        });
      });
      CHECK(counted::copied == 0);
      CHECK(census.alive() == (capacity > 0 ? 1 : 0));
    }
  }
}

TEST_CASE("a channel takes what only moves, and what throws when it is copied", "[channel]") {
  struct hard_to_copy {
    hard_to_copy() = default;
    hard_to_copy(const hard_to_copy&) { throw std::runtime_error("not to be copied"); }
    hard_to_copy(hard_to_copy&&) noexcept {}
  };
  test_loop loop;
  coax::channel<std::unique_ptr<int>> pointers(1);
  coax::channel<hard_to_copy> values(1);
  loop.run([&]() -> coax::task<> {
    const bool sent = co_await pointers.send(std::make_unique<int>(7));
    CHECK(sent);
    auto pointer = co_await pointers.receive();
    CHECK(**pointer == 7);

    const hard_to_copy original;
    bool thrown = false;
    try {
      const bool copied = co_await values.send(original);
      CHECK_FALSE(copied);
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
    auto nothing = co_await coax::within(0s, values.receive());
    CHECK_FALSE(nothing);  // it was not sent
    const bool moved = co_await values.send(hard_to_copy());
    CHECK(moved);
    auto value = co_await values.receive();
    CHECK(value);
  });
}

TEST_CASE("an exception in one who receives leaves the rest in the channel", "[channel]") {
  test_loop loop;
  numbers c(3);
  loop.run([&]() -> coax::task<> {
    for (int i = 1; i <= 3; ++i) CHECK(c.try_send(i));
    auto fails = [&]() -> coax::task<> {
      auto value = co_await c.receive();
      CHECK(value == 1);
      throw std::runtime_error("as it was told");
    };
    bool thrown = false;
    try {
      co_await fails();
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
    auto value = co_await c.receive();
    CHECK(value == 2);
  });
}

TEST_CASE("a capacity that no memory holds is refused", "[channel]") {
  CHECK_THROWS_AS(numbers(static_cast<std::size_t>(-1)), std::invalid_argument);
  CHECK_THROWS_AS(numbers(PTRDIFF_MAX / sizeof(std::optional<int>) + 1), std::invalid_argument);
}

TEST_CASE("a million values take constant stack, and let others run", "[channel]") {
  bool others_ran = false;
  on_small_stack([&] {
    test_loop loop;
    numbers c(1);
    loop.run([&]() -> coax::task<> {
      co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
        auto other = [&]() -> coax::task<> {
          others_ran = true;
          co_return;
        };
        s.spawn(std::ref(other));
        for (int i = 0; i < 1'000'000; ++i) {
          co_await c.send(i);
          const auto value = co_await c.receive();
          if (value != i) throw std::logic_error("another value");
          if (i == 1'000) CHECK(others_ran);
        }
      });
    });
  });
}

TEST_CASE("a channel that is destroyed while somebody waits aborts and says why", "[channel]") {
  const auto says_why = [](bool sending) {
    return ending_of([&] {
             manual_loop loop;
             std::string log;
             std::optional<numbers> c(std::in_place, 0U);
             watched<> a(loop, sending ? sends(*c, log, 1, 1) : receives_one(*c, log, 'r'));
             loop.settle();
             c.reset();
           })
        .aborted_saying("a channel was destroyed while somebody waited to send or to receive");
  };
  CHECK(says_why(true));
  CHECK(says_why(false));
}

// --- random sequences, against a reference ---

namespace {

class channel_trial final : public random_trial {
 public:
  using random_trial::random_trial;

 private:
  enum order { send, send_in_time, try_send, receive, receive_in_time, close, fail, leave };

  /// What is sent: it exists once, and its end is noticed.
  class value {
   public:
    value(channel_trial& t, int id) : id_(id), trial_(&t) {}
    value(value&& other) noexcept : id_(other.id_), trial_(std::exchange(other.trial_, nullptr)) {}
    value& operator=(value&&) = delete;
    ~value() {
      if (trial_ != nullptr) ++trial_->destroyed_;
    }
    int id() const noexcept { return id_; }

   private:
    int id_;
    channel_trial* trial_;
  };

  coax::task<> life(int me) override {
    while (true) {
      switch (const int told = co_await next(me)) {
        case send: {
          const int id = sends(me);
          const bool sent = co_await channel_.send(value(*this, id));
          came(me, sent ? "sent" : "refused");
          break;
        }
        case send_in_time: {
          in_time(me);
          const int id = sends(me);
          const auto sent = co_await coax::within(limit, channel_.send(value(*this, id)));
          came(me, !sent ? "timed out" : *sent ? "sent" : "refused");
          break;
        }
        case try_send: {
          const int id = ++made_;
          const bool fits =
              !closed_ && (!receivers_.empty() || (senders_.empty() && kept_.size() < capacity_));
          if (fits) arrives(id);
          const bool sent = channel_.try_send(value(*this, id));
          if (sent != fits) wrong(me, fits ? "try_send refuses" : "try_send sends");
          break;
        }
        case receive: {
          receives(me);
          const auto got = co_await channel_.receive();
          came(me, got ? "got " + std::to_string(got->id()) : "end");
          break;
        }
        case receive_in_time: {
          in_time(me);
          receives(me);
          const auto got = co_await coax::within(limit, channel_.receive());
          came(me, !got ? "timed out" : *got ? "got " + std::to_string((*got)->id()) : "end");
          break;
        }
        case close:
          closed_ = true;
          for (const auto& s : senders_) due(s.who, "refused");
          for (const int who : receivers_) due(who, "end");
          senders_.clear();
          receivers_.clear();
          channel_.close();
          break;
        case fail:
          throw failure();
        default:
          CHECK(told == leave);
          co_return;
      }
    }
  }

  void step() override {
    const std::size_t die = random_(80);
    if (die < 14) return enter();
    if (die < 20) return cancel(anybody());
    const int who = listener();
    if (who == 0) return;
    if (die < 38) return tell(who, send, "shall send");
    if (die < 44) return tell(who, send_in_time, "shall send in time");
    if (die < 48) return tell(who, try_send, "shall try to send");
    if (die < 68) return tell(who, receive, "shall receive");
    if (die < 76) return tell(who, receive_in_time, "shall receive in time");
    if (die < 77) return tell(who, close, "shall close");
    if (die < 78) return tell(who, fail, "shall throw");
    tell(who, leave, "shall leave");
  }

  // --- the reference ---

  struct sender {
    int who;
    int id;
  };

  /// Somebody sends a value, whose number it gives.
  int sends(int who) {
    const int id = ++made_;
    if (closed_) {
      due(who, "refused");
    } else if (!receivers_.empty() || (senders_.empty() && kept_.size() < capacity_)) {
      arrives(id);
      due(who, "sent");
    } else if (cancelled(who)) {
      due(who, "unwound");
    } else {
      senders_.push_back({who, id});
    }
    return id;
  }
  void arrives(int id) {
    if (receivers_.empty()) return kept_.push_back(id);
    due(receivers_.front(), "got " + std::to_string(id));
    receivers_.pop_front();
  }
  void receives(int who) {
    if (kept_.empty() && senders_.empty()) {
      if (closed_)
        due(who, "end");
      else if (cancelled(who))
        due(who, "unwound");
      else
        receivers_.push_back(who);
      return;
    }
    if (!senders_.empty()) {
      kept_.push_back(senders_.front().id);
      due(senders_.front().who, "sent");
      senders_.pop_front();
    }
    due(who, "got " + std::to_string(kept_.front()));
    kept_.pop_front();
  }
  void give_up(int who, const char* why) override {
    const auto is_it = [&](const sender& s) { return s.who == who; };
    if (std::erase_if(senders_, is_it) + std::erase(receivers_, who) != 0) due(who, why);
  }
  void check() override {
    // those that are due are on their way, and nobody keeps one for longer than a step
    if (destroyed_ > made_) wrong(0, "a value was destroyed twice");
    if (kept_.size() > capacity_) wrong(0, "the reference keeps too much");
  }

  std::size_t capacity_ = random_(4);
  coax::channel<value> channel_{capacity_};
  bool closed_ = false;
  int made_ = 0;
  int destroyed_ = 0;
  std::deque<int> kept_;
  std::deque<sender> senders_;
  std::deque<int> receivers_;
};

}  // namespace

TEST_CASE("random sequences: a channel does what the reference says, and loses no value",
          "[channel]") {
  run_seeds<channel_trial>(5'000);
}
