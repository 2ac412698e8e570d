// The shape of the launches that sweep.
#pragma once

#include <algorithm>

#include "launch.h"
#include "sweep.h"

namespace jax_rnnt::cuda {

// Doubles and generic addresses take more registers. Tiles in the workspace are slow in any case.
template <class T, bool kShared>
inline constexpr int kMostSweepThreads = sizeof(T) == 4 && kShared ? 1024 : 512;

// The largest tile that fits; none, where even the smallest does not.
template <class T>
cudaError_t choose_sweep_layout(int64_t cells, bool with_posteriors, SweepLayout& layout,
                                bool& shared) {
  int device = 0, most_bytes = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (status != cudaSuccess) return status;
  for (int fronts = kMostTileFronts; fronts >= kFewestTileFronts; fronts /= 2) {
    layout = sweep_layout(cells, fronts, with_posteriors);
    shared = layout.total * int64_t(sizeof(T)) + kStaticSharedBytes <= most_bytes;
    if (shared) return cudaSuccess;
  }
  layout = sweep_layout(cells, kMostTileFronts, with_posteriors);
  return cudaSuccess;
}

template <class T, bool kShared>
Grid sweep_grid(int64_t batch, int64_t cells, const SweepLayout& layout) {
  const int64_t threads = std::min<int64_t>(round_up(cells, kWarp), kMostSweepThreads<T, kShared>);
  return {2 * batch, int(threads), kShared ? layout.total * int64_t(sizeof(T)) : 0};
}

}  // namespace jax_rnnt::cuda
