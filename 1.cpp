#include <coax/coax.hpp>
#include <cstdio>
using namespace std::chrono_literals;

coax::task<int> hello(coax::endpoint server) {
  auto conn = co_await coax::within(3s, coax::connect(server));
  if (!conn) {
    std::fprintf(stderr, "%s: %s\n", server.to_string().c_str(), conn.error().message().c_str());
    co_return 1;
  }
  auto sent = co_await coax::within(1s, conn->write("hello\n"));
  sent.value();                                               // throws std::system_error
  std::array<std::byte, 6> answer;
  auto got = co_await coax::within(1s, conn->read_exactly(answer));
  if (got.error() == std::errc::timed_out) std::fputs("no answer within 1 s\n", stderr);
  if (got.error() == coax::errc::end_of_stream) std::fputs("it hung up\n", stderr);
  co_return got ? 0 : 1;
}

int main() { return coax::run(hello, coax::endpoint::parse("127.0.0.1:9000").value()); }
