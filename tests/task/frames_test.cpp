#include <coax/task/frames.hpp>

#include "../catch.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <malloc.h>

using coax::detail::frames;

namespace {

// Under AddressSanitizer nothing is recycled, so that the use of a dead frame is seen.
#if defined(COAX_FRAMES_FROM_HEAP)
constexpr bool recycles = false;
#else
constexpr bool recycles = true;
#endif

struct block {
  void* memory;
  std::size_t size;
};

block make(std::size_t size) {
  const block b{frames::allocate(size), size};
  std::memset(b.memory, 0x5a, size);
  return b;
}
void free_all(std::vector<block>& blocks) {
  for (const block& b : blocks) frames::deallocate(b.memory, b.size);
  blocks.clear();
}

}  // namespace

TEST_CASE("live counts the frames that were allocated and not freed", "[frames]") {
  const std::ptrdiff_t before = frames::live();
  std::vector<block> blocks;
  for (const std::size_t size : {1U, 64U, 65U, 2'048U, 2'049U, 1'000'000U}) {
    blocks.push_back(make(size));
    CHECK(frames::live() == before + static_cast<std::ptrdiff_t>(blocks.size()));
  }
  free_all(blocks);
  CHECK(frames::live() == before);
}

TEST_CASE("the bytes of live frames are at least what was asked for, however large", "[frames]") {
  const std::ptrdiff_t before = frames::live_bytes();
  std::vector<block> blocks;
  std::ptrdiff_t asked = 0;
  for (const std::size_t size : {24U, 64U, 65U, 2'049U, 1'000'000U}) {
    blocks.push_back(make(size));
    asked += static_cast<std::ptrdiff_t>(size);
    const std::ptrdiff_t taken = frames::live_bytes() - before;
    CHECK(taken >= asked);
    CHECK(taken <= asked + 16 * static_cast<std::ptrdiff_t>(blocks.size()));
  }
  free_all(blocks);
  CHECK(frames::live_bytes() == before);
}

TEST_CASE("a frame that was freed serves the next of its size class", "[frames]") {
  if (!recycles) return;
  const block first = make(130);
  frames::deallocate(first.memory, first.size);
  const block same_class = make(136);
  CHECK(same_class.memory == first.memory);
  const block other_class = make(137);
  CHECK(other_class.memory != first.memory);
  frames::deallocate(same_class.memory, same_class.size);
  frames::deallocate(other_class.memory, other_class.size);
}

TEST_CASE("frames of all sizes are apart from each other, aligned, and wholly usable", "[frames]") {
  std::vector<block> blocks;
  for (int round = 0; round < 3; ++round) {
    for (std::size_t size = 1; size <= 4'096; size += size < 256 ? 1 : 61)
      blocks.push_back(make(size));
    std::sort(blocks.begin(), blocks.end(),
              [](const block& a, const block& b) { return a.memory < b.memory; });
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const auto address = reinterpret_cast<std::uintptr_t>(blocks[i].memory);
      REQUIRE(address % alignof(std::max_align_t) == 0);
      if (i > 0)
        REQUIRE(reinterpret_cast<std::uintptr_t>(blocks[i - 1].memory) + blocks[i - 1].size <=
                address);
    }
    free_all(blocks);
  }
}

TEST_CASE("what a burst leaves behind is bounded", "[frames]") {
  if (!recycles) return;
  std::vector<block> burst(4'000);
  const std::size_t before = ::mallinfo2().uordblks;
  for (block& b : burst) b = make(1'024);
  for (const block& b : burst) frames::deallocate(b.memory, b.size);
  const std::size_t kept_bytes_max = std::size_t{1'100} * 1'024;
  CHECK(::mallinfo2().uordblks < before + kept_bytes_max);
}

TEST_CASE("a size that was needed once does not keep others from being recycled", "[frames]") {
  if (!recycles) return;
  std::vector<block> blocks;
  blocks.reserve(4'000);
  // More than malloc keeps of a size without counting it as free.
  const auto make_and_free = [&blocks](std::size_t size, int count) {
    for (int i = 0; i < count; ++i) blocks.push_back(make(size));
    free_all(blocks);
  };
  make_and_free(200, 1);
  make_and_free(1'024, 4'000);
  make_and_free(200, 1'000);
  const std::size_t before = ::mallinfo2().uordblks;
  for (int i = 0; i < 1'000; ++i) blocks.push_back(make(200));
  CHECK(::mallinfo2().uordblks == before);
  free_all(blocks);
}

TEST_CASE("frames of all sizes are recycled beside each other", "[frames]") {
  if (!recycles) return;
  std::thread([] {
    std::vector<void*> first;
    for (int round = 0; round < 2; ++round) {
      for (std::size_t size = 8; size <= 2'040; size += 16) {
        const block b = make(size);
        frames::deallocate(b.memory, b.size);
        if (round == 0)
          first.push_back(b.memory);
        else
          CHECK(b.memory == first[size / 16]);
      }
    }
  }).join();
}

TEST_CASE("a frame may be freed on another thread than the one that made it", "[frames]") {
  std::ptrdiff_t maker = 0;
  std::ptrdiff_t taker = 0;
  std::thread([&] {
    const block travels = make(300);
    std::thread([&] {
      frames::deallocate(travels.memory, travels.size);
      taker = frames::live();
    }).join();
    maker = frames::live();
  }).join();
  CHECK(maker == 1);  // each thread counts for itself
  CHECK(taker == -1);
}

TEST_CASE("a frame that outlives the lists of its thread is freed all the same", "[frames]") {
  struct late {
    late() = default;
    late(const late&) = delete;
    late& operator=(const late&) = delete;
    ~late() {
      if (memory != nullptr) frames::deallocate(memory, 100);
    }
    void* memory = nullptr;
  };
  std::thread([] {
    static thread_local late
        destroyed_last;  // made first, so destroyed after the lists have been given back
    destroyed_last.memory = frames::allocate(100);
    const block b = make(100);
    frames::deallocate(b.memory, b.size);
  }).join();
}

TEST_CASE("a framed class is allocated with the size that it has", "[frames]") {
  struct base : coax::detail::framed {
    base() = default;
    base(const base&) = delete;
    base& operator=(const base&) = delete;
    virtual ~base() = default;
  };
  struct derived final : base {
    std::byte bytes[500]{};
  };
  const std::ptrdiff_t before = frames::live();
  base* b = new derived;
  CHECK(frames::live() == before + 1);
  delete b;  // with the size of `derived`, or its memory would serve a list of smaller ones
  CHECK(frames::live() == before);
  std::vector<block> small;
  for (int i = 0; i < 20; ++i) small.push_back(make(sizeof(base)));
  free_all(small);
}
