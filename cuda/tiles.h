// Tiles of fronts: arcs copied from rows of frames (as the planes store them) to rows of fronts (as
// a sweep reads them) ahead of their use, and posteriors copied back.
#pragma once

#include <cuda_pipeline.h>

#include "extended.h"
#include "lattice_layout.h"
#include "trellis.h"

namespace jax_rnnt::cuda {

template <class T>
struct Tile {
  T *blank, *label;      // element (front n0, u = 0)
  Extended<T>* partner;  // the nodes that the other direction has stored
  int64_t stride;
};

template <class T>
__device__ __forceinline__ Tile<T> tile_at(T* memory, const SweepLayout& layout, int which) {
  T* base = memory + layout.tiles + which * layout.tile_elements;
  const int64_t plane = layout.stride * layout.fronts;
  return {base, base + plane, reinterpret_cast<Extended<T>*>(base + 2 * plane), layout.stride};
}

// Calls body(k, t, u) for every cell (t, u) of the fronts n0 + k, 0 <= k < count, spread over the
// block such that neighbouring threads have neighbouring cells of a frame. `capacity`, a power of
// two, is no less than count.
template <class T, bool kWound, class Body>
__device__ __forceinline__ void for_each_cell(const Trellis<T, kWound>& trellis, int n0, int count,
                                              int capacity, Body body) {
  if (trellis.regular) {
    const int pieces = (trellis.labels + capacity) * capacity;
    const int shift = __ffs(capacity) - 1;
    for (int i = int(threadIdx.x); i < pieces; i += int(blockDim.x)) {
      const int k = i & (capacity - 1), piece = i >> shift;
      const int t = n0 - trellis.labels + piece, u = trellis.labels + k - piece;
      if (k < count && 0 <= t && t < trellis.frames && 0 <= u && u <= trellis.labels) body(k, t, u);
    }
  } else {
    for (int k = 0; k < count; ++k) {
      for (int u = int(threadIdx.x); u < trellis.slots; u += int(blockDim.x)) body(k, n0 + k, u);
    }
  }
}

// Starts a copy of one number, to be waited for with the others of its tile.
template <bool kShared, class Number>
__device__ __forceinline__ void start_copy(Number* to, const Number* from) {
  if constexpr (kShared) {
    __pipeline_memcpy_async(to, from, sizeof(Number));
  } else {
    *to = *from;
  }
}

template <bool kShared, class T, bool kWound>
__device__ __forceinline__ void start_tile(const Trellis<T, kWound>& trellis, int n0, int count,
                                           int capacity, const Tile<T>& tile) {
  for_each_cell(trellis, n0, count, capacity, [&](int k, int t, int u) {
    const int64_t cell = t * trellis.plane_stride + u, element = k * tile.stride + u;
    start_copy<kShared>(tile.blank + element, trellis.blank + cell);
    start_copy<kShared>(tile.label + element, trellis.label + cell);
  });
}

// A constrained label arc is l(t, u) + b(t, u + 1).
template <class T, bool kWound>
__device__ __forceinline__ void add_blank_to_labels(const Trellis<T, kWound>& trellis, int count,
                                                    const Tile<T>& tile) {
  for (int k = 0; k < count; ++k) {
    for (int u = int(threadIdx.x); u < trellis.labels; u += int(blockDim.x)) {
      tile.label[k * tile.stride + u] += tile.blank[k * tile.stride + u + 1];
    }
  }
}

// Writes the tile, now posteriors, to the output planes.
template <class T, bool kWound>
__device__ __forceinline__ void drain_tile(const Trellis<T, kWound>& trellis, int n0, int count,
                                           int capacity, const Tile<T>& tile) {
  for_each_cell(trellis, n0, count, capacity, [&](int k, int t, int u) {
    const int64_t cell = t * trellis.plane_stride + u, element = k * tile.stride + u;
    T blank = tile.blank[element];
    // An occurrence of a constrained label arc is one of both its parts.
    if (trellis.constrained && u > 0) blank += tile.label[element - 1];
    trellis.blank_out[cell] = blank;
    trellis.label_out[cell] = tile.label[element];
  });
}

}  // namespace jax_rnnt::cuda
