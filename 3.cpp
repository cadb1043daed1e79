#include <coax/coax.hpp>
#include <cstdio>
using namespace std::chrono_literals;

coax::task<> work(int n) {
  co_await coax::sleep_for(n * 100ms);
  std::printf("%d is done\n", n);
}

coax::task<> all() {
  co_await coax::with_scope([](coax::scope& s) -> coax::task<> {
    for (int n = 1; n <= 20; ++n) s.spawn(work, n);
    const bool in_time = co_await s.join_within(1s);
    std::puts(in_time ? "all are done" : "those that were left are cancelled");
  });
}

int main() { coax::run(all); }
