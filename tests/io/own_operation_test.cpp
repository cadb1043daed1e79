#include "each_backend.hpp"
#include "sockets.hpp"

#include "../task/death.hpp"

#include <coax/io/operation.hpp>
#include <coax/task/scope.hpp>

#include <cerrno>
#include <cstddef>
#include <system_error>

// Operations as a user writes them: whatever they derive from, and whoever may call what they override.

namespace {

int receive_byte(int fd, char& into) {
  const auto got = ::recv(fd, &into, 1, MSG_DONTWAIT);
  return got < 0 ? -errno : static_cast<int>(got);
}

void prepare_byte([[maybe_unused]] io_uring_sqe& sqe, [[maybe_unused]] int fd,
                  [[maybe_unused]] char& into) {
#if !defined(COAX_WITHOUT_URING)
  io_uring_prep_recv(&sqe, fd, &into, 1, 0);
#endif
}

/// Straight from the base of all.
class from_operation final : public coax::operation {
 public:
  from_operation(int fd, char& into) noexcept
      : operation(fd, coax::interest::readable, coax::watching::borrowed), into_(into) {}
  int await_resume() const noexcept { return result_; }

  const char* name() const noexcept override { return "one of one's own"; }
  void prepare(io_uring_sqe& sqe) noexcept override { prepare_byte(sqe, fd(), into_); }
  int perform(coax::syscalls&) noexcept override { return receive_byte(fd(), into_); }

 private:
  char& into_;
};

/// What it overrides is its own business.
class with_private_overrides final
    : public coax::basic_operation<with_private_overrides, std::size_t> {
 public:
  static constexpr short waits_for = coax::interest::readable;

  with_private_overrides(int fd, char& into) noexcept
      : basic_operation(fd, coax::watching::borrowed), into_(into) {}
  coax::result<std::size_t> value(int answer) const noexcept {
    return static_cast<std::size_t>(answer);
  }

 private:
  const char* name() const noexcept override { return "one of one's own"; }
  void prepare(io_uring_sqe& sqe) noexcept override { prepare_byte(sqe, fd(), into_); }
  int perform(coax::syscalls&) noexcept override { return receive_byte(fd(), into_); }
  bool take(int answer) noexcept override {
    result_ = answer;
    return true;
  }

  char& into_;
};

/// Others may derive from it.
class open_to_others : public coax::basic_operation<open_to_others, std::size_t> {
 public:
  static constexpr short waits_for = coax::interest::readable;

  open_to_others(int fd, char& into) noexcept
      : basic_operation(fd, coax::watching::borrowed), into_(into) {}
  coax::result<std::size_t> value(int answer) const noexcept {
    return static_cast<std::size_t>(answer);
  }

  const char* name() const noexcept override { return "one of one's own"; }
  void prepare(io_uring_sqe& sqe) noexcept override { prepare_byte(sqe, fd(), into_); }
  int perform(coax::syscalls&) noexcept override { return receive_byte(fd(), into_); }

 protected:
  ~open_to_others() = default;

 private:
  char& into_;
};

class derived final : public open_to_others {
 public:
  using open_to_others::open_to_others;
};

std::size_t count_of(int answer) { return static_cast<std::size_t>(answer); }
std::size_t count_of(const coax::result<std::size_t>& answer) { return answer.value(); }

template <class Operation>
coax::task<> waits_for_a_byte() {
  fd_pair p = unix_pair();
  char got = 0;
  std::size_t count = 0;
  auto body = [&](coax::scope& s) -> coax::task<> {
    s.spawn([&]() -> coax::task<> { count = count_of(co_await Operation(p.ours.get(), got)); });
    co_await turns();
    put(p.theirs, "x");
  };
  co_await coax::with_scope(body);
  CHECK(count == 1);
  CHECK(got == 'x');
}

}  // namespace

TEST_CASE("an operation of one's own waits, whatever it derives from") {
  on_each_backend([]() -> coax::task<> {
    co_await waits_for_a_byte<from_operation>();
    co_await waits_for_a_byte<with_private_overrides>();
    co_await waits_for_a_byte<derived>();
  });
}

TEST_CASE("awaiting an operation that was done at once a second time aborts with a message") {
  for (const coax::backend b : backends_here()) {
    const ending child = ending_of([b] {
      const auto reactor = reactor_of(b);
      coax::detail::run_on(*reactor, []() -> coax::task<> {
        fd_pair p = unix_pair();
        const taken_over ours(std::move(p.ours));
        auto send = send_all(ours.get(), "hello");
        auto first = co_await send;
        first.value();
        auto second = co_await send;
        second.value();
      });
    });
    CHECK(child.aborted_saying("something was awaited twice"));
  }
}
