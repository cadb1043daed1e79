#pragma once

#include <coax/config.hpp>
#include <coax/sim/address.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/network.hpp>
#include <coax/sim/tcp.hpp>

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// The TCP of one host: its ports, and its connections by their addresses. It outlives the
/// program, whose last bytes it still sends.
class tcp_stack final : public receiver, public tcp_host {
 public:
  tcp_stack(engine& e, network& n, int host) : engine_(e), network_(n), index_(host) {
    n.attach(*this);
  }
  tcp_stack(const tcp_stack&) = delete;
  tcp_stack& operator=(const tcp_stack&) = delete;

  void host_count(int count) noexcept { hosts_ = count; }

  // --- for the kernel of the host ---

  int bind(const std::shared_ptr<tcp_socket>& s, address to) {
    if (s->bound || s->is_connection() || s->now() != tcp_socket::phase::closed) return -EINVAL;
    if (!to.is_any() && !is_own(to)) return -EADDRNOTAVAIL;
    if (to.port == 0) {
      to.port = free_port();
      if (to.port == 0) return -EADDRINUSE;
    } else {
      const bool in_use = any_bound(to.port, [&](const tcp_socket& other) {
        return &other != s.get() && conflicts(*s, to, other);
      });
      if (in_use) return -EADDRINUSE;
    }
    s->local = to;
    s->bound = true;
    remember_bound(s);
    return 0;
  }

  int listen(const std::shared_ptr<tcp_socket>& s, int backlog) {
    if (!s->bound)
      if (const int answer = bind(s, address::any(s->family() == AF_INET)); answer < 0)
        return answer;
    const bool was_listening = s->now() == tcp_socket::phase::listening;
    for (const auto& other : listeners_)
      if (other != s && !was_listening && overlap(*s, s->local, *other) &&
          !(other->reuse_port && s->reuse_port))
        return -EADDRINUSE;
    const int answer = s->listen(backlog);
    if (answer == 0 && !was_listening) listeners_.push_back(s);
    return answer;
  }

  int connect(const std::shared_ptr<tcp_socket>& s, address to) {
    if (!s->may_connect()) return s->connect_again();
    if (to.is_any()) to = address{address::loopback(to.is_v4()).ip, to.port};
    const int host = to.is_loopback() || is_own(to) ? index_ : to.host();
    if (host < 0) return -ENETUNREACH;
    if (!s->bound) {
      const int answer = bind(s, address::any(s->family() == AF_INET));
      if (answer < 0) return -EADDRNOTAVAIL;
    }
    if (s->local.is_any()) {
      const std::uint16_t port = s->local.port;
      s->local = host == index_ ? to : address::of_host(index_, to.is_v4());
      s->local.port = port;
    }
    if (connections_.contains({s->local, to})) return -EADDRNOTAVAIL;
    connections_.emplace(std::pair(s->local, to), s);
    if (host >= hosts_) {
      // Nobody has this address: the neighbours are asked three times, a second apart.
      s->remote = to;
      const int answer = s->connect(to, index_unknown);
      const std::weak_ptr<tcp_socket> weak = s;
      engine_.events.at(engine_.now + std::chrono::seconds(3), 0, [weak] {
        if (const auto still = weak.lock()) still->unreachable(EHOSTUNREACH);
      });
      return answer;
    }
    return s->connect(to, host);
  }

  /// The host has lost its memory: nobody is told.
  void forget_all() {
    // Sockets ask to be forgotten when they go.
    auto connections = std::exchange(connections_, {});
    auto listeners = std::exchange(listeners_, {});
    bound_.clear();
    network_.lost(index_);
  }
  void is_up(bool up) {
    up_ = up;
    if (up) network_.release();
  }
  /// What this host sends to itself arrives.
  void deliver_local() { network_.deliver_local(); }
  std::size_t connections() const noexcept { return connections_.size(); }

  // --- receiver ---

  bool is_up() const noexcept override { return up_; }

  void arrived(packet& p) override {
    const auto at = connections_.find({p.to, p.from});
    if (at != connections_.end()) {
      const std::shared_ptr<tcp_socket> s = at->second;
      return s->arrived(p);
    }
    if (p.what == packet::kind::reset) return;
    if (p.what == packet::kind::syn) {
      if (const std::shared_ptr<tcp_socket> l = listener_of(p.to)) return admit(l, p);
    }
    packet no;
    no.what = packet::kind::reset;
    no.from = p.to;
    no.to = p.from;
    no.from_host = index_;
    no.to_host = p.from_host;
    network_.send(std::move(no));
  }

  void gave_up(const packet& p) override {
    const auto at = connections_.find({p.from, p.to});
    if (at == connections_.end() || at->second->flow() != p.flow) return;
    engine_.note(index_, "gave up", p.to.port);
    const std::shared_ptr<tcp_socket> s = at->second;
    s->unreachable(ETIMEDOUT);
  }

  void lost(int host) override {
    for (const auto& [addresses, s] : connections_) s->probe(host);
  }

  // --- tcp_host ---

  engine& world() noexcept override { return engine_; }
  int index() const noexcept override { return index_; }
  std::uint64_t new_flow() noexcept override { return network_.new_flow(); }
  void send(packet p) override {
    if (up_ && p.to_host != index_unknown) network_.send(std::move(p));
  }
  void ended(tcp_socket& s) override {
    std::erase_if(listeners_, [&](const auto& each) { return each.get() == &s; });
    const auto at = connections_.find({s.local, s.remote});
    if (at == connections_.end() || at->second.get() != &s) return;
    connections_.erase(at);
  }

 private:
  static constexpr int index_unknown = -1;
  static constexpr std::uint16_t first_ephemeral = 32768;
  static constexpr std::uint16_t last_ephemeral = 60999;
  // As Linux: a SYN that finds a full backlog is dropped, and repeated after 1 s, 2 s, 4 s, ...
  static constexpr int syn_repeats = 6;

  bool is_own(const address& a) const noexcept {
    return a.is_loopback() || a.ip == address::of_host(index_, a.is_v4()).ip;
  }

  void remember_bound(const std::shared_ptr<tcp_socket>& s) {
    if (bound_.size() >= clean_bound_at_) {
      std::erase_if(bound_, [](const auto& each) { return each.second.expired(); });
      clean_bound_at_ = 64 + bound_.size() * 2;
    }
    bound_.emplace(s->local.port, s);
  }
  /// Whether one of those that were bound to `port` and are still there is `such`.
  template <class Such>
  bool any_bound(std::uint16_t port, Such&& such) const {
    const auto [from, end] = bound_.equal_range(port);
    return std::any_of(from, end, [&](const auto& each) {
      const std::shared_ptr<const tcp_socket> other = each.second.lock();
      return other != nullptr && such(*other);
    });
  }

  std::uint16_t free_port() {
    for (int tries = 0; tries <= last_ephemeral - first_ephemeral; ++tries) {
      const std::uint16_t port = next_ephemeral_;
      next_ephemeral_ =
          port == last_ephemeral ? first_ephemeral : static_cast<std::uint16_t>(port + 1);
      if (!any_bound(port, [](const tcp_socket& other) { return other.bound; })) return port;
    }
    return 0;
  }

  static bool overlap(const tcp_socket& s, const address& at, const tcp_socket& other) noexcept {
    if (at.port != other.local.port) return false;
    if (at.ip == other.local.ip) return true;
    const bool both = (at.is_any() && !at.is_v4() && !s.v6only) ||
                      (other.local.is_any() && !other.local.is_v4() && !other.v6only);
    if (at.is_v4() != other.local.is_v4() && !both) return false;
    return at.is_any() || other.local.is_any();
  }
  static bool conflicts(const tcp_socket& s, const address& at, const tcp_socket& other) noexcept {
    if (!other.bound || !overlap(s, at, other)) return false;
    if (s.reuse_port && other.reuse_port) return false;
    const bool both_reuse = s.reuse_address && other.reuse_address;
    return !both_reuse || other.now() == tcp_socket::phase::listening;
  }
  static bool meets(const tcp_socket& l, const address& to) noexcept { return overlap(l, to, l); }

  /// Who listens there. One that names the address comes before those that take any; of several
  /// that share it, it is a decision.
  std::shared_ptr<tcp_socket> listener_of(const address& to) {
    std::vector<std::shared_ptr<tcp_socket>> found;
    for (const auto& l : listeners_) {
      if (!meets(*l, to)) continue;
      const bool better = !found.empty() && l->local.ip == to.ip && found[0]->local.ip != to.ip;
      if (better) found.clear();
      if (found.empty() || l->local.ip == found[0]->local.ip) found.push_back(l);
    }
    if (found.empty()) return nullptr;
    return found[static_cast<std::size_t>(engine_.decide.choose(found.size()))];
  }

  void admit(const std::shared_ptr<tcp_socket>& l, const packet& syn, int repeated = 0) {
    if (l->is_full()) {
      engine_.note(index_, "backlog full", syn.to.port);
      engine_.events.at(engine_.now + std::chrono::seconds(1 << repeated), 0,
                        [this, syn, repeated] {
                          if (repeated == syn_repeats) return network_.give_up(syn);
                          repeat(syn, repeated + 1);
                        });
      return;
    }
    const auto made = std::make_shared<tcp_socket>(*this, l->family());
    made->bound = true;
    made->reuse_address = l->reuse_address;
    made->reuse_port = l->reuse_port;
    made->send_max(l->send_max());
    made->receive_max(l->receive_max());
    connections_.emplace(std::pair(syn.to, syn.from), made);
    l->admit(made, syn);
    remember_bound(made);
  }
  void repeat(packet syn, int repeated) {
    if (!up_) return;
    if (const std::shared_ptr<tcp_socket> l = listener_of(syn.to)) return admit(l, syn, repeated);
    arrived(syn);
  }

  engine& engine_;
  network& network_;
  int index_;
  int hosts_ = 0;
  bool up_ = true;
  std::uint16_t next_ephemeral_ = first_ephemeral;
  std::multimap<std::uint16_t, std::weak_ptr<tcp_socket>> bound_;  // by port
  std::size_t clean_bound_at_ = 64;
  std::vector<std::shared_ptr<tcp_socket>> listeners_;
  std::map<std::pair<address, address>, std::shared_ptr<tcp_socket>> connections_;
};

}  // namespace coax::inline COAX_ABI::sim
