// A program of two files, which .ci/run builds in different ways each: what is of both is there once.

#include <coax/coax.hpp>

#include <csignal>

coax::task<int> other(int n);
coax::task<int> hear();

namespace {

coax::task<int> here(int n) { co_return n; }

coax::task<> tell() {
  ::raise(SIGUSR1);
  co_return;
}

coax::task<int> all() {
  int sum = 0;
  for (int i = 0; i < 100; ++i) {  // frames are recycled, also of the other file
    const int of_here = co_await here(i);
    const int of_the_other = co_await other(-i);
    sum += of_here + of_the_other;
  }
  co_await coax::when_all(hear(), coax::signals({SIGUSR1}),
                          tell());  // both are told, or this waits
  co_return sum;
}

}  // namespace

int main() { return coax::run(all); }
