#include <coax/task/shield.hpp>

#include <coax/task/finally.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <stdexcept>
#include <string>

using namespace std::chrono_literals;
using coax::task;

namespace {

task<> closes(std::string& log, coax::timeout takes = 1s) {
  log += '(';
  co_await coax::sleep_for(takes);
  log += ')';
}

}  // namespace

TEST_CASE("what is shielded ends by itself, and the next wait unwinds", "[shield]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    const named n(log, 'n');
    const int value = co_await coax::shield(after(2s, 7));
    log += static_cast<char>('0' + value);
    co_await coax::yield();
    log += '!';
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "7n");
  CHECK(loop.elapsed() == 2s);
}

TEST_CASE("a shield that begins after the request still runs what is in it", "[shield]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    const int first = co_await coax::shield(after(1s, 1));  // cancelled meanwhile
    const int second = co_await coax::shield(after(1s, 2));
    log += static_cast<char>('0' + first + second);
    co_await coax::sleep_for(0s);
    log += '!';
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "3");
}

TEST_CASE("a shield ends with its await, and not only with the expression", "[shield]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    (co_await coax::shield(closes(log)), co_await coax::yield());
    log += '!';
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "()");
}

TEST_CASE("within inside a shield fires while the task is being cancelled", "[shield]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    auto one = co_await coax::shield(coax::within(1s, coax::sleep_for(1h)));
    if (one.error() == std::errc::timed_out) log += '1';
    auto more = co_await coax::shield(coax::within(1s, closes(log, 1h)));
    if (more.error() == std::errc::timed_out) log += '2';
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.finished());
  CHECK(log == "1(2");
  CHECK(loop.elapsed() == 2s);
}

TEST_CASE("a shielded branch holds up what cancels it, and its result is delivered", "[shield]") {
  test_loop loop;
  loop.run([]() -> task<> {
    const auto ends = co_await coax::race(coax::shield(after(5s, 5)), after(1s, 1));
    CHECK(std::get<0>(ends) == 5);
    CHECK(std::get<1>(ends) == 1);
  });
  CHECK(loop.elapsed() == 5s);
}

TEST_CASE("an exception leaves a shield, and the shield ends with it", "[shield]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    try {
      co_await coax::shield(throws_after(1s, "out"));
    } catch (const std::runtime_error& e) {
      log += e.what();
    }
    co_await coax::sleep_for(1h);
    log += '!';
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "out");
}

TEST_CASE("shields nest: the outer one ends last", "[shield]") {
  test_loop loop;
  std::string log;
  const auto inner = [&]() -> task<> {
    co_await coax::shield(closes(log));
    co_await closes(log);  // still inside the outer shield
  };
  const auto body = [&]() -> task<> {
    co_await coax::shield(inner());
    co_await closes(log);
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "()()(");
}

TEST_CASE("finally runs its clean-up after a body that returns, and gives the body's result",
          "[finally]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto body = [&]() -> task<int> {
      co_await closes(log);
      co_return 7;
    };
    const auto cleanup = [&]() -> task<> {
      log += 'c';
      co_await closes(log);
    };
    const int value = co_await coax::finally(body, cleanup);
    CHECK(value == 7);
    CHECK(log == "()c()");
  });
  CHECK(loop.elapsed() == 2s);
}

TEST_CASE("finally runs its clean-up after a body that throws", "[finally]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto body = [&]() -> task<> { return throws_after(1s, "body"); };
    const auto cleanup = [&]() -> task<> { return closes(log); };
    try {
      co_await coax::finally(body, cleanup);
    } catch (const std::runtime_error& e) {
      log += e.what();
    }
  });
  CHECK(log == "()body");
}

TEST_CASE("the body's exception is delivered rather than the clean-up's", "[finally]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto cleanup = [&]() -> task<> { return throws_after(1s, "cleanup"); };
    try {
      co_await coax::finally([] { return throws_after(1s, "body"); }, cleanup);
    } catch (const std::runtime_error& e) {
      log += e.what();
    }
    try {
      co_await coax::finally([] { return after(1s, 1); }, cleanup);
    } catch (const std::runtime_error& e) {
      log += e.what();
    }
  });
  CHECK(log == "bodycleanup");
}

TEST_CASE("a cancelled body is unwound, then the clean-up runs, then the rest unwinds",
          "[finally]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> { return sleeps(log, 'b', 1h); };
  const auto cleanup = [&]() -> task<> { return closes(log, 5s); };
  const auto outer = [&]() -> task<> {
    const named n(log, 'o');
    co_await coax::finally(body, cleanup);
    log += '!';
  };
  watched<> w(*loop, outer());
  loop->settle();
  w.cancel_from_outside();
  loop->settle();
  CHECK(log == "b(");
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "b()o");
  CHECK(loop.elapsed() == 5s);
}

TEST_CASE("a request during the clean-up waits, and does not take the result", "[finally]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<int> { return after(1s, 7); };
  const auto cleanup = [&]() -> task<> { return closes(log); };
  const auto outer = [&]() -> task<> {
    const int value = co_await coax::finally(body, cleanup);
    log += static_cast<char>('0' + value);
    co_await coax::yield();
    log += '!';
  };
  watched<> w(*loop, outer());
  loop->settle();
  loop->pass_time();
  loop->settle();
  CHECK(log == "(");
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "()7");
}

TEST_CASE("finally under a request that is there already: the body runs to its first wait",
          "[finally]") {
  test_loop loop;
  std::string log;
  const auto body = [&]() -> task<> {
    log += 'b';
    co_await coax::sleep_for(1h);
    log += '!';
  };
  const auto cleanup = [&]() -> task<> { return closes(log); };
  const auto outer = [&]() -> task<> {
    co_await coax::shield(coax::sleep_for(1s));
    co_await coax::finally(body, cleanup);
    log += '!';
  };
  watched<> w(*loop, outer());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(log == "b()");
}

TEST_CASE("within around finally waits for the clean-up", "[finally]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    const auto body = [&]() -> task<> { return sleeps(log, 'b', 1h); };
    const auto cleanup = [&]() -> task<> { return closes(log, 3s); };
    auto late = co_await coax::within(1s, coax::finally(body, cleanup));
    CHECK(late.error() == std::errc::timed_out);
    CHECK(log == "b()");
  });
  CHECK(loop.elapsed() == 4s);
}

TEST_CASE("what the body of finally was given is gone before the clean-up, however it ended",
          "[finally]") {
  for (const bool cancelled : {false, true}) {
    INFO("cancelled: " << cancelled);
    test_loop loop;
    loop.run([&]() -> task<> {
      auto lent = std::make_shared<int>(1);
      const std::weak_ptr<int> still_there = lent;
      const auto keeps = [](std::shared_ptr<int>) -> task<> { co_await coax::sleep_for(2s); };
      const auto body = [&]() -> task<> { return keeps(std::move(lent)); };
      bool was_there = true;
      const auto cleanup = [&]() -> task<> {
        was_there = !still_there.expired();
        co_return;
      };
      auto ended = co_await coax::within(cancelled ? 1s : 3s, coax::finally(body, cleanup));
      CHECK(static_cast<bool>(ended) == !cancelled);
      CHECK_FALSE(was_there);
    });
  }
}

TEST_CASE("finally cleans up after a body that throws before it gives its task", "[finally]") {
  test_loop loop;
  bool cleaned_up = false;
  loop.run([&]() -> task<> {
    const auto body = []() -> task<> { throw std::runtime_error("no task"); };
    const auto cleanup = [&]() -> task<> {
      cleaned_up = true;
      co_return;
    };
    try {
      co_await coax::finally(body, cleanup);
      FAIL("it threw");
    } catch (const std::runtime_error&) {
    }
  });
  CHECK(cleaned_up);
}
