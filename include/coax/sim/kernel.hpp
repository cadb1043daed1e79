#pragma once

#include <coax/config.hpp>
#include <coax/io/syscalls.hpp>
#include <coax/sim/address.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/faults.hpp>
#include <coax/sim/file.hpp>
#include <coax/sim/tcp.hpp>
#include <coax/sim/tcp_stack.hpp>

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// The names of the hosts of a world.
class host_names {
 public:
  /// The number of a host, or -1.
  virtual int find(std::string_view host) const = 0;

 protected:
  host_names() = default;
  host_names(const host_names&) = default;
  host_names& operator=(const host_names&) = default;
  ~host_names() = default;
};

/// The kernel as one program on a simulated host sees it: answers its calls, and says what has
/// become ready. Nothing here ever waits.
class kernel final : public syscalls, private file_owner {
 public:
  kernel(engine& e, const host_names& names, tcp_stack& tcp, call_faults& faults, int fds_max)
      : engine_(e), names_(names), tcp_(tcp), faults_(faults), fds_max_(fds_max) {}
  kernel(const kernel&) = delete;
  kernel& operator=(const kernel&) = delete;
  ~kernel() override { close_all(); }

  // --- for the host ---

  void fds_max(int most) noexcept { fds_max_ = most; }
  /// Descriptors the program has open, without the reactor's own.
  std::size_t open_fds() const noexcept {
    return static_cast<std::size_t>(std::count_if(files_.begin(), files_.end(), is_foreign));
  }
  std::size_t open_streams() const noexcept {
    return count_if([](const file& f) {
      const auto* s = dynamic_cast<const tcp_socket*>(&f);
      return s != nullptr && s->is_connection();
    });
  }
  void wake() {
    for (const auto& f : files_)
      if (auto* w = dynamic_cast<wake_up*>(f.get())) w->add();
  }
  /// The program has ended: its descriptors are closed as the kernel does it. Later calls answer
  /// as on a host that is gone.
  void program_ended() {
    for (std::size_t i = 0; i < files_.size(); ++i)
      if (is_foreign(files_[i])) close(files_[i]->fd);
    gone_ = true;
  }
  /// The host has stopped dead: nobody is told.
  void host_ended() {
    for (auto& f : files_) {
      if (!is_foreign(f)) continue;
      f->owner = nullptr;
      f = nullptr;
    }
    gone_ = true;
  }

  // --- for the reactor ---

  /// Watches `fd` for `events`, and those that cannot be declined. Result: 0 or -EBADF.
  int watch(int fd, unsigned events, file::report how) {
    file* f = find(fd).get();
    if (f == nullptr) return -EBADF;
    f->watched.wanted = events | POLLERR | POLLHUP;
    f->watched.how = how;
    changed(*f, f->events());
    return 0;
  }
  void unwatch(int fd) {
    if (file* f = find(fd).get()) f->watched.wanted = 0;
  }
  bool has_events() const noexcept { return !ready_.empty(); }
  struct event {
    int fd;
    unsigned events;
  };
  /// What has become ready since, each once, in an order that is a decision.
  std::vector<event> take_events() {
    std::vector<event> found;
    std::vector<std::weak_ptr<file>> again;
    while (!ready_.empty()) {
      const auto at = static_cast<std::ptrdiff_t>(engine_.decide.choose(ready_.size()));
      const std::shared_ptr<file> f = ready_[static_cast<std::size_t>(at)].lock();
      ready_.erase(ready_.begin() + at);
      if (f == nullptr) continue;
      f->watched.listed = false;
      const unsigned now = f->events() & f->watched.wanted;
      if (now == 0 || f->owner == nullptr) continue;
      found.push_back({f->fd, now});
      if (f->watched.how == file::report::once) f->watched.wanted = 0;
      if (f->watched.how == file::report::while_true) again.push_back(f);
    }
    for (const auto& f : again) list(*f.lock());
    return found;
  }

  // --- syscalls: descriptors ---

  int close(int fd) noexcept override {
    counted(0);
    if (find(fd) == nullptr) return gone_ ? 0 : -EBADF;
    const std::shared_ptr<file> f = std::move(files_[index_of(fd)]);
    f->owner = nullptr;
    f->closed();
    return note("close", fd, 0);
  }
  int is_open(int fd) noexcept override { return find(fd) != nullptr || gone_ ? 0 : -EBADF; }
  /// Far from those of the real kernel, and different on each host: one that gets lost and is
  /// closed elsewhere closes nothing.
  int first_descriptor() const noexcept override { return (1 << 24) + tcp_.index() * (1 << 16); }
  int eventfd() noexcept override { return open(std::make_shared<wake_up>()); }
  int epoll_create() noexcept override {
    const auto set = std::make_shared<file_set>();
    std::erase_if(sets_, [](const auto& each) { return each.expired(); });
    sets_.push_back(set);
    return note("epoll_create", 0, open(set));
  }
  int epoll_add(int set, int fd, std::uint32_t events) noexcept override {
    const auto f = find(fd);
    const auto s = std::dynamic_pointer_cast<file_set>(find(set));
    if (f == nullptr || s == nullptr) return -EBADF;
    if (!s->add(f, events)) return -EEXIST;
    s->look();
    return 0;
  }

  // --- syscalls: sockets ---

  int socket(int domain, int type, int protocol) noexcept override {
    if (const int error = fails(call::socket)) return note("socket", domain, -error);
    if (gone_) return -ENETDOWN;
    if (domain != AF_INET && domain != AF_INET6) return -EAFNOSUPPORT;
    constexpr int type_bits = 0xf;
    if ((type & type_bits) != SOCK_STREAM || (protocol != 0 && protocol != IPPROTO_TCP))
      return -EPROTONOSUPPORT;
    return note("socket", domain, open(std::make_shared<tcp_socket>(tcp_, domain)));
  }
  int bind(int fd, const sockaddr* to, socklen_t size) noexcept override {
    if (const int error = fails(call::bind)) return note("bind", fd, -error);
    const auto s = socket_of(fd);
    if (s == nullptr) return not_a_socket(fd);
    address where;
    if (const int bad = read_address(s->family(), to, size, where); bad < 0) return bad;
    return note("bind", fd, tcp_.bind(s, where));
  }
  int listen(int fd, int backlog) noexcept override {
    if (const int error = fails(call::listen)) return note("listen", fd, -error);
    const auto s = socket_of(fd);
    if (s == nullptr) return not_a_socket(fd);
    return note("listen", fd, tcp_.listen(s, backlog < 0 ? INT_MAX : backlog));
  }
  inline int setsockopt(int fd, int level, int option, const void* value,
                        socklen_t size) noexcept override;
  inline int getsockopt(int fd, int level, int option, void* value,
                        socklen_t* size) noexcept override;
  int getsockname(int fd, sockaddr* into, socklen_t* size) noexcept override {
    counted(0);
    const auto s = socket_of(fd);
    if (s == nullptr) return not_a_socket(fd);
    write_address(s->family(), s->local, into, size);
    return 0;
  }
  int getpeername(int fd, sockaddr* into, socklen_t* size) noexcept override {
    counted(0);
    const auto s = socket_of(fd);
    if (s == nullptr) return not_a_socket(fd);
    if (s->now() != tcp_socket::phase::open) return -ENOTCONN;
    write_address(s->family(), s->remote, into, size);
    return 0;
  }
  int shutdown(int fd, int how) noexcept override {
    if (const int error = fails(call::shutdown)) return note("shutdown", fd, -error);
    const auto s = socket_of(fd);
    if (s == nullptr) return not_a_socket(fd);
    return note("shutdown", fd, s->shutdown(how));
  }

  // --- syscalls: transfers ---

  inline int recv(int fd, void* into, std::size_t size, int flags) noexcept override;
  inline int send(int fd, const void* from, std::size_t size, int flags) noexcept override;
  inline int read(int fd, void* into, std::size_t size) noexcept override;
  inline int write(int fd, const void* from, std::size_t size) noexcept override;
  inline int accept(int fd, int flags) noexcept override;
  inline int connect(int fd, const sockaddr* to, socklen_t size) noexcept override;
  int opened_for(int fd, int) noexcept override { return find(fd) != nullptr ? 0 : -EBADF; }
  inline int poll(pollfd* fds, std::size_t count) noexcept override;

  std::uint64_t random() noexcept override { return engine_.decide.bits(); }
  inline std::optional<int> look_up(const std::string& host,
                                    std::vector<sockaddr_storage>& found) override;

 private:
  template <class Is>
  std::size_t count_if(Is&& is) const noexcept {
    return static_cast<std::size_t>(std::count_if(
        files_.begin(), files_.end(), [&](const auto& f) { return f != nullptr && is(*f); }));
  }

  std::size_t index_of(int fd) const noexcept {
    return static_cast<std::size_t>(fd - first_descriptor());
  }
  const std::shared_ptr<file>& find(int fd) const noexcept {
    static const std::shared_ptr<file> none;
    if (fd < first_descriptor() || index_of(fd) >= files_.size()) return none;
    return files_[index_of(fd)];
  }
  std::shared_ptr<tcp_socket> socket_of(int fd) const noexcept {
    return std::dynamic_pointer_cast<tcp_socket>(find(fd));
  }
  int not_a_socket(int fd) const noexcept { return find(fd) != nullptr ? -ENOTSOCK : -EBADF; }

  /// Open, and not the reactor's own.
  static bool is_foreign(const std::shared_ptr<file>& f) noexcept {
    return f != nullptr && dynamic_cast<const wake_up*>(f.get()) == nullptr;
  }
  bool has_free_fd() const noexcept {
    return count_if([](const file&) { return true; }) < static_cast<std::size_t>(fds_max_);
  }
  /// The lowest number that is free, as the kernel does it.
  int open(std::shared_ptr<file> f) {
    if (gone_) return -ENETDOWN;
    if (!has_free_fd()) return -EMFILE;
    const auto at = std::find(files_.begin(), files_.end(), nullptr);
    f->fd = first_descriptor() + static_cast<int>(at - files_.begin());
    f->owner = this;
    const int fd = f->fd;
    if (at == files_.end())
      files_.push_back(std::move(f));
    else
      *at = std::move(f);
    return fd;
  }
  void close_all() {
    for (std::size_t i = 0; i < files_.size(); ++i)
      if (files_[i] != nullptr) close(files_[i]->fd);
  }

  void changed(file& f, unsigned events) override {
    if ((events & f.watched.wanted) != 0) list(f);
    for (const auto& weak : sets_)
      if (const auto set = weak.lock()) set->look_at(f);
  }
  void list(file& f) {
    if (std::exchange(f.watched.listed, true)) return;
    ready_.push_back(files_[index_of(f.fd)]);
  }

  /// The end of a call.
  int note(std::string_view what, int about, int result) {
    tcp_.deliver_local();
    const int base = first_descriptor();
    engine_.note(tcp_.index(), what, about >= base ? about - base : about,
                 result >= base ? result - base : result);
    return result;
  }

  int fails(call c) {
    counted(0);
    return gone_ ? 0 : faults_.next(c);
  }
  /// What was said not to be ready although it was must become ready again, or nobody would come
  /// back.
  void ready_again(const std::shared_ptr<file>& f) {
    const std::weak_ptr<file> weak = f;
    engine_.events.at(engine_.now + std::chrono::milliseconds(1), 0, [this, weak] {
      const auto still = weak.lock();
      if (still != nullptr && still->owner == this) changed(*still, still->events());
    });
  }
  /// The transfers, whichever call asks for them.
  int take_in(call how, std::string_view name, const std::shared_ptr<tcp_socket>& s, void* into,
              std::size_t size, bool peek) noexcept;
  int put_out(call how, std::string_view name, const std::shared_ptr<tcp_socket>& s,
              const void* from, std::size_t size) noexcept;
  /// A fault of a transfer on `s`: what goes with the error.
  int failed(const std::shared_ptr<tcp_socket>& s, int error) {
    if (error == EAGAIN) ready_again(s);
    if (error == ECONNRESET) s->fail_with_reset();
    return -error;
  }

  engine& engine_;
  const host_names& names_;
  tcp_stack& tcp_;
  call_faults& faults_;
  int fds_max_;
  bool gone_ = false;
  std::vector<std::shared_ptr<file>> files_;
  std::vector<std::weak_ptr<file_set>> sets_;
  std::deque<std::weak_ptr<file>> ready_;
};

}  // namespace coax::inline COAX_ABI::sim

#include <coax/sim/kernel_calls.hpp>
