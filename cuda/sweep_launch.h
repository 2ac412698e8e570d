// The shape of the launches that sweep.
#pragma once

#include <algorithm>

#include "launch.h"
#include "sweep.h"

namespace jax_rnnt::cuda {

// Doubles and generic addresses take more registers. Tiles in the workspace are slow in any case.
template <class T, Plan kPlan>
inline constexpr int kMostSweepThreads = kPlan == Plan::kWarp                          ? kWarp
                                         : sizeof(T) == 4 && kPlan != Plan::kWorkspace ? 1024
                                                                                       : 512;

// Of one multiprocessor, on any device.
inline constexpr int64_t kMostBlocksAtOnce = 32;

struct SweepShape {
  Plan plan;
  SweepLayout layout;
};

template <class T>
Plan sweep_plan(int64_t cells, bool wound) {
  if (wound) return cells <= kWarp ? Plan::kWarp : Plan::kStrips;
  return cells <= kMostSweepThreads<T, Plan::kSlots> ? Plan::kSlots : Plan::kStrips;
}

// The largest tile with which all blocks run at once, or as many of them as tiles that are not much
// smaller allow; in the workspace, where even the smallest does not fit.
template <class T>
cudaError_t choose_sweep(int64_t batch, int64_t cells, bool with_posteriors, bool wound,
                         SweepShape& shape) {
  int64_t most_bytes = 0;
  int device = 0, bytes_of_all = 0, multiprocessors = 0, reserved = 0;
  cudaError_t status = most_shared_bytes(most_bytes);
  if (status == cudaSuccess) status = cudaGetDevice(&device);
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, device);
  };
  get(bytes_of_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  get(multiprocessors, cudaDevAttrMultiProcessorCount);
  get(reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  if (status != cudaSuccess) return status;
  shape.plan = sweep_plan<T>(cells, wound);
  const int most_fronts = shape.plan == Plan::kWarp ? kMostTileFronts : kMostStretchFronts;
  const bool with_factors = shape.plan != Plan::kSlots;
  const int64_t blocks = (2 * batch + multiprocessors - 1) / multiprocessors;
  for (int64_t at_once = std::min<int64_t>(blocks, kMostBlocksAtOnce); at_once > 0; --at_once) {
    const int64_t share = bytes_of_all / at_once - reserved - kStaticSharedBytes;
    const int64_t bytes = std::min(most_bytes, share);
    const int fewest_fronts = at_once > 1 ? kMostStretchFronts / 2 : kFewestTileFronts;
    for (int fronts = most_fronts; fronts >= fewest_fronts; fronts /= 2) {
      shape.layout = sweep_layout(cells, fronts, with_posteriors, with_factors, wound);
      if (shape.layout.total * int64_t(sizeof(T)) <= bytes) return status;
    }
  }
  shape.plan = Plan::kWorkspace;
  shape.layout = sweep_layout(cells, kMostStretchFronts, with_posteriors, true, wound);
  return status;
}

template <class T, Plan kPlan>
Grid sweep_grid(int64_t batch, int64_t cells, const SweepLayout& layout) {
  const int64_t threads = std::min<int64_t>(round_up(cells, kWarp), kMostSweepThreads<T, kPlan>);
  const bool shared = kPlan != Plan::kWorkspace;
  return {2 * batch, int(threads), shared ? layout.total * int64_t(sizeof(T)) : 0};
}

}  // namespace jax_rnnt::cuda
