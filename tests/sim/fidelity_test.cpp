#include "../catch.hpp"

#include <coax/io/syscalls.hpp>
#include <coax/sim.hpp>
#include <coax/task/task.hpp>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

// The simulation answers as the kernel does: the same script of calls is played to both, and every
// answer compared.
//
// A script is a line of calls, separated by ';'. Sockets have names of one word:
//
//   new s [6]       a socket; 6: of IPv6          bind s [t|any]    to loopback, t's address, any
//   listen s n      connect s t|nobody|zero       accept s t        t's next connection is s
//   bind s t any, connect s t any                 any address, and t's port
//   send s n        recv s n       peek s n       fill s, drain s   until it would wait
//   shut s r|w|b|x  close s        linger s [n]   error s           SO_ERROR
//   poll s          what is true  name s, peer s  reuse s, port s   SO_REUSEADDR, SO_REUSEPORT
//   set s t         s stands for t, as epoll      listens s         SO_ACCEPTCONN
//   short s option  with one byte too few         only s            IPV6_V6ONLY
//
// `server` stands for "new l;bind l;listen l 8", and `pair` for that, a client c and a side s
// that was accepted.

namespace {

namespace sim = coax::sim;

class player {
 public:
  explicit player(coax::syscalls& calls) : calls_(calls) {}
  player(const player&) = delete;
  player& operator=(const player&) = delete;
  ~player() {
    for (const auto& [name, fd] : fds_)
      if (fd >= 0) calls_.close(fd);
  }

  /// What each call answered: "connect c l = -115", a line each.
  std::string play(const std::string& script) {
    std::istringstream all(script);
    for (std::string line; std::getline(all, line, ';');) {
      if (line == "server") {
        play("new l;bind l;listen l 8");
      } else if (line == "pair") {
        play("server;new c;connect c l;accept s l");
      } else {
        std::istringstream words(line);
        std::vector<std::string> w;
        for (std::string word; words >> word;) w.push_back(word);
        answers_ += line + " = " + std::to_string(call(w)) + "\n";
      }
    }
    return answers_;
  }

 private:
  static constexpr std::size_t block = 4096;

  int fd(const std::string& name) {
    const auto at = fds_.find(name);
    return at == fds_.end() ? -1 : at->second;
  }
  int opened(const std::string& name, int made) {
    if (made < 0) return made;
    fds_[name] = made;
    return 0;
  }
  int set(int s, int option) {
    const int on = 1;
    return calls_.setsockopt(s, SOL_SOCKET, option, &on, sizeof(on));
  }
  int get(int s, int level, int option) {
    int value = 0;
    socklen_t size = sizeof(value);
    const int answer = calls_.getsockopt(s, level, option, &value, &size);
    return answer < 0 ? answer : value;
  }
  /// Loopback, on the port of `of` or on one of the system's choice.
  socklen_t where(const std::string& of, bool v6, bool any, sockaddr_storage& into) {
    socklen_t size = sizeof(into);
    in_port_t port = 0;
    if (of == "nobody") {
      port = htons(1);  // nobody serves tcpmux
    } else if (of == "zero") {
      port = 0;
    } else if (fd(of) >= 0) {
      calls_.getsockname(fd(of), reinterpret_cast<sockaddr*>(&into), &size);
      port = into.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(into).sin6_port
                                        : reinterpret_cast<sockaddr_in&>(into).sin_port;
    }
    into = {};
    if (v6) {
      auto& in6 = reinterpret_cast<sockaddr_in6&>(into);
      in6.sin6_family = AF_INET6;
      in6.sin6_port = port;
      if (!any) in6.sin6_addr = in6addr_loopback;
      return sizeof(in6);
    }
    auto& in = reinterpret_cast<sockaddr_in&>(into);
    in.sin_family = AF_INET;
    in.sin_port = port;
    in.sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK);
    return sizeof(in);
  }

  int call(const std::vector<std::string>& w) {
    const std::string& what = w[0];
    const std::string& name = w[1];
    const std::string other = w.size() > 2 ? w[2] : "";
    const int s = fd(name);
    const auto size = static_cast<std::size_t>(std::atoi(other.c_str()));
    std::vector<char> bytes(std::max(block, size), 'x');
    if (what == "new") {
      v6_[name] = other == "6";
      return opened(name, calls_.socket(v6_[name] ? AF_INET6 : AF_INET,
                                        SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    }
    if (what == "bind" || what == "connect") {
      sockaddr_storage to{};
      const bool any = other == "any" || (w.size() > 3 && w[3] == "any");
      const socklen_t length = where(other, v6_[name], any, to);
      const auto* address = reinterpret_cast<const sockaddr*>(&to);
      return what == "bind" ? calls_.bind(s, address, length) : calls_.connect(s, address, length);
    }
    if (what == "listen") return calls_.listen(s, static_cast<int>(size));
    if (what == "accept")
      return opened(name, calls_.accept(fd(other), SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (what == "send") return calls_.send(s, bytes.data(), size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (what == "recv") return calls_.recv(s, bytes.data(), size, MSG_DONTWAIT);
    if (what == "peek") return calls_.recv(s, bytes.data(), size, MSG_DONTWAIT | MSG_PEEK);
    if (what == "fill" || what == "drain") {
      while (true) {
        const int n = what == "fill"
                          ? calls_.send(s, bytes.data(), block, MSG_DONTWAIT | MSG_NOSIGNAL)
                          : calls_.recv(s, bytes.data(), block, MSG_DONTWAIT);
        if (n <= 0) return n;
      }
    }
    if (what == "shut")
      return calls_.shutdown(s, other == "r"   ? SHUT_RD
                                : other == "w" ? SHUT_WR
                                : other == "x" ? 3
                                               : SHUT_RDWR);
    if (what == "close") {
      fds_[name] = -1;
      return calls_.close(s);
    }
    if (what == "linger") {
      const linger wanted{1, static_cast<int>(size)};
      return calls_.setsockopt(s, SOL_SOCKET, SO_LINGER, &wanted, sizeof(wanted));
    }
    if (what == "error") return get(s, SOL_SOCKET, SO_ERROR);
    if (what == "listens") return get(s, SOL_SOCKET, SO_ACCEPTCONN);
    if (what == "reuse") return set(s, SO_REUSEADDR);
    if (what == "port") return set(s, SO_REUSEPORT);
    if (what == "only") {
      const int on = 1;
      return calls_.setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    if (what == "short") {
      const linger some{1, 0};
      return other == "linger"
                 ? calls_.setsockopt(s, SOL_SOCKET, SO_LINGER, &some, sizeof(some) - 1)
                 : calls_.setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &some.l_onoff, sizeof(int) - 1);
    }
    if (what == "poll") {
      pollfd asked{s, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
      const int count = calls_.poll(&asked, 1);
      return count < 0 ? count : asked.revents;
    }
    if (what == "name" || what == "peer") {
      sockaddr_storage into{};
      socklen_t length = sizeof(into);
      auto* address = reinterpret_cast<sockaddr*>(&into);
      return what == "name" ? calls_.getsockname(s, address, &length)
                            : calls_.getpeername(s, address, &length);
    }
    if (what == "set") {
      const int made = calls_.epoll_create();
      opened(name, made);
      return calls_.epoll_add(made, fd(other), POLLIN);
    }
    FAIL("no such call: " << what);
    return 0;
  }

  coax::syscalls& calls_;
  std::map<std::string, int> fds_;
  std::map<std::string, bool> v6_;
  std::string answers_;
};

std::string by_kernel(const std::string& script) {
  return player(coax::syscalls::kernel()).play(script);
}

std::string by_simulation(const std::string& script) {
  std::string answers;
  sim::world w;
  w.host("test", [&]() -> coax::task<> {
    answers = player(coax::syscalls::current()).play(script);
    co_return;
  });
  w.run_for(std::chrono::seconds(1));
  return answers;
}

const std::vector<const char*> scripts{
    // sockets that are nothing yet
    "new a;poll a;recv a 1;send a 1;name a;peer a;error a;listens a",
    "new a;shut a w;poll a;shut a r;shut a b",
    "new a;shut a x;bind a;listen a 1;shut a x;accept b a",
    "new a;short a linger;short a reuse;new b;bind b;bind a b",
    "new a;accept b a",
    "new a;close a;send a 1;recv a 1;poll a;shut a b;bind a;listen a 1;error a;accept b a",
    "recv a 1;send a 1;name a;peer a;connect a nobody",
    // binding
    "new a;bind a;name a;bind a",
    "new a;bind a;new b;bind b a",
    "new a;reuse a;bind a;new b;reuse b;bind b a",
    "new a;reuse a;bind a;listen a 1;new b;reuse b;bind b a",
    "new a;reuse a;bind a;new b;reuse b;bind b a;listen a 1;listen b 1",
    "new a;port a;bind a;listen a 1;new b;port b;bind b a;listen b 1",
    "new a;port a;bind a;listen a 1;new b;bind b a",
    "new a;bind a any;new b;bind b a",
    "new a 6;bind a any;listen a 1;new b;bind b a",
    "new a 6;bind a;listen a 1;new b;bind b a",
    "new a;bind a;close a;new b;bind b;listen b 1",
    "new a 6;only a;bind a any;listen a 1;new b;bind b a any;listen b 1",
    "new a 6;bind a any;only a;listen a 1;new b;connect b a;error b",
    // listening
    "server;poll l;listens l;recv l 1;send l 1;peer l;error l",
    "server;accept s l",
    "new l;listen l 4;listens l;new c;connect c l;accept s l;peer s",
    "server;listen l 1;new c;connect c l;accept s l",
    "server;shut l r;poll l;accept s l",
    "server;shut l w;poll l;new c;connect c l;accept s l",
    "server;connect l nobody",
    "pair;listen c 1;bind c;accept d c",
    // connecting
    "new c;connect c nobody;poll c;error c;error c;poll c",
    "new c;connect c zero;poll c;error c;error c;poll c",
    "new c;connect c nobody;connect c nobody;connect c nobody",
    "new c;connect c nobody;recv c 1;recv c 1;send c 1",
    "new c;connect c nobody;send c 1;send c 1;recv c 1",
    "new c;connect c nobody;error c;connect c nobody;connect c nobody",
    "new c;connect c nobody;listen c 1;error c;listen c 1",
    "server;new c;connect c l any;poll c;accept s l;send c 3;recv s 9",
    "new a;port a;bind a any;listen a 8;new b;port b;bind b a;listen b 8;new c;connect c a;poll a;poll b",
    "server;new c;connect c l;poll c;connect c l;connect c l;poll l;name c;peer c",
    "server;new c;bind c;connect c l;accept s l;peer s",
    "server;new c;connect c l;send c 5;accept s l;recv s 9",
    "server;new c;connect c l;close c;accept s l;recv s 1;poll s",
    "server;new c;connect c l;linger c;close c;accept s l;poll s;recv s 1;recv s 1",
    "server;new c;connect c l;send c 4;linger c;close c;accept s l;poll s;recv s 9;recv s 1;recv s 1",
    "new l 6;bind l any;listen l 8;new c;connect c l;accept s l;send c 3;recv s 9;peer s",
    "new l 6;bind l;listen l 8;new c;connect c l;error c",
    // several wait
    "server;new a;new b;connect a l;connect b l;send b 2;send a 1;accept s l;recv s 9;accept t l;recv t 9",
    "server;new a;new b;connect a l;connect b l;close l;poll a;recv a 1;recv a 1;send b 1;send b 1",
    "server;new a;connect a l;accept s l;close l;send a 1;recv s 1;poll a",
    // bytes
    "pair;poll c;poll s;recv c 1;send c 3;poll s;recv s 2;recv s 2;recv s 2",
    "pair;send c 3;send c 4;recv s 100;recv s 1",
    "pair;send c 3;peek s 9;peek s 1;recv s 9;peek s 9",
    "pair;send c 0;recv s 0;send c 1;recv s 0;recv s 1",
    "pair;fill c;poll c;poll s;drain s;poll c;send c 1",
    "pair;fill c;recv s 1;poll c;close s;poll c;error c;send c 1",
    "pair;send c 1;send s 2;recv c 9;recv s 9",
    // the orderly end
    "pair;shut c w;poll c;poll s;recv s 1;recv s 1;send c 1",
    "pair;send c 3;shut c w;poll s;recv s 2;recv s 9;recv s 9;send s 2;recv c 9",
    "pair;shut c w;shut c w;shut s w;poll c;poll s;recv c 1;recv s 1;peer c;peer s",
    "pair;shut c w;send s 5;shut s w;recv c 3;recv c 9;recv c 9;send s 1",
    "pair;close s;poll c;recv c 1;recv c 1;peer c",
    "pair;send s 4;close s;poll c;recv c 9;recv c 9",
    "pair;close s;send c 1;send c 1;recv c 1;poll c;error c",
    "pair;close s;send c 1;poll c;recv c 1;send c 1",
    "pair;close s;send c 1;error c;recv c 1;send c 1;peer c",
    "pair;shut c w;close s;poll c;recv c 1;peer c;send c 1",
    "pair;shut s w;send c 3;recv s 9;close s;poll c;recv c 1",
    "pair;shut s w;send c 3;close s;poll c;recv c 1;error c",
    // one side only
    "pair;shut c r;poll c;recv c 1;send s 1;recv c 1;poll c",
    "pair;send s 3;shut c r;poll c;recv c 2;recv c 2;recv c 2",
    "pair;shut c b;poll c;poll s;send c 1;recv c 1;recv s 1;send s 1;send s 1",
    "pair;shut c b;shut c b;shut s b;shut s w;poll s",
    "pair;shut c r;close c;recv s 1",
    "pair;shut c b;send s 1;poll c;error c;recv c 1;send c 1;poll s",
    "pair;shut c b;send s 1;recv c 1;recv c 1;send s 1",
    // the disorderly end
    "pair;send c 3;close s;poll c;recv c 1;recv c 1;send c 1",
    "pair;send c 3;close s;send c 1;send c 1;recv c 1",
    "pair;send c 3;close s;error c;poll c;recv c 1",
    "pair;send c 3;send s 2;close s;poll c;recv c 9;recv c 9;recv c 9",
    "pair;linger s;close s;poll c;recv c 1;recv c 1;send c 1;peer c;shut c w",
    "pair;send s 3;linger s;close s;poll c;recv c 2;recv c 2;recv c 2;recv c 2",
    "pair;send s 3;linger s 1;close s;poll c;recv c 2;recv c 2;recv c 2;send c 1",
    "pair;shut s w;linger s;close s;poll c;recv c 1;send c 1;send c 1;error c",
    "pair;shut s w;send c 1;close s;recv c 1;send c 1;send c 1",
    "pair;fill c;close s;poll c;error c;send c 1;recv c 1",
    "pair;linger c;shut c w;close c;recv s 1;recv s 1;poll s",
    "pair;send c 2;recv s 1;linger c;close c;recv s 9;recv s 9",
    // several descriptors as one
    "pair;set e s;poll e;send c 1;poll e;recv s 9;poll e;close c;poll e",
    "server;set e l;poll e;new c;connect c l;poll e;accept s l;poll e",
    "pair;set e s;close s;poll e",
    "pair;set e s;set f s;set g c;send c 1;poll e;poll f;poll g;recv s 9;poll e;poll f",
};

}  // namespace

TEST_CASE("the simulation answers as the kernel does") {
  CHECK(scripts.size() >= 60);
  for (const std::string script : scripts) {
    INFO(script);
    const std::string simulated = by_simulation(script);
    // What crosses the kernel's loopback is there when the call returns, nearly always.
    std::string real = by_kernel(script);
    for (int tries = 0; tries < 20 && real != simulated; ++tries) real = by_kernel(script);
    CHECK(simulated == real);
  }
}
