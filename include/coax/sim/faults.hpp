#pragma once

#include <coax/config.hpp>
#include <coax/sim/engine.hpp>
#include <coax/sim/options.hpp>
#include <coax/sim/oracle.hpp>
#include <coax/task/exceptions.hpp>
#include <coax/task/result.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>

namespace coax::inline COAX_ABI::sim {

/// The calls that can be made to fail.
enum class call : std::uint8_t {
  recv,
  send,
  read,
  write,
  accept,
  connect,
  socket,
  bind,
  listen,
  poll,
  shutdown,
};

/// Makes single calls of one kind fail: `host.on("recv").nth(7, EINTR)`.
class call_rule {
 public:
  /// The `n`th call from now on, the first of which is 1, fails with `error`.
  ///
  /// Errors    std::invalid_argument when `n` is 0.
  call_rule& nth(std::uint64_t n, int error) {
    if (n == 0) coax::detail::throw_invalid_argument("coax: nth: the first call is 1");
    planned_.emplace(made_ + n, error);
    return *this;
  }
  /// Every call from now on fails with `error`; 0 ends that.
  call_rule& always(int error) noexcept {
    always_ = error;
    return *this;
  }
  /// Calls made so far.
  std::uint64_t count() const noexcept { return made_; }

  /// Counts one call. Result: the error it is to fail with, or 0.
  int next() noexcept {
    ++made_;
    const auto planned = planned_.find(made_);
    if (planned == planned_.end()) return always_;
    const int error = planned->second;
    planned_.erase(planned);
    return error;
  }

 private:
  std::map<std::uint64_t, int> planned_;  // the error, by the number of the call
  std::uint64_t made_ = 0;
  int always_ = 0;
};

/// Decides which call of a host fails.
class call_faults {
 public:
  explicit call_faults(engine& e) noexcept : engine_(e) {}

  /// Errors    std::invalid_argument for a call that cannot be made to fail.
  call_rule& on(std::string_view name) {
    for (std::size_t i = 0; i < names.size(); ++i)
      if (names[i] == name) return rules_[i];
    coax::detail::throw_invalid_argument("coax: a simulation has no faults for the call \"" +
                                         std::string(name) + "\"");
  }

  /// Result: the error that `c` is to fail with, or 0.
  int next(call c) {
    if (const int planned = rules_[static_cast<std::size_t>(c)].next(); planned != 0)
      return planned;
    if (are_stopped()) return 0;
    const options& how = engine_.how;
    const bool transfers =
        c == call::recv || c == call::send || c == call::read || c == call::write;
    const bool makes_fd = c == call::accept || c == call::socket;
    if ((transfers || c == call::accept || c == call::connect || c == call::poll) && hit(how.eintr))
      return EINTR;
    if ((transfers || c == call::accept) && hit(how.eagain)) return EAGAIN;
    if ((c == call::recv || c == call::send) && hit(how.reset)) return ECONNRESET;
    if (c == call::accept && hit(how.econnaborted)) return ECONNABORTED;
    if (makes_fd && hit(how.emfile)) return EMFILE;
    if ((makes_fd || c == call::send) && hit(how.enobufs)) return ENOBUFS;
    if ((makes_fd || c == call::recv) && hit(how.enomem)) return ENOMEM;
    return 0;
  }

  /// How many of `size` bytes one call transfers at most.
  std::size_t cut(std::size_t size) {
    if (size < 2 || are_stopped() || !hit(engine_.how.short_io)) return size;
    return engine_.decide.up_to(size - 1);
  }

  /// No more faults by chance.
  void stop() noexcept { quiet_ = true; }
  bool are_stopped() const noexcept { return quiet_ || engine_.calm; }

 private:
  static constexpr std::array<std::string_view, 11> names{"recv",   "send",    "read",    "write",
                                                          "accept", "connect", "socket",  "bind",
                                                          "listen", "poll",    "shutdown"};

  bool hit(double probability) { return engine_.decide.chance(probability); }

  engine& engine_;
  std::array<call_rule, names.size()> rules_;
  bool quiet_ = false;
};

namespace faults {

/// A random choice of faults at random rates, on top of `base`: each seed is another kind of bad
/// day. Prints what it picked on stderr, unless told not to.
inline options swarm(std::uint64_t seed, options base = {}, bool print = true) {
  generator random(seed ^ 0x5357'4152'4d00'0000U);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  base.seed = seed;
  for (const detail::named_probability& p : detail::probabilities) {
    // Half of them are off, so that each gets its days alone with few others.
    if (below(2) == 0) continue;
    // From one in a thousand to one in three or so, with rare ones as likely as frequent ones.
    constexpr std::array<double, 6> rates{0.001, 0.005, 0.02, 0.05, 0.15, 0.35};
    base.*p.value = rates[below(rates.size())];
  }
  if (below(2) == 0) {
    constexpr std::array<int, 4> most{1, 10, 50, 300};
    base.latency = {clock::duration::zero(), std::chrono::milliseconds(most[below(most.size())])};
  }
  if (below(4) == 0) base.rate = std::uint64_t{10'000} << below(8);
  if (below(4) == 0) base.send_buffer = std::size_t{1} << (8 + below(8));
  if (below(4) == 0) base.receive_buffer = std::size_t{1} << (8 + below(8));
  if (below(3) == 0) base.completion = completion::ring;
  if (print) std::fprintf(stderr, "coax: swarm {%s}\n", to_string(base).c_str());
  return base;
}

}  // namespace faults

}  // namespace coax::inline COAX_ABI::sim
