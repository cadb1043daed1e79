#include <coax/task/task_local.hpp>

#include <coax/task/finally.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include "death.hpp"
#include "probes.hpp"

#include <functional>
#include <string>

using namespace std::chrono_literals;
using coax::task;

namespace {

const coax::task_local<int> number;
const coax::task_local<std::string> name;

int number_here() {
  const int* const n = number.get();
  return n == nullptr ? 0 : *n;
}

task<int> number_after(coax::timeout delay) {
  co_await coax::sleep_for(delay);
  co_return number_here();
}

}  // namespace

TEST_CASE("a task_local has no value until it is set, and one for each task", "[task_local]") {
  test_loop loop;
  std::string log;
  loop.run([&]() -> task<> {
    CHECK(number.get() == nullptr);
    const auto child = [&log](int id) -> task<> {
      number.set(id);
      name.set(std::string(100, static_cast<char>('a' + id)));
      co_await coax::sleep_for((10 - id) * 1s);  // others run and set theirs
      CHECK(number_here() == id);
      CHECK(*name.get() == std::string(100, static_cast<char>('a' + id)));
      log += static_cast<char>('0' + id);
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int id = 1; id <= 3; ++id) s.spawn(child, id);
      co_return;
    });
    CHECK(number.get() == nullptr);
  });
  CHECK(log == "321");
  CHECK(number.get() == nullptr);
}

TEST_CASE("children begin with their parent's values and keep their own changes", "[task_local]") {
  test_loop loop;
  loop.run([]() -> task<> {
    number.set(1);
    int before = 0;
    int own = 0;
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn([&]() -> task<> {
        before = number_here();
        number.set(2);
        co_await coax::sleep_for(2s);
        own = number_here();
      });
      co_await coax::sleep_for(1s);
      CHECK(number_here() == 1);
      number.set(3);  // not seen by a child that has begun
    });
    CHECK(before == 1);
    CHECK(own == 2);
    CHECK(number_here() == 1);  // the body of a scope is a branch too
  });
}

TEST_CASE("a child that changes one variable keeps the others as it has inherited them",
          "[task_local]") {
  test_loop loop;
  loop.run([]() -> task<> {
    number.set(1);
    name.set("parent");
    const auto child = []() -> task<> {
      number.set(2);
      CHECK(number_here() == 2);
      CHECK((name.get() != nullptr && *name.get() == "parent"));
      co_return;
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(child);
      co_return;
    });
    CHECK(number_here() == 1);
    CHECK((name.get() != nullptr && *name.get() == "parent"));
  });
}

TEST_CASE("a value that one who shared it has changed goes with the last who has it",
          "[task_local]") {
  const counted::census counts;
  static const coax::task_local<counted> value;
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      value.set(counted(1));
      s.spawn([]() -> task<> {
        value.set(counted(2));
        co_await coax::sleep_for(1s);
      });
      s.spawn([]() -> task<> { co_await coax::sleep_for(2s); });
      co_await coax::yield();
      CHECK(counts.alive() == 2);
      value.set(counted(3));
      CHECK(counts.alive() == 3);
      co_await coax::sleep_for(1500ms);
      CHECK(counts.alive() == 2);
      co_await coax::sleep_for(1s);
      CHECK(counts.alive() == 1);
    });
    CHECK(counts.alive() == 0);
  });
}

TEST_CASE("branches inherit, tasks that are awaited share", "[task_local]") {
  test_loop loop;
  loop.run([]() -> task<> {
    number.set(5);
    const auto ends = co_await coax::when_all(number_after(1s), number_after(2s));
    CHECK(std::get<0>(ends) == 5);
    CHECK(std::get<1>(ends) == 5);
    auto in_time = co_await coax::within(3s, number_after(1s));
    CHECK(*in_time == 5);
    const auto sets = []() -> task<> {
      number.set(6);
      co_await coax::yield();
    };
    co_await sets();
    CHECK(number_here() == 6);
    auto also_in_time = co_await coax::within(1s, sets());
    CHECK(bool(also_in_time));
    CHECK(number_here() == 6);
  });
}

TEST_CASE("the clean-up of finally inherits, whichever way its body ends", "[task_local]") {
  test_loop loop;
  loop.run([]() -> task<> {
    number.set(5);
    for (const coax::timeout of_the_body : {0s, 1s, 3s}) {
      int seen = 0;
      const auto body = [&]() -> task<> {
        if (of_the_body.value() != 0s) co_await coax::sleep_for(of_the_body);
        number.set(6);  // the body's own
      };
      const auto cleanup = [&]() -> task<> {
        co_await coax::yield();
        seen = number_here();
      };
      auto ended = co_await coax::within(2s, coax::finally(body, cleanup));
      CHECK(bool(ended) == (of_the_body.value() != 3s));
      CHECK(seen == 5);
    }
  });
}

TEST_CASE("the clean-up of finally has nothing of a body that was unwound", "[task_local]") {
  test_loop loop;
  loop.run([]() -> task<> {
    number.set(5);
    int seen = 0;
    const auto body = []() -> task<> {
      number.set(6);
      co_await coax::sleep_for(3s);
    };
    const auto cleanup = [&]() -> task<> {
      seen = number_here();
      co_return;
    };
    auto ended = co_await coax::within(2s, coax::finally(body, cleanup));
    CHECK(ended.error() == std::errc::timed_out);
    CHECK(seen == 5);
  });
}

TEST_CASE("a task_local is there while destructors run", "[task_local]") {
  test_loop loop;
  int seen = 0;
  struct looks {
    int& seen;
    ~looks() { seen = number_here(); }
  };
  const auto body = [&]() -> task<> {
    number.set(9);
    const looks l{seen};
    co_await coax::sleep_for(1h);
  };
  watched<> w(*loop, body());
  loop->settle();
  w.cancel_from_outside();
  w.run_to_end();
  CHECK(w.unwound());
  CHECK(seen == 9);
}

TEST_CASE("the parameters of a task that has finished find its task_local variables too",
          "[task_local]") {
  class looks {
   public:
    explicit looks(int& seen) : seen_(&seen) {}
    looks(looks&& other) noexcept : seen_(std::exchange(other.seen_, nullptr)) {}
    ~looks() {
      if (seen_ != nullptr) *seen_ = number_here();
    }

   private:
    int* seen_;
  };
  test_loop loop;
  int of_child = 0;
  int of_branch = 0;
  loop.run([&]() -> task<> {
    const auto sets = [](looks, int value) -> task<> {
      number.set(value);
      co_await coax::yield();
    };
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(sets, looks(of_child), 3);
      auto both = coax::when_all(sets(looks(of_branch), 4), coax::yield());
      co_await both;
      CHECK(number.get() == nullptr);
    });
  });
  CHECK(of_child == 3);
  CHECK(of_branch == 4);
}

TEST_CASE("setting a task_local over and over while children live does not pile values up",
          "[task_local]") {
  const counted::census counts;
  static const coax::task_local<counted> value;
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      for (int i = 0; i < 1000; ++i) {
        value.set(counted(i));
        if (i % 100 == 0) s.spawn([]() -> task<> { co_await coax::sleep_for(2000s); });
        co_await coax::sleep_for(1s);
      }
      CHECK(counts.alive() == 11);  // that of each child, and the last
    });
  });
}

TEST_CASE("setting a task_local outside of a task ends the program with a message",
          "[task_local][death]") {
  const ending outside = ending_of([] {
    manual_loop loop;
    loop.inside([] { number.set(1); });
  });
  CHECK(outside.aborted_saying("outside of a task"));
}
