#include <coax/coax.hpp>
using namespace std::chrono_literals;

using idle_workers = coax::worker_stack<coax::stream>;       // takes the place of stack<task_t*>

coax::task<> readwrite_routine(idle_workers& g_readwrite) {
  std::array<std::byte, 16 * 1024> buf;
  while (auto conn = co_await g_readwrite.park()) {           // push self, sleep until handed a connection
    while (auto n = co_await coax::within(60s, conn->read(buf))) {
      auto sent = co_await coax::within(60s, conn->write(std::span(buf).first(*n)));
      if (!sent) break;
    }
  }                                                           // conn closes here, on every path
}

coax::task<> accept_routine(coax::listener& listener, idle_workers& g_readwrite) {
  while (auto worker = co_await g_readwrite.reserve()) {      // wait until a worker is idle
    auto conn = co_await listener.accept();
    worker->hand_off(std::move(conn).value());                // pop the top, wake it
  }                                                           // a reservation not used is given back
}

coax::task<> serve(coax::listener& listener, int workers) {
  idle_workers g_readwrite;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i) s.spawn(readwrite_routine, std::ref(g_readwrite));
    co_await coax::race(accept_routine(listener, g_readwrite), coax::signals({SIGINT, SIGTERM}));
    listener.close();
    g_readwrite.close();                                      // idle workers leave, busy ones finish
    co_await s.join_within(10s);                              // then whoever is left is cancelled
  });
}

int main() {
  auto listener = coax::listener::bind("0.0.0.0:9000").value();  // opened before the fork, as in libco
  return coax::prefork({.processes = 4}, serve, std::ref(listener), 512);
}
