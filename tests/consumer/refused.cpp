// What the compiler refuses, and the words that it must say first. `.ci/run refused` compiles each case
// alone.

#include <coax/coax.hpp>

#include <utility>

using coax::task;

task<> takes_a_reference(int&) { co_return; }
task<> takes_a_number(int) { co_return; }
task<int> gives_a_number() { co_return 1; }

#if CASE == 1
// refused: spawn takes a function and its arguments, not a task
task<> body(coax::scope& s) {
  s.spawn(takes_a_number(3));
  co_return;
}
#elif CASE == 2
// refused: say std::ref for what it takes by reference
task<> body(coax::scope& s) {
  int n = 0;
  s.spawn(takes_a_reference, n);
  co_return;
}
#elif CASE == 3
// refused: a result would have nobody to go to
task<> body(coax::scope& s) {
  s.spawn(gives_a_number);
  co_return;
}
#elif CASE == 4
// refused: say std::ref for what it takes by reference
task<> body(coax::limited_scope& s) {
  int n = 0;
  co_await s.spawn(takes_a_reference, n);
}
#elif CASE == 5
// refused: the body of a scope takes a coax::scope& and gives a coax::task<>
task<> body() {
  co_await coax::with_scope([](coax::scope&) {});
}
#elif CASE == 6
// refused: the body of a limited scope takes a coax::limited_scope&
task<> body() {
  co_await coax::with_scope(3, [](coax::scope&) -> task<> { co_return; });
}
#elif CASE == 7
// refused: co_await std::move(task)
task<> body() {
  auto t = gives_a_number();
  co_await t;
}
#elif CASE == 8
// refused: run takes a function and its arguments, and the function gives a coax::task
int body() {
  return coax::run([] { return 3; });
}
#elif CASE == 9
// refused: run takes a function and its arguments, and the function gives a coax::task
void body() { coax::run(takes_a_number(3)); }
#elif CASE == 10
// refused: the clean-up of finally is a function that gives a coax::task<>
task<> body() {
  co_await coax::finally([]() -> task<> { co_return; }, [] {});
}
#elif CASE == 11
// refused: blocking calls a plain function: a task is awaited as it is
task<> body() { co_await coax::blocking(gives_a_number); }
#elif CASE == 12
// refused: say std::ref for what it takes by reference
task<> body() {
  int n = 0;
  co_await coax::blocking([](int& at) { ++at; }, n);
}
#elif CASE == 13
// refused: prefork closes the listeners among its arguments: pass one that is not const
task<> takes_a_listener(const coax::listener&) { co_return; }
int body(const coax::listener& shared) { return coax::prefork({}, takes_a_listener, shared); }
#endif
