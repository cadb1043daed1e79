#include "each_backend.hpp"
#include "sockets.hpp"

#include "../task/death.hpp"
#include "seccomp.hpp"

#include <sys/resource.h>

#include <cstdlib>
#include <string>

// Which backend a program gets. Each in a child process, for the environment and a seccomp filter stay.

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  ::_exit(1);
}

/// The message of the error that `action` fails with, or "".
template <class Error, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

/// Sees a byte through a pipe on `r`.
void require_works(coax::reactor& r) {
  bool read = false;
  const auto body = [&]() -> coax::task<> {
    const fd_pair pipe = pipe_to_us();
    auto written = co_await coax::write(pipe.theirs.get(), std::string_view("x"));
    std::array<std::byte, 1> some;
    auto n = co_await coax::read(pipe.ours.get(), some);
    read = written && n;
    co_await coax::sleep_for(std::chrono::milliseconds(1));
  };
  coax::detail::run_on(r, body);
  require(read, "the reactor works");
}

coax::options with(coax::backend b, unsigned ring_entries = 256) {
  return {.backend = b, .ring_entries = ring_entries};
}

template <class Action>
void in_child(Action&& action) {
  const ending child = ending_of([&] {
    ::unsetenv("COAX_BACKEND");
    action();
  });
  CHECK(child.words == "");
  CHECK(child.was_orderly());
}

}  // namespace

TEST_CASE("COAX_BACKEND overrules the options, and is ignored when empty") {
  in_child([] {
    ::setenv("COAX_BACKEND", "epoll", 1);
    for (const coax::backend b :
         {coax::backend::automatic, coax::backend::io_uring, coax::backend::epoll}) {
      const auto made = coax::make_reactor(with(b));
      require(made->backend() == "epoll", "COAX_BACKEND=epoll gives epoll");
      require(made->fallback_reason().empty(), "and that is no fallback");
      require_works(*made);
    }
    ::setenv("COAX_BACKEND", "", 1);
    require(coax::make_reactor(with(coax::backend::epoll))->backend() == "epoll", "empty is unset");
    for (const coax::backend b : backends_here()) {
      const auto made = coax::make_reactor(with(b));
      require(made->backend() == name_of(b), "empty is unset");
      require(made->fallback_reason().empty(), "what was asked for is no fallback");
      require_works(*made);
    }
    if (backends_here().size() == 2) {
      require(coax::make_reactor()->backend() == "io_uring", "io_uring where it works");
      require(coax::make_reactor()->fallback_reason().empty(), "without a reason against it");
      ::setenv("COAX_BACKEND", "io_uring", 1);
      require(coax::make_reactor(with(coax::backend::epoll))->backend() == "io_uring",
              "COAX_BACKEND wins");
    }
  });
}

TEST_CASE("an unknown name in COAX_BACKEND is refused by name, whatever the options say") {
  in_child([] {
    for (const char* name : {"uring", "EPOLL", "epoll ", "kqueue"}) {
      ::setenv("COAX_BACKEND", name, 1);
      for (const coax::backend b : {coax::backend::automatic, coax::backend::epoll}) {
        const std::string said = message_of<std::invalid_argument>(
            [&] { static_cast<void>(coax::make_reactor(with(b))); });
        require(contains(said, std::string("\"") + name + "\""),
                "the error names what it was given");
        require(contains(said, "COAX_BACKEND"), "the error names the variable");
      }
    }
  });
}

TEST_CASE("a ring of no entries is refused; one of too many is made as large as can be") {
  in_child([] {
    for (const coax::backend b : {coax::backend::automatic, coax::backend::epoll}) {
      const std::string said = message_of<std::invalid_argument>(
          [&] { static_cast<void>(coax::make_reactor(with(b, 0))); });
      require(contains(said, "ring_entries"), "the error names ring_entries");
    }
    for (const unsigned entries : {1U, 3U, 1U << 20, 1U << 30, ~0U}) {
      const auto made = coax::make_reactor(with(coax::backend::automatic, entries));
      // An ordinary user may not have the memory for a large one, but it is no bad argument.
      const std::string& why = made->fallback_reason();
      require(
          why.empty() || (entries > 3 && contains(why, "memory")) || backends_here().size() == 1,
          why.c_str());
      require_works(*made);
    }
  });
}

#if defined(COAX_WITHOUT_URING)

TEST_CASE(
    "built without io_uring, epoll is used, and asking for io_uring is an error that says so") {
  in_child([] {
    require(coax::make_reactor()->backend() == "epoll", "epoll alone");
    const std::string said = message_of<std::system_error>(
        [] { static_cast<void>(coax::make_reactor(with(coax::backend::io_uring))); });
    require(contains(said, "COAX_WITHOUT_URING") && contains(said, "options::backend"),
            "the error says so");
  });
}

#else

namespace {

/// What holds wherever io_uring cannot run.
void require_epoll_alone(std::string_view reason) {
  const auto chosen = coax::make_reactor();
  require(chosen->backend() == "epoll", "it falls back");
  require(contains(chosen->fallback_reason(), reason), chosen->fallback_reason().c_str());
  require_works(*chosen);

  const auto wanted = coax::make_reactor(with(coax::backend::epoll));
  require(wanted->backend() == "epoll" && wanted->fallback_reason().empty(),
          "epoll on request is no fallback");

  const auto force = [] { static_cast<void>(coax::make_reactor(with(coax::backend::io_uring))); };
  std::string said = message_of<std::system_error>(force);
  require(contains(said, "options::backend"), "the error names options::backend");
  require(contains(said, "io_uring"), "the error names io_uring");
  require(contains(said, reason), "the error says why");
  ::setenv("COAX_BACKEND", "io_uring", 1);
  said = message_of<std::system_error>(
      [] { static_cast<void>(coax::make_reactor(with(coax::backend::epoll))); });
  require(contains(said, "COAX_BACKEND"), "the error names COAX_BACKEND");
  require(contains(said, reason), "the error says why");
}

}  // namespace

TEST_CASE("where setting up a ring is refused, epoll is used and the reason is known") {
  in_child([] {
    refuse(SYS_io_uring_setup, EPERM);
    require_epoll_alone("Operation not permitted");
  });
  in_child([] {
    refuse(SYS_io_uring_setup, ENOSYS);
    require_epoll_alone("Function not implemented");
  });
  in_child([] {
    refuse(SYS_io_uring_setup, ENOMEM);
    require_epoll_alone("Cannot allocate memory");
  });
  in_child([] {
    refuse(SYS_io_uring_setup, EINVAL);
    require_epoll_alone("Linux 6.1");
  });
}

TEST_CASE("where a ring can have no buffers, epoll is used and the reason is known") {
  in_child([] {
    refuse(SYS_io_uring_register, EPERM);
    require_epoll_alone("Operation not permitted");
  });
}

TEST_CASE("where a ring can be set up but not entered, epoll is used and the reason is known") {
  in_child([] {
    refuse(SYS_io_uring_enter, EPERM);
    require_epoll_alone("Operation not permitted");
  });
}

TEST_CASE("without locked memory an ordinary user gets a reactor that works") {
  if (::getuid() != 0) {
    WARN("not root: it cannot become somebody else");
    return;
  }
  in_child([] {
    const rlimit none{0, 0};
    require(::setrlimit(RLIMIT_MEMLOCK, &none) == 0, "setrlimit");
    require(::setresuid(65534, 65534, 65534) == 0, "setresuid");
    const auto made = coax::make_reactor();
    require(made->backend() == "io_uring" || !made->fallback_reason().empty(),
            "a fallback has a reason");
    require_works(*made);
  });
}

#endif

TEST_CASE("run reports its backend to the task") {
  in_child([] {
    ::setenv("COAX_BACKEND", "epoll", 1);
    const bool epoll = coax::run(
        []() -> coax::task<bool> { co_return coax::reactor::current().backend() == "epoll"; });
    require(epoll, "run takes COAX_BACKEND");
  });
}
