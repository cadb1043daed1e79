#pragma once

#include "../io/each_backend.hpp"

#include <coax/task/task.hpp>

#include <functional>

/// The simulation as one more backend: the same body, the same results. For bodies that use
/// coax's own surface alone, and no descriptor of the real kernel.

/// Runs the task `body()` gives on the one host of a world, once as over epoll and once as over
/// io_uring, and checks that it leaves nothing behind.
///
/// Compiled apart, so that who includes this does not compile the simulation.
void on_simulation(const std::function<coax::task<>()>& body);

template <class Body>
void on_each_backend_and_simulation(Body&& body) {
  on_each_backend(body);
  on_simulation(std::ref(body));
}
