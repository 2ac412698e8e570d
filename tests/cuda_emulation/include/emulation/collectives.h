// Barriers, votes, shuffles and reductions. All threads that take part must call from the same
// place in the source, which is stricter than the hardware.
#pragma once

#include <type_traits>

#include "thread.h"

inline void __syncthreads(emulation::Site site = emulation::Site::here()) {
  emulation::block_collective(emulation::Op::kSyncthreads, 0, site);
}
inline int __syncthreads_or(int predicate, emulation::Site site = emulation::Site::here()) {
  return emulation::block_collective(emulation::Op::kSyncthreadsOr, predicate, site);
}
inline int __syncthreads_and(int predicate, emulation::Site site = emulation::Site::here()) {
  return emulation::block_collective(emulation::Op::kSyncthreadsAnd, predicate, site);
}
inline int __syncthreads_count(int predicate, emulation::Site site = emulation::Site::here()) {
  return emulation::block_collective(emulation::Op::kSyncthreadsCount, predicate, site);
}

inline void __syncwarp(unsigned mask = ~0u, emulation::Site site = emulation::Site::here()) {
  emulation::warp_collective(emulation::Op::kSyncwarp, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulation::Site site = emulation::Site::here()) {
  return emulation::warp_collective(emulation::Op::kBallot, mask, predicate != 0, 0, site);
}
inline int __any_sync(unsigned mask, int predicate,
                      emulation::Site site = emulation::Site::here()) {
  return emulation::warp_collective(emulation::Op::kAny, mask, predicate != 0, 0, site);
}
inline int __all_sync(unsigned mask, int predicate,
                      emulation::Site site = emulation::Site::here()) {
  return emulation::warp_collective(emulation::Op::kAll, mask, predicate != 0, 0, site);
}

// Threads that happen to run together are a matter of luck; only the caller itself is certain.
inline unsigned __activemask() { return 1u << emulation::lane(); }

namespace emulation {

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 32- and 64-bit numbers");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(Op::kShuffle, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// First lane of the calling lane's segment.
inline int segment_begin(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    misuse("shuffle with width %d, which is not a power of two up to 32", width);
  }
  return lane() & ~(width - 1);
}

template <class T>
T reduce(Op op, unsigned mask, T value, Site site) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>,
                "CUDA reduces int and unsigned");
  return static_cast<T>(warp_collective(op, mask, static_cast<int64_t>(value), 0, site));
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emulation::Site site = emulation::Site::here()) {
  const int lane = emulation::segment_begin(width) + (source & (width - 1));
  return emulation::shuffle(mask, value, lane, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulation::Site site = emulation::Site::here()) {
  const int lane = emulation::lane();
  const bool inside = delta <= unsigned(lane - emulation::segment_begin(width));
  return emulation::shuffle(mask, value, inside ? lane - int(delta) : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulation::Site site = emulation::Site::here()) {
  const int lane = emulation::lane();
  const int end = emulation::segment_begin(width) + width;
  const bool inside = delta < unsigned(end - lane);
  return emulation::shuffle(mask, value, inside ? lane + int(delta) : lane, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  emulation::Site site = emulation::Site::here()) {
  // Earlier segments can be read, later ones cannot.
  const int lane = emulation::lane(), other = lane ^ lane_mask;
  const bool inside = 0 <= other && other < emulation::segment_begin(width) + width;
  return emulation::shuffle(mask, value, inside ? other : lane, site);
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, emulation::Site site = emulation::Site::here()) {
  return emulation::reduce(emulation::Op::kReduceAdd, mask, value, site);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, emulation::Site site = emulation::Site::here()) {
  return emulation::reduce(emulation::Op::kReduceMin, mask, value, site);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, emulation::Site site = emulation::Site::here()) {
  return emulation::reduce(emulation::Op::kReduceMax, mask, value, site);
}

inline void __nanosleep(unsigned) { emulation::yield(); }
