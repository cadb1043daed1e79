// Sends a message over loopback to itself and back. Says on what, and how coax was built.

#include <coax/coax.hpp>

#include <array>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

constexpr std::string_view message = "There and back again";

coax::task<> echo(coax::listener& listener) {
  coax::stream conn = (co_await listener.accept()).value();
  std::array<std::byte, 64> buf{};
  while (auto n = co_await conn.read(buf)) {
    (co_await conn.write(std::span(buf).first(*n))).value();
  }
}

coax::task<std::string> ask(coax::endpoint where) {
  coax::stream conn = (co_await coax::connect(where)).value();
  (co_await conn.write(message)).value();
  conn.shutdown_write().value();
  std::string answer;
  std::array<char, 64> buf{};
  while (auto n = co_await conn.read(std::as_writable_bytes(std::span(buf)))) {
    answer.append(buf.data(), *n);
  }
  co_return answer;
}

coax::task<std::string> both(coax::listener& listener) {
  std::string answer;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    s.spawn(echo, std::ref(listener));
    answer = co_await ask(listener.local_endpoint().value());
  });
  std::printf("%s, ", std::string(coax::reactor::current().backend()).c_str());
  co_return answer;
}

}  // namespace

int main() {
#if defined(COAX_WITHOUT_URING)
  const char* built = "without io_uring";
#else
  const char* built = "with io_uring";
#endif
  try {
    auto listener = coax::listener::bind("127.0.0.1:0").value();
    if (coax::run(both, listener) != message) throw std::runtime_error("another answer");
    std::printf("built %s\n", built);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "consumer: %s\n", e.what());
    return 1;
  }
}
