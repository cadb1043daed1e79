#include <coax/coax.hpp>
#include <sys/socket.h>

/// Receives one message: `auto size = co_await coax::within(1s, receive_message(fd, into));`
/// Lifetime: borrows `into`, and what it points to, until completion.
class receive_message final : public coax::basic_operation<receive_message, std::size_t> {
 public:
  static constexpr short waits_for = coax::interest::readable;

  receive_message(int fd, msghdr& into) noexcept
      : basic_operation(fd, coax::watching::borrowed), into_(&into) {}

  const char* name() const noexcept override { return "recvmsg"; }

  void prepare([[maybe_unused]] io_uring_sqe& sqe) noexcept override {  // io_uring: fill the entry
#if !defined(COAX_WITHOUT_URING)
    io_uring_prep_recvmsg(&sqe, fd(), into_, 0);
#endif
  }
  int perform(coax::syscalls&) noexcept override {            // epoll: the call; never waits
    const auto got = ::recvmsg(fd(), into_, MSG_DONTWAIT);
    return got < 0 ? -errno : static_cast<int>(got);          // -EAGAIN: asked again when it is readable
  }
  coax::result<std::size_t> value(int answer) const noexcept { return static_cast<std::size_t>(answer); }

 private:
  msghdr* into_;
};
