// The echo of the examples, but one that waits an hour for a silent client: where it takes minutes to
// connect all of them, the 60 s of the example would drop the first.
//
//   patient_echo workers processes

#include <coax/coax.hpp>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>

namespace {

using namespace std::chrono_literals;
using idle_workers = coax::worker_stack<coax::stream>;

coax::task<> work(idle_workers& idle) {
  while (auto conn = co_await idle.park()) {
    while (const auto lease = co_await coax::within(1h, conn->receive())) {
      auto sent = co_await coax::within(60s, conn->write(lease->bytes()));
      if (!sent) break;
    }
  }
}

coax::task<> accept_all(coax::listener& listener, idle_workers& idle) {
  while (auto worker = co_await idle.reserve()) {
    auto conn = co_await listener.accept();
    worker->hand_off(std::move(conn).value());
  }
}

coax::task<> serve(coax::listener& listener, int workers) {
  idle_workers idle;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 0; i < workers; ++i) s.spawn(work, std::ref(idle));
    co_await coax::race(accept_all(listener, idle), coax::signals({SIGINT, SIGTERM}));
    s.cancel();
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("patient_echo: workers processes\n", stderr);
    return 2;
  }
  auto listener = coax::listener::bind("127.0.0.1:0");
  std::printf("patient_echo: listening on %s, %s processes x %s workers\n",
              listener.value().local_endpoint().value().to_string().c_str(), argv[2], argv[1]);
  std::fflush(stdout);
  const int workers = std::atoi(argv[1]);
  const int processes = std::atoi(argv[2]);
  if (processes > 1)
    return coax::prefork({.processes = processes}, serve, std::ref(*listener), workers);
  coax::run(serve, std::ref(*listener), workers);
  return 0;
}
