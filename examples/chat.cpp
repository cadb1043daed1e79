// A chat room over TCP: what somebody writes goes to all, with the number of who wrote it.
//
//   chat [listen]    127.0.0.1:9000 by default: come in with `nc 127.0.0.1 9000`
//
// Who is 64 lines behind holds up those who write, for at most a second, and then is dropped.

#include <coax/coax.hpp>

#include <cstdio>
#include <set>
#include <system_error>

using namespace std::chrono_literals;

struct member {
  coax::channel<std::shared_ptr<const std::string>> unread{64};
  coax::event behind;
};

using room = std::set<std::shared_ptr<member>>;

coax::task<> tell(room& r, std::string text) {
  const auto line = std::make_shared<const std::string>(std::move(text));
  room full = r;
  std::erase_if(full, [&](const auto& m) { return m->unread.try_send(line); });
  const auto deadline = coax::now() + 1s;
  for (const auto& m : full) {
    auto sent = co_await coax::within(deadline - coax::now(), m->unread.send(line));
    if (!sent) m->behind.set();
  }
}

coax::task<> listen(coax::stream& conn, member& me) {
  while (auto line = co_await me.unread.receive()) {
    auto sent = co_await conn.write(**line);
    if (!sent) break;
  }
}

/// From now on nobody waits for room in what he has not read; what is in it is still delivered.
void leave(room& r, const std::shared_ptr<member>& me) {
  r.erase(me);
  me->unread.close();
}

coax::task<> talk(coax::stream& conn, room& r, std::shared_ptr<member> me,
                  const std::string& name) {
  // Shielded: what one has heard, all hear, also when he goes meanwhile.
  co_await coax::shield(tell(r, "* " + name + " is here\n"));
  std::string text;
  std::array<std::byte, 1024> buf;
  while (auto n = co_await conn.read(buf)) {
    text.append(reinterpret_cast<const char*>(buf.data()), *n);
    for (auto end = text.find('\n'); end != text.npos; end = text.find('\n')) {
      co_await coax::shield(tell(r, name + ": " + text.substr(0, end + 1)));
      text.erase(0, end + 1);
    }
    if (text.size() > buf.size()) break;  // nobody writes lines as long as that
  }
  leave(r, me);
  co_await coax::sleep_for(3s);  // for him to hear what was said until now
}

coax::task<> visit(coax::stream conn, room& r, std::string name, coax::semaphore::permit) {
  const auto me = *r.insert(std::make_shared<member>()).first;
  co_await coax::race(listen(conn, *me), talk(conn, r, me, name), me->behind.wait());
  leave(r, me);
  co_await tell(r, "* " + name + (me->behind.is_set() ? " does not keep up\n" : " has left\n"));
  if (!me->behind.is_set()) static_cast<void>(co_await conn.close());
}

coax::task<> serve(coax::listener listener) {
  room r;
  coax::semaphore places(1000);
  co_await coax::with_scope([&](coax::scope& s) -> coax::task<> {
    auto accept_all = [&]() -> coax::task<> {
      for (int i = 1;; ++i) {
        auto place = co_await places.acquire();  // without one, they wait in the backlog
        auto conn = co_await listener.accept();
        s.spawn(visit, std::move(conn).value(), std::ref(r), std::to_string(i), std::move(place));
      }
    };
    co_await coax::race(accept_all(), coax::signals({SIGINT, SIGTERM}));
    listener.close();
    co_await tell(r, "* the room closes\n");
    for (const auto& m : r) m->unread.close();  // what is in it is still delivered
    co_await s.join_within(3s);
  });
}

int main(int argc, char** argv) try {
  const char* const where = argc > 1 ? argv[1] : "127.0.0.1:9000";
  auto listener = coax::listener::bind(where);
  if (!listener) throw std::system_error(listener.error(), where);
  std::printf("chat: listening on %s\n", listener->local_endpoint().value().to_string().c_str());
  std::fflush(stdout);
  coax::run(serve, std::move(*listener));
  return 0;
} catch (const std::system_error& e) {
  std::fprintf(stderr, "chat: %s\n", e.what());
  return 1;
}
