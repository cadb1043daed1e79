#pragma once

#include <coax/config.hpp>
#include <coax/sim/options.hpp>
#include <coax/task/clock.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::sim {

/// Random numbers that are the same on every machine, which those of the standard library's
/// distributions are not: xoshiro256**, seeded by splitmix64.
class generator {
 public:
  explicit generator(std::uint64_t seed) noexcept {
    for (std::uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15U;
      std::uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
      word = z ^ (z >> 31);
    }
  }

  std::uint64_t operator()() noexcept {
    const std::uint64_t value = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return value;
  }

 private:
  std::array<std::uint64_t, 4> state_{};
};

/// One answer of an oracle: `value` of `count`.
struct decision {
  std::uint64_t value = 0;
  std::uint64_t count = 1;
};

/// Makes every decision of a world, and records them: who runs next, how long a packet takes, which
/// call fails.
///
/// The answers come from a seed, or from a script: a recording, the bytes of a fuzzer, or the plan
/// of `explore`. A script that has ended answers 0, which is the first of a list, the shortest
/// time, and "no" to a fault.
class oracle {
 public:
  explicit oracle(std::uint64_t seed) noexcept : generator_(seed) {}

  /// Answers as recorded.
  static oracle replaying(std::vector<decision> recorded) {
    oracle made(0);
    made.source_ = source::script;
    made.script_ = std::move(recorded);
    return made;
  }
  /// Answers as bytes from elsewhere say; any bytes make a run.
  static oracle of_bytes(std::span<const std::byte> bytes) {
    std::vector<decision> script;
    script.reserve(bytes.size());
    for (const std::byte b : bytes) script.push_back({std::to_integer<std::uint64_t>(b), 256});
    return replaying(std::move(script));
  }
  /// Answers as planned; what is a matter of degree is not explored, and answered by its least.
  static oracle planned(std::vector<decision> plan) {
    oracle made = replaying(std::move(plan));
    made.source_ = source::plan;
    return made;
  }

  /// One of `count` things, from 0. Of one thing there is nothing to decide.
  std::uint64_t choose(std::uint64_t count) {
    if (count <= 1) return 0;
    if (source_ != source::seed) return record(next_in_script() % count, count);
    return record(generator_() % count, count);
  }

  bool chance(double probability) {
    if (!(probability > 0)) return false;
    if (source_ == source::seed) {
      constexpr double unit = 1.0 / 9007199254740992.0;  // 2^-53
      return record(static_cast<double>(generator_() >> 11) * unit < probability, 2) != 0;
    }
    return choose(2) != 0;
  }

  clock::duration between(const duration_range& range) {
    if (range.most <= range.least) return range.least;
    const auto count = static_cast<std::uint64_t>((range.most - range.least).count()) + 1;
    if (source_ == source::plan) return range.least;
    return range.least + clock::duration(static_cast<clock::rep>(choose(count)));
  }

  /// How many of `most` things, at least one: a matter of degree too.
  std::size_t up_to(std::size_t most) {
    if (source_ == source::plan) return most == 0 ? 0 : 1;
    return most == 0 ? 0 : 1 + static_cast<std::size_t>(choose(most));
  }

  /// 64 bits for the program under test.
  std::uint64_t bits() {
    if (source_ == source::seed) return record(generator_(), 0);
    return source_ == source::plan ? 0 : record(next_in_script(), 0);
  }

  /// All it has decided so far.
  const std::vector<decision>& decisions() const noexcept { return taken_; }

 private:
  enum class source : std::uint8_t { seed, script, plan };

  std::uint64_t next_in_script() noexcept {
    return at_ < script_.size() ? script_[at_++].value : 0;
  }
  std::uint64_t record(std::uint64_t value, std::uint64_t count) {
    taken_.push_back({value, count});
    return value;
  }

  source source_ = source::seed;
  generator generator_;
  std::vector<decision> script_;
  std::size_t at_ = 0;
  std::vector<decision> taken_;
};

/// How far `explore` goes.
struct exploration {
  std::size_t decisions_max = 1000;  ///< later decisions of a run are not varied
  std::size_t runs_max = 1'000'000;
};

/// What `explore` did.
struct explored {
  std::size_t runs = 0;
  bool complete = false;  ///< every sequence of decisions was run, up to `decisions_max`
};

/// Calls `body(oracle&)` once for every sequence of decisions it can come to: all orders of a small
/// scenario. `body` must decide by the oracle alone, so that the same answers lead to the same
/// questions.
template <class Body>
explored explore(const exploration& limits, Body&& body) {
  explored done;
  std::vector<decision> plan;
  while (done.runs < limits.runs_max) {
    oracle decide = oracle::planned(plan);
    body(decide);
    ++done.runs;
    plan = decide.decisions();
    if (plan.size() > limits.decisions_max) plan.resize(limits.decisions_max);
    // The last decision that has another answer left gets it; what came after is open again.
    while (!plan.empty() && plan.back().value + 1 >= plan.back().count) plan.pop_back();
    if (plan.empty()) {
      done.complete = true;
      break;
    }
    ++plan.back().value;
  }
  return done;
}

}  // namespace coax::inline COAX_ABI::sim
