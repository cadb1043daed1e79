#include <coax/process/blocking.hpp>
#include <coax/process/run.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/sleep.hpp>

#include "../io/each_backend.hpp"
#include "../task/death.hpp"
#include "across_threads.hpp"

#include <pthread.h>
#include <unistd.h>

#include <cstddef>
#include <functional>
#include <thread>
#include <utility>

// The threads of the pool; for what `blocking` gives and throws see blocking_test.cpp.

namespace {

using coax::task;

/// Notes the thread on which it is destroyed.
class notes_its_end {
 public:
  explicit notes_its_end(std::thread::id& where) noexcept : where_(&where) {}
  notes_its_end(notes_its_end&& other) noexcept : where_(std::exchange(other.where_, nullptr)) {}
  notes_its_end& operator=(notes_its_end&&) = delete;
  ~notes_its_end() {
    if (where_ != nullptr) *where_ = std::this_thread::get_id();
  }

 private:
  std::thread::id* where_;
};

}  // namespace

TEST_CASE("what was given to blocking is destroyed on the thread that has worked with it") {
  on_each_backend([]() -> task<> {
    std::thread::id where;
    co_await coax::blocking([](const notes_its_end&) {}, notes_its_end(where));
    CHECK(where != std::thread::id());
    CHECK(where != std::this_thread::get_id());
  });
}

TEST_CASE("where no more threads can be had, those there are do the work, until there are more") {
  for (const coax::backend b : backends_here()) {
    INFO("on " << name_of(b));
    const ending child =
        ending_of([b] {  // a process of its own: the attributes are for all threads
          const auto reactor = reactor_of(b);
          coax::detail::run_on(*reactor, []() -> task<> {
            pthread_attr_t usual;
            pthread_attr_t huge;
            ::pthread_getattr_default_np(&usual);
            ::pthread_attr_init(&huge);
            ::pthread_attr_setstacksize(&huge, std::size_t{1} << 46);
            thread_gate gate;
            const auto waits = [&]() -> task<> { co_await coax::blocking([&] { gate.pass(); }); };
            const auto works = []() -> task<> { co_await coax::blocking([] {}); };
            co_await coax::with_scope([&](coax::scope& s) -> task<> {
              s.spawn(std::ref(waits));
              co_await coax::yield();
              gate.await_arrivals(1);  // the one thread is busy
              ::pthread_setattr_default_np(&huge);
              for (std::size_t i = 0; i < coax::detail::blocking_pool::threads_max; ++i)
                s.spawn(std::ref(works));
              co_await coax::yield();
              gate.open();
            });
            ::pthread_setattr_default_np(&usual);
            co_await until_pool_is_done();
          });
        });
    INFO(child.words);
    CHECK(child.was_orderly());
  }
}
