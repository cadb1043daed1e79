// The echo of the examples, for one connection at a time, on a reactor that looks for completions a
// while before it sleeps.
//
//   coax_spin [microseconds]    by default 50; 0 never spins

#include <coax/coax.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <span>
#include <utility>

namespace {

coax::task<> serve(coax::listener& listener) {
  std::array<std::byte, 16 * 1024> buf;
  while (true) {
    auto conn = co_await listener.accept();
    while (auto n = co_await conn.value().read(buf)) {
      auto sent = co_await conn->write(std::span(buf).first(*n));
      if (!sent) break;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const coax::options o{.spin = std::chrono::microseconds(argc > 1 ? std::atoi(argv[1]) : 50)};
  auto listener = coax::listener::bind("127.0.0.1:0");
  std::printf("coax_spin: listening on %s\n",
              listener.value().local_endpoint().value().to_string().c_str());
  std::fflush(stdout);
  coax::run(o, serve, std::ref(*listener));
}
