#pragma once

#include "../catch.hpp"
#include "../io/each_backend.hpp"

#include <coax/sim.hpp>

#include <functional>
#include <string_view>
#include <utility>

/// The simulation as one more backend: the same body, the same results. For bodies that use
/// coax's own surface alone, and no descriptor of the real kernel.

inline const char* name_of(coax::sim::completion c) {
  return c == coax::sim::completion::ring ? "like io_uring" : "like epoll";
}

/// Runs the task `body()` gives on the one host of a world, and checks that it leaves nothing
/// behind.
template <class Body>
void run_clean_in(coax::sim::world& w, Body&& body) {
  const auto frames = coax::detail::frames::live();
  std::size_t in_flight = 1;
  coax::sim::host* own = nullptr;
  const auto checked = [&]() -> coax::task<> {
    REQUIRE(coax::reactor::current().backend() == "simulation");
    co_await body();
    in_flight = coax::reactor::current().in_flight();
    CHECK(own->open_fds() == 0);
  };
  own = &w.host("test", checked);
  w.run_to_end();
  CHECK(in_flight <= 1);  // the reactor's own wait for its wake-up
  CHECK(coax::detail::frames::live() == frames);
}

template <class Body>
void on_simulation(Body&& body, coax::sim::options how = {}) {
  for (const auto completion : {coax::sim::completion::readiness, coax::sim::completion::ring}) {
    INFO("in simulation, " << name_of(completion));
    how.completion = completion;
    coax::sim::world w{how};
    run_clean_in(w, body);
  }
}

template <class Body>
void on_each_backend_and_simulation(Body&& body) {
  on_each_backend(body);
  on_simulation(body);
}
