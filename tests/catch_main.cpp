// The main of Catch2 2, compiled once for all test executables: it takes longer than most tests do.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
