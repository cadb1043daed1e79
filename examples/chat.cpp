// A chat room over TCP: what somebody writes goes to all, with the number of who wrote it.
//
//   chat [listen]    127.0.0.1:9000 by default: come in with `nc 127.0.0.1 9000`
//
// Who falls more than 64 lines behind is dropped, nobody waits for it. Who writes waits for its own
// copy of the line, and so writes no faster than it reads. Ctrl-C closes the room.

#include <coax/coax.hpp>

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

using namespace std::chrono_literals;

struct member {
  coax::channel<std::shared_ptr<const std::string>> unread{64};
  coax::event behind;
};

struct room {
  auto tell(std::string text, int except = 0) {
    auto l = std::make_shared<const std::string>(std::move(text));
    for (auto& [number, m] : members)
      if (open && number != except && !m.unread.try_send(l)) m.behind.set();
    return l;
  }

  std::map<int, member> members;
  coax::semaphore places{1000};
  bool open = true;
};

coax::task<> listen(coax::stream& conn, member& me) {
  while (auto l = co_await me.unread.receive()) {
    auto sent = co_await coax::within(60s, conn.write(**l));
    if (!sent) break;
  }
}

coax::task<> talk(coax::stream& conn, room& r, member& me, int number) {
  std::string text;
  std::array<std::byte, 1024> buf;
  while (auto n = co_await conn.read(buf)) {
    text.append(reinterpret_cast<const char*>(buf.data()), *n);
    for (auto end = text.find('\n'); end != text.npos; end = text.find('\n')) {
      auto l = r.tell(std::to_string(number) + ": " + text.substr(0, end + 1), number);
      co_await me.unread.send(std::move(l));
      text.erase(0, end + 1);
    }
    if (text.size() > buf.size()) break;  // nobody writes lines as long as that
  }
}

coax::task<> visit(coax::stream conn, room& r, int number, coax::semaphore::permit) {
  member& me = r.members[number];
  r.tell("* " + std::to_string(number) + " is here\n");
  co_await coax::race(listen(conn, me), talk(conn, r, me, number), me.behind.wait());
  const char* how = me.behind.is_set() ? " does not keep up\n" : " has left\n";
  r.members.erase(number);
  r.tell("* " + std::to_string(number) + how);
}

coax::task<> serve(coax::listener listener) {
  room r;
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    auto accept_all = [&]() -> coax::task<> {
      for (int number = 1;; ++number) {
        auto place = co_await r.places.acquire();  // without one, they wait in the backlog
        auto conn = co_await listener.accept();
        s.spawn(visit, std::move(conn).value(), std::ref(r), number, std::move(place));
      }
    };
    co_await coax::race(accept_all(), coax::signals({SIGINT, SIGTERM}));
    listener.close();
    r.tell("* the room closes\n");
    r.open = false;
    for (auto& [number, m] : r.members) m.unread.close();  // what is in it is still delivered
    co_await s.join_within(3s);
  });
}

int main(int argc, char** argv) try {
  auto listener = coax::listener::bind(argc > 1 ? argv[1] : "127.0.0.1:9000").value();
  std::printf("chat: listening on %s\n", listener.local_endpoint().value().to_string().c_str());
  std::fflush(stdout);
  coax::run(serve, std::move(listener));
} catch (const std::exception& e) {
  std::fprintf(stderr, "chat: %s\n", e.what());
  return 1;
}
