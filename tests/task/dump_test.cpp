#include <coax/task/dump.hpp>

#include <coax/sync/event.hpp>
#include <coax/task/race.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>

#include "probes.hpp"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

using namespace std::chrono_literals;
using coax::task;
using coax::detail::function_name;

namespace {

std::string dump_of(const coax::loop& l) {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* const to = ::open_memstream(&text, &size);
  coax::dump(l, to);
  std::fclose(to);
  std::string copy(text, size);
  std::free(text);
  return copy;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

/// Whether `line` has all of `parts` in this order.
bool has(std::string_view line, std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts) {
    const std::size_t at = line.find(part);
    if (at == line.npos) return false;
    line.remove_prefix(at + part.size());
  }
  return true;
}

task<> naps(coax::timeout how_long) { co_await coax::sleep_for(how_long); }
task<> naps_deeper(coax::timeout how_long) { co_await naps(how_long); }

task<> looks_inside(const coax::loop& l, coax::event& happened, std::string& seen) {
  co_await happened.wait();
  seen = dump_of(l);
}
task<> looks_in_and_after(const coax::loop& l, coax::event& happened, std::string& inside,
                          std::string& after) {
  co_await looks_inside(l, happened, inside);
  after = dump_of(l);
}

}  // namespace

TEST_CASE("the name of a function is found in what compilers make of it", "[dump]") {
  CHECK(function_name("coax::task<> app::serve(int)").name == "app::serve");
  CHECK(function_name("coax::with_uring::task<void> app::server::go(T, int) [with T = double]")
            .name == "app::server::go");
  CHECK(function_name("coax::task<> app::server::go(T, int) [T = double]").name ==
        "app::server::go");
  CHECK(function_name("void app::dumper(dumper()::_ZN3app6dumperEv.Frame*)").name == "app::dumper");
  CHECK(function_name("coax::task<std::pair<int, long> > f(void (*)(int))").name == "f");
  for (
      const char* lambda :
      {"m()::<lambda(int)>", "auto m()::(anonymous class)::operator()(int) const",
       "serve(coax::listener&)::<lambda(coax::scope&)>::operator()(serve(coax::listener&)::<lambda("
       "coax::scope&)>::_ZZ5serveENKUlRNS0_5scopeEE_clES4_.Frame*)",
       "serve(coax::listener&)::<lambda(coax::scope&)>::<lambda()>::operator()(serve(coax::listener&)"
       "::<lambda(coax::scope&)>::<lambda()>::_ZZZ5serveEENKUlvE_clEv.Frame*)"}) {
    const function_name found(lambda);
    CHECK(found.lambda_in);
    CHECK((found.name == "m" || found.name == "serve"));
  }
  CHECK(function_name("").name.empty());
}

TEST_CASE("a dump says where each task waits, for what and for how long", "[dump]") {
  test_loop loop;
  watched<> w(*loop, naps_deeper(1h));
  loop->settle();
  loop->advance(1500ms);
  const auto lines = lines_of(dump_of(*loop));
  REQUIRE(lines.size() == 2);
  CHECK(has(lines[0], {"naps", "(dump_test.cpp:", "waits for a timer, 1.5 s"}));
  CHECK(has(lines[1], {"  in ", "naps_deeper", "(dump_test.cpp:"}));
  w.cancel_from_outside();
  CHECK(has(dump_of(*loop), {"being unwound", "cancelled"}));
  w.run_to_end();
  CHECK(dump_of(*loop).empty());
}

TEST_CASE("a dump shows branches and children below what waits for them", "[dump]") {
  test_loop loop;
  const auto children = [](coax::scope& s) -> task<> {
    for (int i = 0; i < 100; ++i) s.spawn(naps, 1h);
    s.spawn(naps_deeper, 1h);
    co_await coax::when_all(naps(1h), coax::shield(coax::sleep_for(2h)));
  };
  const auto body = [&]() -> task<> { co_await coax::with_scope(children); };
  watched<> w(*loop, body());
  loop->settle();
  const std::string text = dump_of(*loop);
  const auto lines = lines_of(text);
  INFO(text);
  REQUIRE(lines.size() == 7);
  CHECK(has(lines[0], {"dump_test.cpp", "waits for a scope to end"}));
  CHECK(has(lines[1], {"  ", "dump_test.cpp", "waits for all of several"}));
  CHECK(has(lines[2], {"    ", "naps", "waits for a timer"}));
  CHECK(has(lines[3], {"    ", "a branch waits for a timer"}));
  CHECK(has(lines[4], {"  100 x ", "naps", "waits for a timer, up to 0.0 s"}));
  CHECK(has(lines[5], {"  ", "naps", "waits for a timer"}));
  CHECK(has(lines[6], {"    in ", "naps_deeper"}));
  w.cancel_from_outside();
  loop->settle();
  CHECK(has(dump_of(*loop), {"a branch waits for a timer", "cancelled but shielded"}));
  w.run_to_end();
}

TEST_CASE("a dump from a task says which one runs, and which has not begun", "[dump]") {
  test_loop loop;
  std::string text;
  loop.run([&]() -> task<> {
    co_await coax::with_scope([&](coax::scope& s) -> task<> {
      s.spawn(naps, 1s);
      text = dump_of(coax::loop::current());
      co_return;
    });
  });
  const auto lines = lines_of(text);
  INFO(text);
  REQUIRE(lines.size() >= 2);
  CHECK(has(text, {" runs\n", "not started yet"}));
}

namespace {
task<> chain(int depth) {
  if (depth == 0)
    co_await coax::sleep_for(1h);
  else
    co_await chain(depth - 1);
}
task<> nested(int depth) {
  if (depth == 0) {
    co_await coax::sleep_for(1h);
  } else {
    auto ended = co_await coax::within(2h, nested(depth - 1));
    static_cast<void>(ended);
  }
}
}  // namespace

TEST_CASE("a dump from a task shows no child that has ended without waiting", "[dump]") {
  test_loop loop;
  coax::event happened;
  happened.set();
  std::string inside;
  std::string after;
  watched<> w(*loop, looks_in_and_after(*loop, happened, inside, after));
  w.run_to_end();
  const auto lines = lines_of(inside);
  REQUIRE(lines.size() == 2);
  CHECK(has(lines[0], {"looks_inside", "(dump_test.cpp:", "runs"}));
  CHECK(has(lines[1], {"  in ", "looks_in_and_after"}));
  REQUIRE(lines_of(after).size() == 1);
  CHECK(has(after, {"looks_in_and_after", "(dump_test.cpp:", "runs"}));
}

TEST_CASE("a dump shows no branch that has ended while others go on", "[dump]") {
  test_loop loop;
  const auto ends_at_once = []() -> task<> { co_return; };
  const auto body = [&]() -> task<> {
    co_await coax::when_all(ends_at_once(), naps(1s), naps(1h));
  };
  watched<> w(*loop, body());
  loop->settle();
  CHECK(lines_of(dump_of(*loop)).size() == 2);  // two that nap alike are one line
  loop->advance(1s);
  loop->settle();
  const auto lines = lines_of(dump_of(*loop));
  REQUIRE(lines.size() == 2);
  CHECK(has(lines[0], {"waits for all of several"}));
  CHECK(has(lines[1], {"  ", "naps", "waits for a timer"}));
  w.cancel_from_outside();
  w.run_to_end();
}

TEST_CASE("a dump of a deep chain and of deep nesting is bounded and needs no stack", "[dump]") {
  on_small_stack([] {
    test_loop loop;
    watched<> deep(*loop, chain(20'000));
    loop->settle();
    CHECK(lines_of(dump_of(*loop)).size() < 20);
    deep.cancel_from_outside();
    deep.run_to_end();
    watched<> wide(*loop, nested(2'000));
    loop->settle();
    const std::string text = dump_of(*loop);
    CHECK(lines_of(text).size() >= 2'000);
    CHECK(text.size() < lines_of(text).size() * 400);  // deep down no line is as long as it is deep
    CHECK(has(text, {"[61] ", "[62] ", "[1999] "}));
    wide.cancel_from_outside();
    wide.run_to_end();
  });
}

TEST_CASE("cancelling 20,000 nested withins needs no stack", "[dump]") {
  on_small_stack([] {
    test_loop loop;
    watched<> deep(*loop, nested(20'000));
    loop->settle();
    deep.cancel_from_outside();
    deep.run_to_end();
    CHECK(deep.unwound());
  });
}
