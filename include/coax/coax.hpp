#pragma once

/// All of coax.

#include <coax/io/choose.hpp>
#include <coax/io/fd.hpp>
#include <coax/io/random.hpp>
#include <coax/io/statistics.hpp>
#include <coax/net/connect.hpp>
#include <coax/net/endpoint.hpp>
#include <coax/net/listener.hpp>
#include <coax/net/stream.hpp>
#include <coax/process/prefork.hpp>
#include <coax/process/run.hpp>
#include <coax/process/signals.hpp>
#include <coax/process/threads.hpp>
#include <coax/sync/channel.hpp>
#include <coax/sync/condition.hpp>
#include <coax/sync/event.hpp>
#include <coax/sync/limited_scope.hpp>
#include <coax/sync/mutex.hpp>
#include <coax/sync/semaphore.hpp>
#include <coax/sync/worker_stack.hpp>
#include <coax/task/clock.hpp>
#include <coax/task/dump.hpp>
#include <coax/task/finally.hpp>
#include <coax/task/race.hpp>
#include <coax/task/result.hpp>
#include <coax/task/scope.hpp>
#include <coax/task/shield.hpp>
#include <coax/task/sleep.hpp>
#include <coax/task/task.hpp>
#include <coax/task/task_local.hpp>
#include <coax/task/when_all.hpp>
#include <coax/task/within.hpp>
