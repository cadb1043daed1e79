#include <coax/coax.hpp>
using namespace std::chrono_literals;

coax::task<> ask_both(coax::stream& one, coax::stream& other) {
  std::array<std::byte, 4> a, b;
  const auto ask = [&]() -> coax::task<> {
    auto both = co_await coax::when_all(one.read_exactly(a), other.read_exactly(b));
    std::get<0>(both).value();
    std::get<1>(both).value();
  };
  const auto say_goodbye = [&]() -> coax::task<> {
    auto sent = co_await coax::within(1s, one.write("bye\n"));
    static_cast<void>(sent);
  };
  co_await coax::finally(ask, say_goodbye);
}
