#include "conformance.hpp"

#include "../catch.hpp"

#include <coax/sim.hpp>
#include <coax/task/sleep.hpp>

#include <cstddef>

namespace {

void run_clean_in(coax::sim::world& w, const std::function<coax::task<>()>& body) {
  const auto frames = coax::detail::frames::live();
  std::size_t in_flight = 1;
  coax::sim::host* own = nullptr;
  const auto checked = [&]() -> coax::task<> {
    REQUIRE(coax::reactor::current().backend() == "simulation");
    co_await body();
    // The number of a stream that has received stays taken until the last completion of that.
    for (int turns = 0; turns < 100 && own->open_fds() != 0; ++turns) co_await coax::yield();
    in_flight = coax::reactor::current().in_flight();
    CHECK(own->open_fds() == 0);
  };
  own = &w.host("test", checked);
  w.run_to_end();
  CHECK(in_flight <= 1);  // the reactor's own wait for its wake-up
  CHECK(coax::detail::frames::live() == frames);
}

}  // namespace

void on_simulation(const std::function<coax::task<>()>& body) {
  using coax::sim::completion;
  for (const auto how : {completion::readiness, completion::ring}) {
    INFO("in simulation, like " << (how == completion::ring ? "io_uring" : "epoll"));
    coax::sim::world w{{.completion = how}};
    run_clean_in(w, body);
  }
}
