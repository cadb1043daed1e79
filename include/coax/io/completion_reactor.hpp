#pragma once

#include <coax/config.hpp>
#include <coax/io/buffer_pool.hpp>
#include <coax/io/connection_end.hpp>
#include <coax/io/reactor.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace coax::inline COAX_ABI {

/// A reactor over a kernel that makes the calls itself and reports how they ended. Here stands what
/// becomes of multishot receives.
///
/// A multishot receive belongs to its descriptor, not to who waits: its completions, which name the
/// descriptor and its generation, go into the inbox there, and an operation that reads takes from
/// that. It is started by the first `receive`, and goes on until it ends by itself, until nobody
/// takes what comes, or until the descriptor is closed; the number of the descriptor stays taken
/// until its last completion.
///
/// The kernel delivers what has come in batches of up to 32 buffers, a megabyte, which nobody else is
/// served beside. From a peer that floods, `receive` takes a buffer at a time by a plain call, until
/// there is less than that.
///
/// io_uring and the simulation differ in how they submit, cancel and wait.
class completion_reactor : public reactor {
 protected:
  using reactor::reactor;

  // --- what is left to a backend ---

  /// Submits a multishot receive of `d`, whose completions are `delivered` with `key_of(d)`. False
  /// when there is no room for it or its cancellation, or no buffer: then nothing has happened.
  virtual bool arm_multishot(const descriptor& d) noexcept = 0;
  /// Asks the kernel to end the one with that key, if it has not ended.
  virtual void cancel_multishot(std::uint64_t key) noexcept = 0;
  /// Submits `op` for itself.
  virtual void put_into_kernel(operation& op) noexcept = 0;
  /// One has ended because there was no buffer for it.
  virtual void buffers_ran_dry() noexcept {}

  // --- what a backend reports ---

  /// Tells the completions of multishot receives from those of operations, none of which has an odd
  /// address.
  static constexpr std::uint64_t of_multishot = 1;

  static std::uint64_t key_of(const descriptor& d) noexcept {
    return std::uint64_t{d.generation} << 32 | static_cast<std::uint64_t>(d.fd) << 1 | of_multishot;
  }

  /// Submits `op`, unless it is left to a multishot receive.
  void queue(operation& op) noexcept {
    if (!served_by_multishot(op)) put_into_kernel(op);
  }

  /// Leaves `op` to the multishot receive of its descriptor, if there is one or it wants one.
  bool served_by_multishot(operation& op) noexcept {
    if (op.watched_as() != watching::stream || !op.reads()) return false;
    descriptor& d = *op.at_;
    if (!d.multishot) {
      if (!op.wants_multishot() || op.no_multishot_ || d.multishot_refused || d.floods)
        return false;
      if (!arm_multishot(d)) return false;
      d.multishot = true;
      ++multishots_;
    }
    op.by_multishot_ = true;
    return true;
  }

  /// Takes `op` away from the multishot receive it was left to. False when it was not.
  static bool left_multishot(operation& op) noexcept {
    const bool was_left_to_it = op.by_multishot_;
    op.by_multishot_ = false;
    return was_left_to_it;
  }

  /// A completion of the multishot receive with that key: how many bytes came in `filled`, or the
  /// end. It has more to come, unless this is the last.
  void delivered(std::uint64_t key, int answer, detail::buffer* filled, bool last) noexcept {
    if (last) --multishots_;
    descriptor* const d = of_key(key);
    const bool wanted = d != nullptr && !d->closing;
    const bool came = wanted && filled != nullptr && answer > 0;
    if (came) {
      filled->fill(static_cast<std::uint32_t>(answer));
      d->received.push(*filled);
    } else if (filled != nullptr) {
      filled->release();
      const bool unread = d != nullptr && d->closing && !d->stays_open && answer > 0;
      if (unread) detail::reset_on_close(system(), d->fd);
    }
    if (d == nullptr) return;
    const bool asked_to_stop = d->multishot_stops;
    if (last && wanted && !came) end_multishot(*d, answer);
    if (last) multishot_ended(*d);
    if (!wanted) return;

    operation* const reader = d->reader;
    if (reader == nullptr || !reader->by_multishot_) {
      if (!last && d->received.size() > unread_max) {
        d->floods = true;
        stop_multishot(*d);
      }
    } else if (!d->received.empty() && reader->take_received(d->received)) {
      reader->by_multishot_ = false;
      ended(*reader);
    } else if (last) {
      reader->by_multishot_ = false;
      // Without a reason that is known to pass, the same would only happen again.
      reader->no_multishot_ = !asked_to_stop && answer != -ENOBUFS && answer <= 0;
      queue(*reader);
    }
  }

  void stop_multishot(descriptor& d) noexcept final {
    if (d.multishot_stops) return;
    d.multishot_stops = true;
    cancel_multishot(key_of(d));
  }
  bool has_multishots() const noexcept final { return multishots_ != 0; }
  /// Those that have not had their last completion.
  std::size_t multishots() const noexcept { return multishots_; }

 private:
  // So many buffers may a descriptor hold that nobody asks for; with more, its multishot receive is
  // stopped. What it still delivers before it has stopped is kept: one batch of the kernel, 32.
  static constexpr std::size_t unread_max = 8;

  /// Null when the descriptor has begun another life.
  descriptor* of_key(std::uint64_t key) noexcept {
    descriptor* d = descriptors().known(static_cast<int>((key & UINT32_MAX) >> 1));
    return d != nullptr && d->generation == key >> 32 ? d : nullptr;
  }

  /// What the last completion says about the stream.
  void end_multishot(descriptor& d, int answer) noexcept {
    switch (-answer) {
      case ENOBUFS:
        buffers_ran_dry();
        break;
      case ECANCELED:
      case EINTR:
      case EAGAIN:
        break;
      case EINVAL:
      case EOPNOTSUPP:
        d.multishot_refused = true;
        break;
      default:
        d.received.end(told_again(d, answer));
    }
  }

  std::size_t multishots_ = 0;
};

}  // namespace coax::inline COAX_ABI
