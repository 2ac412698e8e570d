// Tiles of fronts: arcs copied from rows of frames (as the planes store them) to rows of fronts (as
// a sweep reads them) ahead of their use, and posteriors copied back.
#pragma once

#include <cuda_pipeline.h>

#include "extended.h"
#include "lattice_layout.h"
#include "trellis.h"

namespace jax_rnnt::cuda {

// The two arcs by which a sweep reaches a slot of the next front, or their posteriors. Backward,
// both are of that slot's own cell; forward, the label arc is of the slot before.
template <class T>
struct alignas(2 * sizeof(T)) Arcs {
  T blank, label;
};

template <class T>
struct Tile {
  Arcs<T>* arcs;         // element (front n0, slot 0)
  Extended<T>* partner;  // the nodes that the other direction has stored
  int stride;
};

template <class T>
__device__ __forceinline__ Tile<T> tile_at(T* memory, const SweepLayout& layout, int which) {
  T* base = memory + layout.tiles + which * layout.tile_elements;
  T* behind = base + 2 * layout.stride * layout.fronts;
  return {reinterpret_cast<Arcs<T>*>(base), reinterpret_cast<Extended<T>*>(behind),
          int(layout.stride)};
}

// Which elements of a wound tile, whose rows lie end to end, a thread has.
struct Winding {
  int slots, first, step;  // slots of the first element, and on to the next

  __device__ __forceinline__ explicit Winding(int slots)
      : slots(slots), first(int(threadIdx.x) % slots), step(int(blockDim.x) % slots) {}

  // Calls body(i, u) for every element i of `count` rows, u being its slot.
  template <class Body>
  __device__ __forceinline__ void for_each(int count, Body body) const {
    int u = first;
    for (int i = int(threadIdx.x); i < count * slots; i += int(blockDim.x)) {
      body(i, u);
      u += step;
      if (u >= slots) u -= slots;
    }
  }
};

// Calls body(i, cell, u) for every cell (t, u) of the fronts n0 + k, 0 <= k < count, where
// i = k * stride + u and `cell` is its place in a plane; spread over the block such that
// neighbouring threads have neighbouring cells of a frame. `capacity`, a power of two that divides
// the block, is no less than count.
template <class T, class Body>
__device__ __forceinline__ void for_each_cell(const Trellis<T>& trellis, int n0, int count,
                                              int capacity, int stride, Body body) {
  if (trellis.regular) {
    const int shift = __ffs(capacity) - 1;
    const int k = int(threadIdx.x) & (capacity - 1), step = int(blockDim.x) >> shift;
    const int end = smaller(trellis.frames, n0 + count);
    int t = larger(n0 - trellis.labels, 0) + (int(threadIdx.x) >> shift);
    int u = n0 + k - t, i = k * stride + u;
    int64_t cell = t * trellis.plane_stride + u;
    const int64_t cells_of_step = step * (trellis.plane_stride - 1);
    if (k >= count) return;
    for (; t < end; t += step) {
      if (unsigned(u) <= unsigned(trellis.labels)) body(i, cell, u);
      u -= step;
      i -= step;
      cell += cells_of_step;
    }
  } else {
    for (int u = int(threadIdx.x); u <= trellis.labels; u += int(blockDim.x)) {
      int64_t cell = n0 * trellis.plane_stride + u;
      for (int k = 0; k < count; ++k, cell += trellis.plane_stride) body(k * stride + u, cell, u);
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

template <bool kForward, bool kShared, class T>
__device__ __forceinline__ void start_arcs(const Trellis<T>& trellis, int n0, int count,
                                           int capacity, const Tile<T>& tile, const Winding&) {
  for_each_cell(trellis, n0, count, capacity, tile.stride, [&](int i, int64_t cell, int) {
    start_copy<kShared>(&tile.arcs[i].blank, trellis.blank + cell);
    start_copy<kShared>(&tile.arcs[kForward ? i + 1 : i].label, trellis.label + cell);
  });
}

template <bool kForward, bool kShared, class T>
__device__ __forceinline__ void start_arcs(const Trellis<T, true>& trellis, int n0, int count, int,
                                           const Tile<T>& tile, const Winding& winding) {
  const int64_t first = n0 * trellis.plane_stride;
  winding.for_each(count, [&](int i, int u) {
    const int to = kForward ? i + trellis.slot_after(u) - u : i;
    start_copy<kShared>(&tile.arcs[i].blank, trellis.blank + first + i);
    start_copy<kShared>(&tile.arcs[to].label, trellis.label + first + i);
  });
}

// The rows of `count` fronts that the other direction has stored.
template <bool kShared, class T>
__device__ __forceinline__ void start_partner(const Extended<T>* rows, int64_t cells, int slots,
                                              int count, const Tile<T>& tile) {
  if (tile.stride == cells) {
    for (int i = int(threadIdx.x); i < count * slots; i += int(blockDim.x)) {
      start_copy<kShared>(tile.partner + i, rows + i);
    }
    return;
  }
  for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
    const Extended<T>* from = rows + u;
    for (int k = 0; k < count; ++k, from += cells) {
      start_copy<kShared>(tile.partner + k * tile.stride + u, from);
    }
  }
}

// Writes the tile, now posteriors, to the output planes.
template <bool kForward, class T>
__device__ __forceinline__ void drain_tile(const Trellis<T>& trellis, int n0, int count,
                                           int capacity, const Tile<T>& tile, const Winding&) {
  for_each_cell(trellis, n0, count, capacity, tile.stride, [&](int i, int64_t cell, int u) {
    T blank = tile.arcs[i].blank;
    // An occurrence of a constrained label arc is one of both its parts.
    if (trellis.constrained && u > 0) blank += tile.arcs[kForward ? i : i - 1].label;
    trellis.blank_out[cell] = blank;
    trellis.label_out[cell] = u == trellis.labels ? T(0) : tile.arcs[kForward ? i + 1 : i].label;
  });
}

template <bool kForward, class T>
__device__ __forceinline__ void drain_tile(const Trellis<T, true>& trellis, int n0, int count, int,
                                           const Tile<T>& tile, const Winding& winding) {
  const int64_t first = n0 * trellis.plane_stride;
  winding.for_each(count, [&](int i, int u) {
    trellis.blank_out[first + i] = tile.arcs[i].blank;
    trellis.label_out[first + i] = tile.arcs[kForward ? i + trellis.slot_after(u) - u : i].label;
  });
}

}  // namespace jax_rnnt::cuda
