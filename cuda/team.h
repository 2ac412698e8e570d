// Cooperation of the threads that sweep: a whole block, or the one warp that some blocks have,
// which needs no barriers.
#pragma once

#include "device.h"

namespace jax_rnnt::cuda {

template <bool kOneWarp>
__device__ __forceinline__ int team_size() {
  return kOneWarp ? kWarp : int(blockDim.x);
}

template <bool kOneWarp>
__device__ __forceinline__ void synchronise() {
  if constexpr (kOneWarp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// Combines a value of each thread in a fixed order; all of them get the result. Each `OfWarp` has
// its own memory, written again only after another barrier.
template <bool kOneWarp, class T, class OfWarp>
__device__ __forceinline__ T reduce_team(T value, T identity, OfWarp of_warp) {
  value = of_warp(value);
  if constexpr (!kOneWarp) {
    __shared__ T of_warps[kWarp];
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    if (lane == 0) of_warps[warp] = value;
    __syncthreads();
    value = of_warp(lane < int(blockDim.x) / kWarp ? of_warps[lane] : identity);
  }
  return value;
}

__device__ __forceinline__ int32_t largest_of_warp(int32_t value) {
#if defined(CUDA_EMULATION) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  return reduce_group<kWarp>(value, [](int32_t x, int32_t y) { return larger(x, y); });
#endif
}
__device__ __forceinline__ int64_t largest_of_warp(int64_t value) {
  return reduce_group<kWarp>(value, [](int64_t x, int64_t y) { return larger(x, y); });
}

}  // namespace jax_rnnt::cuda
