#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

#include "probes.hpp"

#include <functional>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

/// What is spawned, and what it is spawned with, lives as long as the child: use of anything dead is seen by ASan.

using namespace std::chrono_literals;
using coax::scope;
using coax::task;

namespace {

/// Runs `spawns` in a scope, and waits for what it spawned.
template <class Spawns>
void in_scope(const Spawns& spawns) {
  test_loop loop;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](scope& s) -> task<> {
      spawns(s);
      co_return;
    });
  });
}

std::string text(char c) { return std::string(100, c); }

}  // namespace

TEST_CASE("a closure spawned as a temporary lives as long as the child", "[spawn]") {
  std::string log;
  in_scope([&](scope& s) {
    s.spawn([&log, held = text('a'), also = std::make_unique<std::string>(text('b'))]() -> task<> {
      co_await coax::sleep_for(1s);
      log += held + *also;
    });
  });
  CHECK(log == text('a') + text('b'));
}

TEST_CASE("a named closure is copied into the child", "[spawn]") {
  std::string log;
  in_scope([&](scope& s) {
    const auto closure = [&log, held = text('a')](char c) -> task<> {
      co_await coax::sleep_for(1s);
      log += held + c;
    };
    s.spawn(closure, '1');
    s.spawn(closure, '2');
  });
  CHECK(log == text('a') + '1' + text('a') + '2');
}

TEST_CASE("arguments that are taken by reference, or as a view, live as long as the child",
          "[spawn]") {
  std::string log;
  in_scope([&](scope& s) {
    s.spawn(
        [](std::string& l, const std::string& by_const_reference) -> task<> {
          co_await coax::sleep_for(1s);
          l += by_const_reference;
        },
        std::ref(log), text('a'));
    s.spawn(
        [](std::string& l, std::string_view view) -> task<> {
          co_await coax::sleep_for(2s);
          l += view;
        },
        std::ref(log), text('b'));
    s.spawn(
        [](std::string& l, std::string&& by_rvalue) -> task<> {
          co_await coax::sleep_for(3s);
          l += by_rvalue;
        },
        std::ref(log), text('c'));
    s.spawn(
        [](std::string& l, const char* literal) -> task<> {
          co_await coax::sleep_for(4s);
          l += literal;
        },
        std::ref(log), "d");
  });
  CHECK(log == text('a') + text('b') + text('c') + "d");
}

TEST_CASE("arguments that can only be moved are moved into the child", "[spawn]") {
  int sum = 0;
  in_scope([&](scope& s) {
    auto box = std::make_unique<int>(1);
    s.spawn(
        [](int& out, std::unique_ptr<int> b) -> task<> {
          co_await coax::sleep_for(1s);
          out += *b;
        },
        std::ref(sum), std::move(box));
    s.spawn(
        [](int& out, const std::unique_ptr<int>& b) -> task<> {
          co_await coax::sleep_for(1s);
          out += *b;
        },
        std::ref(sum), std::make_unique<int>(2));
  });
  CHECK(sum == 3);
}

TEST_CASE("a referred argument is not copied", "[spawn]") {
  const counted::census counts;
  {
    counted shared(3);
    in_scope([&](scope& s) {
      s.spawn(
          [](counted& c) -> task<> {
            ++c.value;
            co_return;
          },
          std::ref(shared));
      s.spawn(
          [](const counted& c) -> task<> {
            CHECK(c.value == 4);
            co_return;
          },
          std::cref(shared));
    });
    CHECK(shared.value == 4);
  }
  CHECK(counted::copied == 0);
}

TEST_CASE("what may be called may be spawned: functions, members, closures that change",
          "[spawn]") {
  struct server {
    task<> serve(int requests) {
      co_await coax::sleep_for(1s);
      served += requests;
    }
    int served = 0;
  };
  server one;
  int rounds = 0;
  in_scope([&](scope& s) {
    s.spawn(&server::serve, std::ref(one), 3);
    s.spawn(&server::serve, &one, 4);
    s.spawn([own = 0, &rounds]() mutable -> task<> {
      while (own < 3) {
        co_await coax::sleep_for(1s);
        ++own;
      }
      rounds = own;
    });
    s.spawn(std::function<task<>()>([&rounds]() -> task<> {
      ++rounds;
      co_return;
    }));
  });
  CHECK(one.served == 7);
  CHECK(rounds == 3);
}

TEST_CASE(
    "closure and arguments are destroyed once: by a child that ends, throws, is cancelled, or never ran",
    "[spawn]") {
  enum class way { ends, throws, is_cancelled, never_ran, is_refused };
  for (const way w : {way::ends, way::throws, way::is_cancelled, way::never_ran, way::is_refused}) {
    const counted::census counts;
    test_loop loop;
    bool ran = false;
    try {
      loop.run([&]() -> task<> {
        co_await coax::with_scope([&](scope& s) -> task<> {
          const auto child = [&ran, w, held = counted(1)](counted, const counted&) -> task<> {
            ran = true;
            co_await coax::sleep_for(1s);
            if (w == way::throws) throw std::runtime_error("as told");
          };
          if (w == way::is_refused) s.cancel();
          s.spawn(child, counted(2), counted(3));
          if (w == way::never_ran) s.cancel();
          if (w == way::is_cancelled) {
            co_await coax::yield();
            s.cancel();
          }
        });
        CHECK(counts.alive() == 0);
      });
      CHECK(w != way::throws);
    } catch (const std::runtime_error&) {
      CHECK(w == way::throws);
      CHECK(counts.alive() == 0);
    }
    CHECK(ran == (w != way::never_ran && w != way::is_refused));
  }
}

namespace {

/// An argument that tells whether it lives, in a place that outlives it.
class tells {
 public:
  explicit tells(bool& alive) : alive_(&alive) { alive = true; }
  tells(tells&& other) noexcept : alive_(std::exchange(other.alive_, nullptr)) {}
  tells& operator=(tells&&) = delete;
  ~tells() {
    if (alive_ != nullptr) *alive_ = false;
  }
  const bool& alive() const { return *alive_; }

 private:
  bool* alive_;
};

/// A parameter by value that refers to an argument, and is destroyed with the frame.
class refers_back {
 public:
  refers_back(const tells& argument) : alive_(argument.alive()) {}
  refers_back(refers_back&& other) noexcept : alive_(other.alive_) {}
  refers_back& operator=(refers_back&&) = delete;
  ~refers_back() { CHECK(alive_); }

 private:
  const bool& alive_;
};

}  // namespace

TEST_CASE("closure and arguments are destroyed after the frame that uses them", "[spawn]") {
  enum class way { ends, throws, is_cancelled, never_ran };
  for (const way w : {way::ends, way::throws, way::is_cancelled, way::never_ran}) {
    test_loop loop;
    bool alive = false;
    try {
      loop.run([&]() -> task<> {
        co_await coax::with_scope([&](scope& s) -> task<> {
          s.spawn(
              [](refers_back, way how) -> task<> {
                co_await coax::sleep_for(1s);
                if (how == way::throws) throw std::runtime_error("as told");
              },
              tells(alive), w);
          if (w == way::never_ran) s.cancel();
          co_await coax::yield();
          if (w == way::is_cancelled) s.cancel();
        });
      });
    } catch (const std::runtime_error&) {
    }
    CHECK_FALSE(alive);
  }
}

TEST_CASE("a function that throws instead of giving a task spawns nothing", "[spawn]") {
  const counted::census counts;
  in_scope([&](scope& s) {
    const auto throws = [](const counted&) -> task<> { throw std::runtime_error("no task"); };
    CHECK_THROWS_WITH(s.spawn(throws, counted(1)), "no task");
    CHECK(s.size() == 0);
    CHECK(counts.alive() == 0);
  });
}

TEST_CASE("closures and arguments are aligned as they ask to be", "[spawn]") {
  struct alignas(64) wide {
    char bytes[64]{};
  };
  std::string addresses_end_in;
  in_scope([&](scope& s) {
    for (int i = 0; i < 8; ++i) {
      s.spawn(
          [](std::string& log, const wide& argument) -> task<> {
            // through text: the compiler takes for granted that the last bits are zero
            std::ostringstream address;
            address << static_cast<const void*>(argument.bytes);
            const unsigned long long number = std::stoull(address.str(), nullptr, 16);
            log += std::to_string(number % alignof(wide)) + ' ';
            co_return;
          },
          std::ref(addresses_end_in), wide());
    }
  });
  CHECK(addresses_end_in == "0 0 0 0 0 0 0 0 ");
}
