#pragma once

/// The longer answers of a simulated kernel: options of sockets, and transfers.

#include <coax/config.hpp>
#include <coax/sim/kernel.hpp>

#include <arpa/inet.h>
#include <netdb.h>

namespace coax::inline COAX_ABI::sim {

inline int kernel::setsockopt(int fd, int level, int option, const void* value,
                              socklen_t size) noexcept {
  counted(0);
  const auto s = socket_of(fd);
  if (s == nullptr) return not_a_socket(fd);
  if (level == SOL_SOCKET && option == SO_LINGER) {
    if (size < sizeof(s->lingers)) return -EINVAL;
    std::memcpy(&s->lingers, value, sizeof(s->lingers));
    s->lingers.l_onoff = s->lingers.l_onoff != 0 ? 1 : 0;
    return 0;
  }
  int number = 0;
  if (size < sizeof(number)) return -EINVAL;
  std::memcpy(&number, value, sizeof(number));
  const auto bytes = static_cast<std::size_t>(std::max(number, 0));
  if (level == SOL_SOCKET) {
    switch (option) {
      case SO_REUSEADDR:
        s->reuse_address = number != 0;
        break;
      case SO_REUSEPORT:
        s->reuse_port = number != 0;
        break;
      case SO_SNDBUF:
        s->send_max(bytes);
        break;
      case SO_RCVBUF:
        s->receive_max(bytes);
        break;
      case SO_KEEPALIVE:
        break;
      default:
        return -ENOPROTOOPT;
    }
  } else if (level == IPPROTO_IPV6 && option == IPV6_V6ONLY && s->family() == AF_INET6) {
    if (s->bound) return -EINVAL;
    s->v6only = number != 0;
  } else if (level != IPPROTO_TCP) {
    return -ENOPROTOOPT;
  }
  s->options_set[{level, option}] = number;
  return 0;
}

inline int kernel::getsockopt(int fd, int level, int option, void* value,
                              socklen_t* size) noexcept {
  counted(0);
  const auto s = socket_of(fd);
  if (s == nullptr) return not_a_socket(fd);
  if (level == SOL_SOCKET && option == SO_LINGER) {
    *size = std::min<socklen_t>(*size, sizeof(s->lingers));
    std::memcpy(value, &s->lingers, *size);
    return 0;
  }
  int number = 0;
  if (level == SOL_SOCKET && option == SO_ERROR) {
    number = s->take_error();
  } else if (level == SOL_SOCKET && option == SO_TYPE) {
    number = SOCK_STREAM;
  } else if (level == SOL_SOCKET && option == SO_DOMAIN) {
    number = s->family();
  } else if (level == SOL_SOCKET && option == SO_ACCEPTCONN) {
    number = s->now() == tcp_socket::phase::listening ? 1 : 0;
  } else if (level == SOL_SOCKET && option == SO_SNDBUF) {
    number = static_cast<int>(s->send_max());
  } else if (level == SOL_SOCKET && option == SO_RCVBUF) {
    number = static_cast<int>(s->receive_max());
  } else if (const auto set = s->options_set.find({level, option}); set != s->options_set.end()) {
    number = set->second;
  } else if (level != IPPROTO_TCP && level != SOL_SOCKET && level != IPPROTO_IPV6) {
    return -ENOPROTOOPT;
  }
  *size = std::min<socklen_t>(*size, sizeof(number));
  std::memcpy(value, &number, *size);
  return 0;
}

inline int kernel::recv(int fd, void* into, std::size_t size, int flags) noexcept {
  const auto s = socket_of(fd);
  if (s == nullptr) return gone_ ? -ECONNRESET : not_a_socket(fd);
  return take_in(call::recv, "recv", s, into, size, (flags & MSG_PEEK) != 0);
}

inline int kernel::take_in(call how, std::string_view name, const std::shared_ptr<tcp_socket>& s,
                           void* into, std::size_t size, bool peek) noexcept {
  const int fd = s->fd;
  if (const int error = fails(how)) return note(name, fd, failed(s, error));
  const std::size_t there = std::min(size, s->unread());
  const std::size_t part = peek ? there : faults_.cut(there);
  return note(name, fd, s->receive(into, part < there ? part : size, peek));
}

inline int kernel::send(int fd, const void* from, std::size_t size, int) noexcept {
  const auto s = socket_of(fd);
  if (s == nullptr) return gone_ ? -EPIPE : not_a_socket(fd);
  return put_out(call::send, "send", s, from, size);
}

inline int kernel::put_out(call how, std::string_view name, const std::shared_ptr<tcp_socket>& s,
                           const void* from, std::size_t size) noexcept {
  const int fd = s->fd;
  if (const int error = fails(how)) return note(name, fd, failed(s, error));
  const std::size_t fits = std::min(size, s->room());
  const std::size_t part = faults_.cut(fits);
  return note(name, fd, s->send(from, part < fits ? part : size));
}

inline int kernel::read(int fd, void* into, std::size_t size) noexcept {
  if (auto* counter = dynamic_cast<wake_up*>(find(fd).get())) {
    counted(0);
    const std::uint64_t count = counter->take();
    if (size < sizeof(count)) return -EINVAL;
    if (count == 0) return -EAGAIN;
    std::memcpy(into, &count, sizeof(count));
    return sizeof(count);
  }
  const auto s = socket_of(fd);
  if (s == nullptr) return find(fd) != nullptr ? -EINVAL : gone_ ? -EIO : -EBADF;
  return take_in(call::read, "read", s, into, size, false);
}

inline int kernel::write(int fd, const void* from, std::size_t size) noexcept {
  if (auto* counter = dynamic_cast<wake_up*>(find(fd).get())) {
    counted(0);
    counter->add();
    return sizeof(std::uint64_t);
  }
  const auto s = socket_of(fd);
  if (s == nullptr) return find(fd) != nullptr ? -EINVAL : gone_ ? -EIO : -EBADF;
  return put_out(call::write, "write", s, from, size);
}

inline int kernel::accept(int fd, int) noexcept {
  const auto l = socket_of(fd);
  if (l == nullptr) return gone_ ? -EBADF : not_a_socket(fd);
  if (const int error = fails(call::accept)) {
    if (error == EAGAIN) ready_again(l);
    if (error == ECONNABORTED) {
      if (!l->has_waiting()) return note("accept", fd, -EAGAIN);
      l->take_waiting()->reset();
    }
    return note("accept", fd, -error);
  }
  // The kernel looks for a number first, and for a connection then.
  if (!has_free_fd()) return note("accept", fd, -EMFILE);
  if (l->now() != tcp_socket::phase::listening) return note("accept", fd, -EINVAL);
  if (!l->has_waiting()) return note("accept", fd, -EAGAIN);
  const auto made = l->take_waiting();
  made->options_set = l->options_set;
  return note("accept", fd, open(made));
}

inline int kernel::connect(int fd, const sockaddr* to, socklen_t size) noexcept {
  const auto s = socket_of(fd);
  if (s == nullptr) return gone_ ? -ENETDOWN : not_a_socket(fd);
  const int error = fails(call::connect);
  // Interrupted, it goes on.
  if (error != 0 && error != EINTR) return note("connect", fd, -error);
  address where;
  if (const int bad = read_address(s->family(), to, size, where); bad < 0) return bad;
  const int answer = tcp_.connect(s, where);
  return note("connect", fd, error == EINTR && answer == -EINPROGRESS ? -EINTR : answer);
}

inline std::optional<int> kernel::look_up(const std::string& host,
                                          std::vector<sockaddr_storage>& found) {
  const auto add = [&](const address& a) {
    sockaddr_storage made{};
    socklen_t size = sizeof(made);
    write_address(a.is_v4() ? AF_INET : AF_INET6, a, reinterpret_cast<sockaddr*>(&made), &size);
    found.push_back(made);
    return 0;
  };
  address numeric;
  if (::inet_pton(AF_INET6, host.c_str(), numeric.ip.data()) == 1) return add(numeric);
  numeric = address::any(true);
  if (::inet_pton(AF_INET, host.c_str(), &numeric.ip[12]) == 1) return add(numeric);
  if (host == "localhost") return add(address::loopback(true));
  const int index = names_.find(host);
  engine_.note(tcp_.index(), "look up", index);
  if (index < 0) return EAI_NONAME;
  return add(address::of_host(index, true));
}

inline int kernel::poll(pollfd* fds, std::size_t count) noexcept {
  const bool of_program = std::any_of(fds, fds + count, [&](const pollfd& each) {
    return dynamic_cast<wake_up*>(find(each.fd).get()) == nullptr;
  });
  counted(0);
  if (of_program && !gone_)
    if (const int error = faults_.next(call::poll)) return -error;
  int ready = 0;
  for (std::size_t i = 0; i < count; ++i) {
    pollfd& each = fds[i];
    each.revents = 0;
    if (each.fd < 0) continue;
    file* f = find(each.fd).get();
    unsigned now = 0;
    if (f != nullptr)
      now = f->events() & (static_cast<unsigned short>(each.events) | POLLERR | POLLHUP);
    else
      now = gone_ ? POLLERR | POLLHUP : POLLNVAL;
    each.revents = static_cast<short>(now);
    if (now != 0) ++ready;
  }
  return ready;
}

}  // namespace coax::inline COAX_ABI::sim
