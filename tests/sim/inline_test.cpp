#include <coax/net/connect.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/resolve.hpp>
#include <coax/process/blocking.hpp>
#include <coax/process/post.hpp>
#include <coax/sim.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/within.hpp>

#include "../catch.hpp"

#include <netdb.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

// What crosses threads elsewhere stays on one in a simulation: names, blocking calls, posts.

namespace {

using namespace std::chrono_literals;
using coax::listener;
using coax::task;

task<> sleeps_for_ever() { co_await coax::sleep_for(1h); }

}  // namespace

TEST_CASE("hosts of a simulation are found by their names") {
  for (const auto completion : {coax::sim::completion::readiness, coax::sim::completion::ring}) {
    coax::sim::world w{{.latency = {1ms, 20ms}, .completion = completion}};
    std::string got;
    std::error_code unknown;
    const auto serves = []() -> task<> {
      auto from = listener::bind("0.0.0.0:9000").value();
      auto conn = co_await from.accept();
      auto sent = co_await conn.value().write("hello");
      CHECK(sent);
    };
    const auto asks = [&]() -> task<> {
      auto conn = co_await coax::within(1min, coax::connect("server", 9000));
      REQUIRE(conn);
      std::array<std::byte, 5> bytes;
      auto n = co_await conn->read_exactly(bytes);
      REQUIRE(n);
      got.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      auto nobody = co_await coax::connect("nobody", 9000);
      unknown = nobody.error();
    };
    w.host("server", serves);
    w.host("client", asks);
    w.run_to_end();
    CHECK(got == "hello");
    CHECK(unknown == coax::resolve_error(EAI_NONAME));
  }
}

TEST_CASE("what a posted function throws ends the program of a simulated host") {
  for (const auto completion : {coax::sim::completion::readiness, coax::sim::completion::ring}) {
    coax::sim::world w{{.completion = completion}};
    const auto main_task = []() -> task<> {
      coax::post(coax::reactor::current(),
                 [] { throw std::out_of_range("from a posted function"); });
      co_await sleeps_for_ever();
    };
    w.host("test", main_task);
    CHECK_THROWS_AS(w.run_to_end(), std::out_of_range);
  }
}

TEST_CASE("a blocking call of a simulated host is made on its thread, and takes no time") {
  for (const auto completion : {coax::sim::completion::readiness, coax::sim::completion::ring}) {
    coax::sim::world w{{.completion = completion}};
    std::thread::id where;
    const auto main_task = [&]() -> task<> {
      const auto before = coax::now();
      where = co_await coax::blocking([] { return std::this_thread::get_id(); });
      CHECK(coax::now() == before);
    };
    w.host("test", main_task);
    w.run_to_end();
    CHECK(where == std::this_thread::get_id());
  }
}
