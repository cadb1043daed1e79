#include <coax/coax.hpp>

#include <csignal>

coax::task<int> other(int n) {
  int given = 0;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    s.spawn([&]() -> coax::task<> {
      co_await coax::yield();
      given = n;
    });
    co_return;
  });
  co_return given;
}

coax::task<int> hear() {
  const int number = co_await coax::signals({SIGUSR1});
  co_return number;
}
