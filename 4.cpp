#include <coax/coax.hpp>
#include <unistd.h>

coax::task<> copy(int from, int to) {
  std::array<std::byte, 4096> buf;
  while (true) {
    auto n = co_await coax::read(from, buf);
    if (n.error() == coax::errc::end_of_stream) co_return;
    auto written = co_await coax::write(to, std::span(buf).first(n.value()));
    written.value();
  }
}

int main() { coax::run(copy, STDIN_FILENO, STDOUT_FILENO); }
