#pragma once

#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>

/// Lets the loop turn `n` times: what was ready has run, and what the kernel had to say was heard.
inline coax::task<> turns(int n = 3) {
  for (int i = 0; i < n; ++i) co_await coax::yield();
}
