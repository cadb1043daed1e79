#pragma once

#include <coax/config.hpp>
#include <coax/sim/address.hpp>
#include <coax/sim/engine.hpp>
#include <coax/task/clock.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// What one side of a connection sends to the other. Each packet also tells how much has arrived
/// so far, and how much more may be sent.
struct packet {
  enum class kind : std::uint8_t { syn, syn_ack, ack, data, fin, reset };

  kind what = kind::ack;
  address from;
  address to;
  int from_host = 0;
  int to_host = 0;
  std::uint64_t flow = 0;    // packets of one flow arrive in order; 0: of no connection
  std::uint64_t number = 0;  // in its flow
  std::uint64_t received = 0;
  std::uint64_t limit = 0;
  bool fin_received = false;
  std::string bytes;
};

/// Where a host takes in its packets.
class receiver {
 public:
  virtual bool is_up() const noexcept = 0;
  virtual void arrived(packet& p) = 0;
  /// `p`, which this host has sent, was tried again and again in vain.
  virtual void gave_up(const packet& p) = 0;
  /// `host` has lost its memory.
  virtual void lost(int host) = 0;

 protected:
  receiver() = default;
  receiver(const receiver&) = default;
  receiver& operator=(const receiver&) = default;
  ~receiver() = default;
};

/// Carries packets between hosts: late, at a limited rate, in order within a connection.
///
/// None is lost for good. What meets a partition, or a host that is down, is kept and comes when
/// the way is free again, as what TCP repeats would; unless the sender's patience ends first.
class network {
 public:
  explicit network(engine& e) noexcept : engine_(e) {}
  network(const network&) = delete;
  network& operator=(const network&) = delete;

  void attach(receiver& host) { hosts_.push_back(&host); }
  std::uint64_t new_flow() noexcept { return ++last_flow_; }

  void send(packet p) {
    if (p.from_host == p.to_host) return local_.push_back(std::move(p));
    flow& f = flows_[p.flow];
    p.number = f.sent++;
    const double hangs = engine_.calm ? 0 : engine_.how.hang;
    if (p.what == packet::kind::syn && engine_.decide.chance(hangs)) {
      engine_.note(p.from_host, "hang", p.to.port);
      f.hangs = true;
    }
    // The rest of an attempt that is not answered is not carried either.
    if (f.hangs) return hold(std::move(p));
    carry(std::move(p));
  }

  /// Brings what hosts have sent to themselves: it is there when the call that sent it returns, as
  /// over a loopback interface.
  void deliver_local() {
    if (std::exchange(delivering_, true)) return;
    while (!local_.empty()) {
      packet p = std::move(local_.front());
      local_.pop_front();
      deliver(p);
    }
    delivering_ = false;
  }

  /// Cuts the way from one host to another, in that direction.
  void cut(int from, int to) { cuts_.insert({from, to}); }
  void mend(int from, int to) {
    cuts_.erase({from, to});
    release();
  }
  void mend_all() {
    cuts_.clear();
    release();
  }
  /// Carries what was kept for hosts that are up again.
  void release() {
    std::map<std::uint64_t, held> again;
    again.swap(held_);
    for (auto& [id, h] : again) {
      if (!is_free(h.what)) {
        held_.emplace(id, std::move(h));
        continue;
      }
      engine_.events.cancel(h.patience);
      carry(std::move(h.what));
    }
  }
  /// `p` has been tried often enough.
  void give_up(const packet& p) { hosts_[static_cast<std::size_t>(p.from_host)]->gave_up(p); }
  /// `host` is down, and has lost its memory: nobody repeats what it has sent.
  void lost(int host) {
    for (receiver* each : hosts_) each->lost(host);
    for (auto at = held_.begin(); at != held_.end();) {
      if (at->second.what.from_host == host) {
        engine_.events.cancel(at->second.patience);
        at = held_.erase(at);
      } else {
        ++at;
      }
    }
  }

 private:
  // As Linux has it: six SYNs take 127 s, fifteen repeats of data up to 924 s.
  static constexpr std::chrono::seconds patience_to_connect{127};
  static constexpr std::chrono::seconds patience_with_data{924};

  struct flow {
    std::uint64_t sent = 0;
    std::uint64_t delivered = 0;
    clock::time_point last_arrival{};
    std::map<std::uint64_t, packet> early;  // overtook one that was kept
    bool hangs = false;
  };
  struct held {
    packet what;
    event_queue::key patience;
  };

  bool is_free(const packet& p) const {
    return !flow_hangs(p) && !cuts_.contains({p.from_host, p.to_host}) &&
           hosts_[static_cast<std::size_t>(p.to_host)]->is_up();
  }
  bool flow_hangs(const packet& p) const {
    const auto at = flows_.find(p.flow);
    return at != flows_.end() && at->second.hangs;
  }

  void carry(packet p) {
    clock::time_point arrival = engine_.now;
    if (engine_.how.rate > 0) {
      clock::time_point& busy_until = busy_until_[{p.from_host, p.to_host}];
      constexpr std::uint64_t second = 1'000'000'000;
      const auto time =
          static_cast<clock::rep>((p.bytes.size() + header_bytes) * second / engine_.how.rate);
      busy_until = std::max(busy_until, engine_.now) + clock::duration(time);
      arrival = busy_until;
    }
    arrival = timeout(engine_.decide.between(engine_.how.latency)).after(arrival);
    flow& f = flows_[p.flow];
    if (p.flow != 0) f.last_arrival = arrival = std::max(arrival, f.last_arrival);
    const std::uint64_t in_order = p.flow;
    engine_.events.at(arrival, in_order, [this, moved = std::move(p)] { arrive(moved); });
  }

  void arrive(packet p) {
    if (!is_free(p)) return hold(std::move(p));
    if (p.flow == 0) return deliver(p);
    flow& f = flows_[p.flow];
    if (p.number != f.delivered) {
      f.early.emplace(p.number, std::move(p));
      return;
    }
    while (true) {
      ++f.delivered;
      deliver(p);
      const auto next = f.early.find(f.delivered);
      if (next == f.early.end()) return;
      p = std::move(next->second);
      f.early.erase(next);
    }
  }

  void deliver(packet& p) { hosts_[static_cast<std::size_t>(p.to_host)]->arrived(p); }

  void hold(packet p) {
    const bool connects = p.what == packet::kind::syn || p.what == packet::kind::syn_ack;
    const std::uint64_t id = ++last_held_;
    const clock::time_point until =
        engine_.now + (connects ? patience_to_connect : patience_with_data);
    const event_queue::key patience = engine_.events.at(until, 0, [this, id] {
      const auto at = held_.find(id);
      if (at == held_.end()) return;
      const packet lost = std::move(at->second.what);
      held_.erase(at);
      give_up(lost);
    });
    held_.emplace(id, held{std::move(p), patience});
  }

  static constexpr std::size_t header_bytes = 40;

  engine& engine_;
  std::vector<receiver*> hosts_;
  std::set<std::pair<int, int>> cuts_;
  std::map<std::uint64_t, flow> flows_;
  std::map<std::uint64_t, held> held_;
  std::map<std::pair<int, int>, clock::time_point> busy_until_;
  std::deque<packet> local_;
  bool delivering_ = false;
  std::uint64_t last_flow_ = 0;
  std::uint64_t last_held_ = 0;
};

}  // namespace coax::inline COAX_ABI::sim
