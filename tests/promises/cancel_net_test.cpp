#include "net_scenarios.hpp"

/// Cancelled at every await, on both backends: no connection, no byte and no peer is lost.

TEST_CASE("cancelled at whichever await, a task loses no connection, no byte and no peer",
          "[promises]") {
  scenarios::for_each_net_scenario(
      []<class Scenario>(const char* name) { cancel_at_every_await_on_reactors<Scenario>(name); });
}
