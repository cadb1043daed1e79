// libco's example_specific: a variable of which each task has its own value. Children inherit it.
//
//   task_local [requests]
//
// Serves 10 requests at once, by default. Each line of the log tells of which request it is, though
// nobody passes the number to where the line is written.

#include <coax/coax.hpp>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <span>
#include <string_view>
#include <system_error>

using namespace std::chrono_literals;

coax::task_local<int> request;  // outlives the tasks that use it

void log(const char* what) {
  const int* number = request.get();
  if (number != nullptr)
    std::printf("request %d: %s\n", *number, what);
  else
    std::printf("%s\n", what);
}

coax::task<> look_up(const char* what, coax::timeout time) {
  co_await coax::sleep_for(time);
  log(what);
}

coax::task<> serve(int number) {
  request.set(number);
  log("begins");
  co_await coax::when_all(look_up("found the user", 20ms), look_up("found the order", 10ms));
  log("ends");
}

coax::task<> serve_all(int requests) {
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    for (int i = 1; i <= requests; ++i) s.spawn(serve, i);
    co_return;
  });
  log("all requests were served");
}

int main(int argc, char** argv) {
  const std::string_view text = argc > 1 ? argv[1] : "10";
  int requests = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), requests);
  if (error != std::errc() || end != text.data() + text.size() || requests < 1) {
    std::fprintf(stderr, "task_local: \"%s\" is not a positive number\n", argv[1]);
    return 2;
  }
  coax::run(serve_all, requests);
}
