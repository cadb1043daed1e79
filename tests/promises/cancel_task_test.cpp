#include "task_scenarios.hpp"

/// Cancelled at every await, on both backends and under virtual time: whichever it was, everything is undone and nothing lost.

TEST_CASE("cancelled at whichever await, a task undoes everything and loses nothing",
          "[promises]") {
  scenarios::for_each_task_scenario(
      []<class Scenario>(const char* name) { cancel_at_every_await_everywhere<Scenario>(name); });
}
