#include <coax/coax.hpp>
#include <coax/sim.hpp>
#include <cstdio>
using namespace std::chrono_literals;

coax::task<> server() {
  auto listener = coax::listener::bind("0.0.0.0:9000").value();
  auto conn = co_await listener.accept();
  std::array<std::byte, 8> request;
  auto n = co_await conn->read(request);              // the bug: a read gives some bytes, not all
  if (n && *n == request.size()) {
    auto sent = co_await conn->write("ok");
    sent.value();
  }
}

coax::task<> client(bool& answered) {
  auto conn = co_await coax::connect("srv", 9000);
  auto sent = co_await conn->write("12345678");
  std::array<std::byte, 2> answer;
  auto got = co_await coax::within(30s, conn->read_exactly(answer));
  answered = sent && got;
}

int main() {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    coax::sim::world w{{.seed = seed, .latency = {1ms, 20ms}, .short_io = 0.1}};
    bool answered = false;
    w.host("srv", server);
    w.host("cli", client, std::ref(answered));
    w.run_for(1min);                                   // virtual; microseconds of real time
    if (answered) continue;
    std::printf("seed %llu: no answer\n%s", static_cast<unsigned long long>(seed), w.trace().c_str());
    return 1;
  }
}
