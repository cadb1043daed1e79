#pragma once

#include <coax/config.hpp>
#include <coax/task/clock.hpp>

#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

namespace coax::inline COAX_ABI::sim {

/// From the least to the most, both included.
struct duration_range {
  clock::duration least{};
  clock::duration most{};

  bool is_valid() const noexcept { return least >= clock::duration::zero() && least <= most; }
  bool operator==(const duration_range&) const = default;
};

/// How operations end: as over epoll, or as over io_uring.
enum class completion : std::uint8_t {
  readiness,  ///< the task makes the call itself, once it may succeed
  ring,       ///< the kernel makes it: the result waits to be reaped, and can outrun a cancellation
};

/// A simulated world: what it is like, and how often what goes wrong. Probabilities are from 0
/// (never) to 1.
struct options {
  /// Overruled by the environment variable COAX_SIM_SEED.
  std::uint64_t seed = 1;

  // --- the network ---

  duration_range latency{};                ///< of each packet between two hosts, one way
  std::uint64_t rate = 0;                  ///< bytes a second from one host to another; 0: no limit
  double hang = 0;                         ///< a connection attempt that nothing answers
  std::size_t send_buffer = 64 * 1024;     ///< bytes a socket takes before its peer has them
  std::size_t receive_buffer = 64 * 1024;  ///< bytes a peer may send ahead of the reader

  // --- each host ---

  int fds_max = 1024;  ///< open descriptors; more is EMFILE
  int backlog_max = 4096;
  sim::completion completion = sim::completion::readiness;

  // --- faults, at the system call ---

  double short_io = 0;      ///< a transfer of fewer bytes than there is room or data for
  double eintr = 0;         ///< interrupted, nothing done
  double eagain = 0;        ///< not ready after all, and ready again a moment later
  double reset = 0;         ///< the connection is reset under a transfer: ECONNRESET
  double econnaborted = 0;  ///< a connection that is gone before it was accepted
  double emfile = 0;        ///< no descriptor is left, for one call
  double enobufs = 0;
  double enomem = 0;

  // --- faults of a host ---

  double stall = 0;  ///< before a turn: the host does not run for a while
  duration_range stall_time{std::chrono::milliseconds(1), std::chrono::milliseconds(50)};
};

/// The options that are not the default, as one would write them.
std::string to_string(const options& o);

}  // namespace coax::inline COAX_ABI::sim

namespace coax::inline COAX_ABI::sim::detail {

struct named_probability {
  const char* name;
  double options::* value;
};

/// What `faults::swarm` picks from, in the order of its decisions.
inline constexpr named_probability probabilities[] = {
    {"short_io", &options::short_io},
    {"eintr", &options::eintr},
    {"eagain", &options::eagain},
    {"reset", &options::reset},
    {"econnaborted", &options::econnaborted},
    {"emfile", &options::emfile},
    {"enobufs", &options::enobufs},
    {"enomem", &options::enomem},
    {"hang", &options::hang},
    {"stall", &options::stall},
};

}  // namespace coax::inline COAX_ABI::sim::detail

namespace coax::inline COAX_ABI::sim {

inline std::string to_string(const options& o) {
  const options usual;
  std::string text = ".seed = " + std::to_string(o.seed);
  const auto range = [&](const char* name, const duration_range& r, const duration_range& before) {
    if (r != before)
      text += std::string(", .") + name + " = {" + std::to_string(r.least.count()) + "ns, " +
              std::to_string(r.most.count()) + "ns}";
  };
  const auto number = [&](const char* name, auto value, auto before) {
    if (value == before) return;
    char digits[32];  // of a double as many as make it out
    const auto end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
    text += std::string(", .") + name + " = " + std::string(digits, end);
  };
  range("latency", o.latency, usual.latency);
  number("rate", o.rate, usual.rate);
  number("send_buffer", o.send_buffer, usual.send_buffer);
  number("receive_buffer", o.receive_buffer, usual.receive_buffer);
  number("fds_max", o.fds_max, usual.fds_max);
  number("backlog_max", o.backlog_max, usual.backlog_max);
  if (o.completion == completion::ring) text += ", .completion = completion::ring";
  for (const detail::named_probability& p : detail::probabilities)
    number(p.name, o.*p.value, usual.*p.value);
  range("stall_time", o.stall_time, usual.stall_time);
  return text;
}

}  // namespace coax::inline COAX_ABI::sim
