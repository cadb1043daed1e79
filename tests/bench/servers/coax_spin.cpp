// The echo of the examples, for one connection at a time, on a reactor that looks for completions a
// while before it sleeps.
//
//   coax_spin [microseconds]    by default 50; 0 never spins
//
// Where coax has no such option it says so, and the exit status is 1.

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

template <class Options>
Options spinning(std::chrono::microseconds how_long) {
  Options o;
  if constexpr (requires { o.spin = how_long; }) {
    o.spin = how_long;
  } else {
    std::fputs("this coax has no options::spin\n", stderr);
    std::exit(1);
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const auto o =
      spinning<coax::options>(std::chrono::microseconds(argc > 1 ? std::atoi(argv[1]) : 50));
  auto listener = coax::listener::bind("127.0.0.1:0");
  std::printf("coax_spin: listening on %s\n",
              listener.value().local_endpoint().value().to_string().c_str());
  std::fflush(stdout);
  coax::run(o, serve, std::ref(*listener));
}
