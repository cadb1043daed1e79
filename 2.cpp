#include <coax/coax.hpp>
#include <cstdio>
using namespace std::chrono_literals;

coax::task<> tick() {
  for (int i = 1;; ++i) {
    std::printf("%d\n", i);
    co_await coax::sleep_for(1s);
  }
}

coax::task<> until_stopped() {
  auto [ticked, signal] = co_await coax::race(tick(), coax::signals({SIGINT, SIGTERM}));
  if (!ticked && signal) std::printf("stopped by signal %d\n", *signal);
}

int main() { coax::run(until_stopped); }
