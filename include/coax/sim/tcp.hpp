#pragma once

#include <coax/config.hpp>
#include <coax/sim/address.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/file.hpp>
#include <coax/sim/network.hpp>
#include <coax/sim/tcp_buffers.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>

namespace coax::inline COAX_ABI::sim {

class tcp_socket;

/// What a socket needs of its host's TCP: the way out, and to be found by what comes in.
class tcp_host {
 public:
  virtual engine& world() noexcept = 0;
  virtual int index() const noexcept = 0;
  virtual std::uint64_t new_flow() noexcept = 0;
  /// Sends `p` to the host of its address.
  virtual void send(packet p) = 0;
  /// The connection has ended for good: nothing will be looked for by its addresses.
  virtual void ended(tcp_socket& s) = 0;

 protected:
  tcp_host() = default;
  tcp_host(const tcp_host&) = default;
  tcp_host& operator=(const tcp_host&) = default;
  ~tcp_host() = default;
};

/// One side of a TCP connection, or a socket that may become one: what Linux answers, without its
/// clock-driven parts.
///
/// The order of the checks in each call is that of the kernel, since it decides which of several
/// true things is told first.
class tcp_socket final : public file, public std::enable_shared_from_this<tcp_socket> {
 public:
  enum class phase : std::uint8_t { closed, listening, connecting, accepting, open };

  tcp_socket(tcp_host& host, int family) : host_(host), family_(family) {
    const options& how = host.world().how;
    sending_.size_max(how.send_buffer);
    receiving_.size_max(how.receive_buffer);
    local = remote = address::any(family == AF_INET);
  }

  int family() const noexcept { return family_; }
  phase now() const noexcept { return phase_; }
  bool is_connection() const noexcept { return flow_ != 0; }

  // --- calls of the program ---

  int receive(void* into, std::size_t size, bool peek) {
    if (phase_ == phase::listening) return -ENOTCONN;
    if (unread() > 0) {
      const std::size_t there = receiving_.peek(into, size);
      if (!peek) consume(there);
      return static_cast<int>(there);
    }
    if (fin_received_) return 0;
    if (error_ != 0) return -std::exchange(error_, 0);
    if (shut_read_ || done_) return 0;
    if (phase_ == phase::closed) return -ENOTCONN;
    return -EAGAIN;
  }

  int send(const void* from, std::size_t size) {
    if (phase_ == phase::connecting || phase_ == phase::accepting) return -EAGAIN;
    if (error_ != 0) return -std::exchange(error_, 0);
    if (phase_ != phase::open || shut_write_) return -EPIPE;
    const std::size_t taken = sending_.take(from, size);
    if (taken == 0) return size == 0 ? 0 : -EAGAIN;
    pump();
    return static_cast<int>(taken);
  }

  /// `to` is resolved, and this socket bound.
  int connect(const address& to, int to_host) {
    remote = to;
    remote_host_ = to_host;
    flow_ = host_.new_flow();
    phase_ = phase::connecting;
    in_progress_ = true;
    transmit(packet::kind::syn);
    return -EINPROGRESS;
  }
  /// A connect when there was one before.
  int connect_again() {
    if (phase_ == phase::listening) return -EISCONN;
    if (phase_ == phase::connecting) return -EALREADY;
    const bool first = std::exchange(in_progress_, false);
    if (phase_ == phase::open) return first ? 0 : -EISCONN;
    if (!first) return -EISCONN;
    flow_ = 0;
    done_ = false;
    return error_ != 0 ? -std::exchange(error_, 0) : -ECONNABORTED;
  }
  bool may_connect() const noexcept { return phase_ == phase::closed && !in_progress_ && !done_; }

  int shutdown(int how) {
    if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR) return -EINVAL;
    const bool read = how != SHUT_WR;
    const bool write = how != SHUT_RD;
    if (phase_ == phase::listening) {
      if (read) stop_listening();
      return 0;
    }
    if (phase_ == phase::connecting) {
      end(0);
      in_progress_ = false;
      return 0;
    }
    const int answer = phase_ == phase::closed ? -ENOTCONN : 0;
    shut_read_ = shut_read_ || read;
    shut_write_ = shut_write_ || write;
    if (phase_ == phase::open) pump();
    changed(POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    return answer;
  }

  int listen(int backlog) {
    if (phase_ != phase::closed && phase_ != phase::listening) return -EINVAL;
    if (in_progress_ || done_) return -EINVAL;
    phase_ = phase::listening;
    backlog_ = backlog;
    return 0;
  }

  std::size_t unread() const noexcept { return receiving_.unread(); }
  std::size_t room() const noexcept { return sending_.room(); }
  int take_error() noexcept { return std::exchange(error_, 0); }

  void closed() override {
    if (phase_ == phase::listening) return stop_listening();
    orphan_ = true;
    if (phase_ == phase::connecting) return end(0);
    if (phase_ != phase::open) return;
    const bool asked_for = lingers.l_onoff != 0 && lingers.l_linger == 0;
    if (unread() > 0 || asked_for) return reset();
    shut_read_ = shut_write_ = true;
    pump();
    wait_for_peer_to_end();
  }

  /// Ends the connection with a RST to the peer.
  void reset() {
    if (phase_ == phase::open || phase_ == phase::accepting) transmit(packet::kind::reset);
    end(0);
  }
  /// As if the peer had reset it: what the program is told is ECONNRESET, at this call.
  void fail_with_reset() {
    if (phase_ == phase::open) transmit(packet::kind::reset);
    end(ECONNRESET);
    error_ = 0;
  }

  unsigned events() override {
    if (phase_ == phase::listening) return accepted_.empty() ? 0 : POLLIN;
    unsigned now = 0;
    const bool no_reading = shut_read_ || fin_received_ || done_;
    const bool no_writing = shut_write_ || done_;
    if (phase_ == phase::closed || (no_reading && no_writing)) now |= POLLHUP;
    if (no_reading) now |= POLLIN | POLLRDHUP;
    if (phase_ != phase::connecting && phase_ != phase::accepting) {
      if (unread() > 0) now |= POLLIN;
      if (no_writing || sending_.has_room_for_program()) now |= POLLOUT;
    }
    if (error_ != 0) now |= POLLERR;
    return now;
  }

  // --- listening ---

  bool has_waiting() const noexcept { return !accepted_.empty(); }
  std::shared_ptr<tcp_socket> take_waiting() {
    std::shared_ptr<tcp_socket> first = std::move(accepted_.front());
    accepted_.pop_front();
    return first;
  }
  /// Linux lets one more wait than it was told.
  bool is_full() const noexcept { return pending_.size() + accepted_.size() > backlog_size(); }

  /// A peer wants to connect; `made` is this side of it.
  void admit(const std::shared_ptr<tcp_socket>& made, const packet& syn) {
    made->phase_ = phase::accepting;
    made->flow_ = host_.new_flow();
    made->local = syn.to;
    made->remote = syn.from;
    made->remote_host_ = syn.from_host;
    made->sending_.allow(syn.limit);
    made->listener_ = this;
    pending_.push_back(made);
    made->transmit(packet::kind::syn_ack);
  }

  // --- what comes in ---

  void arrived(packet& p) {
    if (p.what == packet::kind::reset) return peer_reset();
    if (phase_ == phase::closed) return;
    if (phase_ == phase::connecting) {
      if (p.what != packet::kind::syn_ack) return;
      phase_ = phase::open;
      sending_.allow(p.limit);
      transmit(packet::kind::ack);
      changed(POLLOUT);
      return;
    }
    if (phase_ == phase::accepting) {
      if (p.what == packet::kind::syn) return;
      phase_ = phase::open;
      if (listener_ != nullptr) std::exchange(listener_, nullptr)->established(*this);
    }
    acknowledged(p);
    if (p.what == packet::kind::data) took(p);
    if (p.what == packet::kind::fin) peer_ended();
    if (fin_sent_ && fin_acknowledged_ && fin_received_ && phase_ == phase::open) end(0);
  }

  /// What was sent came back from nowhere, or never arrived.
  void unreachable(int error) {
    if (phase_ == phase::open || phase_ == phase::connecting) end(error);
    if (phase_ == phase::accepting) end(0);
  }

  /// The peer's host has lost its memory, and what it was about to answer. Whoever waits for that,
  /// or for a window to open again, asks once more, and learns so.
  void probe(int host) {
    if (remote_host_ != host) return;
    if (phase_ == phase::connecting) return transmit(packet::kind::syn);
    const bool waits = !sending_.all_acknowledged() || (fin_sent_ && !fin_acknowledged_);
    if (phase_ == phase::accepting || (phase_ == phase::open && waits)) transmit(packet::kind::ack);
  }

  address local;
  address remote;
  bool bound = false;
  bool reuse_address = false;
  bool reuse_port = false;
  bool v6only = false;
  linger lingers{};                                // SO_LINGER: with no time it resets when closed
  std::map<std::pair<int, int>, int> options_set;  // those without an effect, as (level, option)

  void send_max(std::size_t bytes) noexcept { sending_.size_max(bytes); }
  void receive_max(std::size_t bytes) noexcept { receiving_.size_max(bytes); }
  std::size_t send_max() const noexcept { return sending_.size_max(); }
  std::size_t receive_max() const noexcept { return receiving_.size_max(); }
  std::uint64_t flow() const noexcept { return flow_; }

 private:
  std::size_t backlog_size() const noexcept {
    return static_cast<std::size_t>(std::clamp(backlog_, 0, host_.world().how.backlog_max));
  }

  void transmit(packet::kind what, std::string bytes = {}) {
    packet p;
    p.what = what;
    p.from = local;
    p.to = remote;
    p.from_host = host_.index();
    p.to_host = remote_host_;
    p.flow = flow_;
    p.received = receiving_.received();
    p.limit = receiving_.offer();
    p.fin_received = fin_received_;
    p.bytes = std::move(bytes);
    host_.send(std::move(p));
  }

  /// Sends what the peer has room for, and the FIN behind the last byte.
  void pump() {
    for (std::string bytes = sending_.next_segment(); !bytes.empty();
         bytes = sending_.next_segment())
      transmit(packet::kind::data, std::move(bytes));
    if (shut_write_ && !fin_sent_ && sending_.all_sent()) {
      fin_sent_ = true;
      transmit(packet::kind::fin);
    }
  }

  void acknowledged(const packet& p) {
    if (sending_.acknowledge(p.received) && phase_ == phase::open) {
      sending_.told_of_room();
      changed(POLLOUT);
    }
    sending_.allow(p.limit);
    if (p.fin_received && !std::exchange(fin_acknowledged_, fin_sent_)) wait_for_peer_to_end();
    pump();
  }

  /// What no descriptor stands for any more, and has said all, waits a minute for the peer to end
  /// too; it may be gone.
  void wait_for_peer_to_end() {
    if (!orphan_ || !fin_acknowledged_ || fin_received_) return;
    engine& world = host_.world();
    world.events.at(world.now + std::chrono::seconds(60), 0, [weak = weak_from_this()] {
      if (const auto still = weak.lock(); still != nullptr && still->phase_ == phase::open)
        still->end(0);
    });
  }

  void took(packet& p) {
    if (orphan_) return reset();  // nobody will read it
    if (shut_read_ && fin_sent_) {
      transmit(packet::kind::reset);
      return end(ECONNRESET);
    }
    receiving_.take(p.bytes);
    transmit(packet::kind::ack);
    changed(POLLIN);
  }

  void peer_ended() {
    fin_received_ = true;
    transmit(packet::kind::ack);
    changed(POLLIN | POLLRDHUP | (shut_write_ ? POLLHUP : 0));
  }

  void peer_reset() {
    if (phase_ == phase::closed || phase_ == phase::listening) return;
    if (phase_ == phase::connecting) return end(ECONNREFUSED);
    end(phase_ == phase::open && fin_received_ ? EPIPE : ECONNRESET);
  }

  void consume(std::size_t size) {
    receiving_.consume(size);
    if (phase_ == phase::open && !fin_received_ && receiving_.worth_offering())
      transmit(packet::kind::ack);
  }

  void established(tcp_socket& made) {
    const auto at = std::find_if(pending_.begin(), pending_.end(),
                                 [&](const auto& each) { return each.get() == &made; });
    accepted_.push_back(std::move(*at));
    pending_.erase(at);
    changed(POLLIN);
  }

  void stop_listening() {
    phase_ = phase::closed;
    host_.ended(*this);
    std::deque<std::shared_ptr<tcp_socket>> all;
    all.swap(accepted_);
    for (const auto& each : pending_) {
      each->listener_ = nullptr;
      all.push_back(each);
    }
    pending_.clear();
    for (const auto& each : all) each->reset();
    changed(POLLHUP);
  }

  /// No packet will come or go any more. The caller keeps this alive.
  void end(int error) {
    if (phase_ == phase::accepting && listener_ != nullptr) {
      tcp_socket& l = *std::exchange(listener_, nullptr);
      std::erase_if(l.pending_, [&](const auto& each) { return each.get() == this; });
    }
    phase_ = phase::closed;
    done_ = true;
    error_ = error;
    if (error != 0) sending_.drop();
    changed(POLLIN | POLLOUT | POLLRDHUP | POLLHUP | (error != 0 ? POLLERR : 0));
    host_.ended(*this);
  }

  tcp_host& host_;
  int family_;
  phase phase_ = phase::closed;
  std::uint64_t flow_ = 0;
  int remote_host_ = 0;
  bool in_progress_ = false;  // connect(2) has not told the outcome yet
  bool done_ = false;         // it was a connection, or tried to become one
  bool orphan_ = false;       // no descriptor any more
  int error_ = 0;

  tcp_sending sending_;
  bool shut_write_ = false;
  bool fin_sent_ = false;
  bool fin_acknowledged_ = false;

  tcp_receiving receiving_;
  bool shut_read_ = false;
  bool fin_received_ = false;

  int backlog_ = 0;
  std::deque<std::shared_ptr<tcp_socket>> pending_;
  std::deque<std::shared_ptr<tcp_socket>> accepted_;
  tcp_socket* listener_ = nullptr;
};

}  // namespace coax::inline COAX_ABI::sim
