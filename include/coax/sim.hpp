#pragma once

/// The simulation: a world of hosts with a virtual clock, a network and faults. For tests, and so
/// not part of coax.hpp.

#include <coax/sim/faults.hpp>
#include <coax/sim/host.hpp>
#include <coax/sim/options.hpp>
#include <coax/sim/oracle.hpp>
#include <coax/sim/world.hpp>
