# shellcheck shell=bash
# Sourced by the scripts here: builds the benchmarks into $build, with the compiler $CXX (by default
# g++). What is missing of the build's own needs is installed first; a library to compare with is not.
top=$(cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/../.." && pwd)
export CXX=${CXX:-g++}
build=$top/build/bench-$(basename "$CXX")

# shellcheck source=.ci/packages.sh
source "$top/.ci/packages.sh"
need g++ gcc meson ninja-build pkg-config liburing-dev catch2 python3

{
  set_up "$build" -Dexamples=disabled -Dtests=enabled
  meson compile -C "$build" bench
} >&2
