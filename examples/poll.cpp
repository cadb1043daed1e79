// libco's example_poll: begins to connect to several addresses and waits for all of them at once.
//
//   poll ip:port [ip:port...]
//
// Each gets a line, and two seconds. For a descriptor of your own, coax::poll is what co_poll is in
// libco; to simply connect somewhere, coax::connect is shorter.

#include <coax/coax.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

/// A connection that is being made.
struct attempt {
  coax::endpoint to;
  coax::unique_fd fd;
};

void report(const coax::endpoint& to, int error) {
  std::string outcome =
      error == 0 ? "connected" : "error: " + std::system_category().message(error);
  if (error == ETIMEDOUT) outcome = "timed out";
  std::printf("%s %s\n", to.to_string().c_str(), outcome.c_str());
  std::fflush(stdout);
}

/// Begins to connect without waiting. Result: 0 while under way, otherwise why it failed.
int begin(attempt& each) {
  each.fd.reset(::socket(each.to.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!each.fd || ::connect(each.fd.get(), each.to.data(), each.to.size()) < 0)
    return errno == EINPROGRESS ? 0 : errno;
  return 0;
}

coax::task<int> connect_all(std::span<attempt> attempts) {
  std::vector<pollfd> fds(attempts.size());
  std::size_t connected = 0;
  for (std::size_t i = 0; i < attempts.size(); ++i) {
    const int error = begin(attempts[i]);
    if (error != 0) report(attempts[i].to, error);
    fds[i].fd = error == 0 ? attempts[i].fd.get() : -1;  // poll passes over what is negative
    fds[i].events = POLLOUT;
  }
  const auto waits = [](const pollfd& one) { return one.fd >= 0; };
  const auto deadline = coax::now() + 2s;
  while (std::any_of(fds.begin(), fds.end(), waits)) {
    auto ready = co_await coax::within(deadline - coax::now(), coax::poll(fds));
    for (std::size_t i = 0; i < fds.size(); ++i) {
      if (!waits(fds[i]) || (ready && fds[i].revents == 0)) continue;
      int error = ready ? 0 : ready.error().value();
      socklen_t size = sizeof(error);
      if (ready) ::getsockopt(fds[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
      report(attempts[i].to, error);
      if (error == 0) ++connected;
      fds[i].fd = -1;
    }
  }
  co_return connected == attempts.size() ? 0 : 1;
}

int main(int argc, char** argv) {
  std::vector<attempt> attempts;
  for (const char* text : std::span(argv, static_cast<std::size_t>(argc)).subspan(1)) {
    const auto to = coax::endpoint::parse(text);
    if (!to) {
      std::fprintf(stderr, "poll: \"%s\": %s\n", text, to.error().message().c_str());
      return 2;
    }
    attempts.push_back({*to, {}});
  }
  if (attempts.empty()) {
    std::fprintf(stderr, "poll: no address: poll ip:port [ip:port...]\n");
    return 2;
  }
  try {
    return coax::run(connect_all, std::span(attempts));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "poll: %s\n", e.what());
    return 1;
  }
}
