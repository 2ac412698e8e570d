// What a device thread sees of itself, and the calls into the emulation's runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vector_types.h"

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
extern const int warpSize;

namespace emulation {

// Where device code calls a collective: shown when threads wait for each other in vain.
struct Site {
  const char* file = "";
  const char* function = "";
  int line = 0;

  // As a default argument this is the place of the call that the argument is left out of.
  static constexpr Site here(const char* file = __builtin_FILE(),
                             const char* function = __builtin_FUNCTION(),
                             int line = __builtin_LINE()) {
    return {file, function, line};
  }
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// The block's dynamic shared memory: exactly as long as the launch asked for, all bytes 0xFF when
// the block starts.
void* dynamic_shared();

// Prints what went wrong, the kernel, the block and what each of its threads does, then aborts.
[[noreturn, gnu::format(printf, 1, 2)]] void misuse(const char* format, ...);

enum class Op : uint8_t {
  kNone,
  kSyncthreads,
  kSyncthreadsOr,
  kSyncthreadsAnd,
  kSyncthreadsCount,
  kSyncwarp,
  kShuffle,
  kBallot,
  kAny,
  kAll,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
};

// Waits for the whole block. Returns the or, and, or count of the predicates; 0 without one.
int block_collective(Op op, int predicate, Site site);

// Waits for the lanes in the mask that have not exited. `source` is the lane whose operand a
// shuffle returns. Reductions take and return sign- or zero-extended integers.
uint64_t warp_collective(Op op, unsigned mask, uint64_t operand, int source, Site site);

// Between these, accesses are parts of atomic operations, which may race with each other.
void set_atomic(bool atomic);

// Lets the block's other threads run.
void yield();

int lane();  // of the calling thread

// Copies of `size` bytes, the last `zero_fill` of them zeros, that happen only when the thread
// waits for their group.
void copy_async(void* to, const void* from, size_t size, size_t zero_fill);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace emulation
