// Looks for races: two accesses to a byte by different threads of a launch, one of them a write,
// that no barrier separates.
//
// In a block, __syncthreads separates all threads and __syncwarp those of a warp; shuffles and
// votes separate nothing, which is all that CUDA promises. Nothing separates the blocks of a
// launch. So it takes few accesses to know of every race: the last write, and of the reads since,
// which are all unseparated from some thread if they matter at all, two of this block, in different
// warps if there are such, and one of an earlier block.
//
// The compiler reports the accesses: device code is compiled as for ThreadSanitizer, whose runtime
// library races.cc stands in for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

namespace emulation {

#ifdef EMULATION_RACES
inline constexpr bool kLooksForRaces = true;
#else
inline constexpr bool kLooksForRaces = false;
#endif

// A thread between two barriers.
struct Actor {
  uint64_t known : 1 = 0;  // else nobody
  uint64_t atomic : 1 = 0;
  uint64_t thread : 10 = 0;
  uint64_t block : 14 = 0;  // modulo 2^14: of so many blocks, a race may go unseen
  uint64_t block_barriers : 20 = 0, warp_barriers : 18 = 0;

  bool is_in_block_of(Actor other) const { return block == other.block; }
  bool is_in_warp_of(Actor other) const { return thread / 32 == other.thread / 32; }
  // Of an earlier access, whether all that it did is done for `now`.
  bool is_before(Actor now) const;
};

enum class Access { kRead, kWrite };

class Races {
 public:
  using Range = std::pair<uintptr_t, uintptr_t>;  // begin and end of addresses

  void begin_launch(const void* kernel);
  // `dynamic_shared` belongs to one block after the other.
  void begin_block(uint64_t block, int threads, Range dynamic_shared);
  // From here on, accesses are those of this thread; what is on its stack is its own.
  void enter(int thread, Range stack);
  void leave_kernel();
  void block_barrier();
  void warp_barrier(int warp);

  void access(uintptr_t address, size_t size, Access access, const void* place);
  void set_atomic(bool atomic) { now_.atomic = atomic; }

 private:
  // What is known of a byte, or of four as long as they are accessed together.
  struct Unit {
    Actor write, read, other_read, earlier_block_read;
    uint32_t place_of_write, place_of_read;  // the lower half of a code address
  };
  static constexpr size_t kPage = 512, kWord = 4;
  struct Page {
    uint64_t era = 0;
    size_t unit = kWord;
    std::vector<Unit> units = {};

    void split_words();
  };

  Page& page_of(uintptr_t address);
  void read(Unit& unit, uintptr_t address, const void* place);
  void write(Unit& unit, uintptr_t address, const void* place);
  [[noreturn]] void report(const char* what, Actor other, uint32_t other_place, const char* did,
                           uintptr_t address, const void* place) const;
  bool is_shared(uintptr_t address) const;

  Actor now_;
  Range stack_{}, dynamic_shared_{}, static_shared_{};
  std::vector<unsigned> warp_barriers_;
  // Pages of other eras know nothing: each block has one for shared memory, each launch for global.
  uint64_t era_ = 0, global_era_ = 0, shared_era_ = 0;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  std::array<std::pair<uintptr_t, Page*>, 64> recent_{};
};

// An access of the running device thread, made by the code at `place`; of the host, nothing.
void look_at(const void* address, size_t size, Access access, const void* place);

}  // namespace emulation
