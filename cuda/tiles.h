// Tiles of fronts: arcs copied from rows of frames (as the planes store them) to rows of fronts (as
// a sweep reads them) ahead of their use, and posteriors copied back.
#pragma once

#include <cuda_pipeline.h>

#include "extended.h"
#include "lattice_layout.h"
#include "team.h"
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

  __device__ __forceinline__ Tile from(int k) const {
    return {arcs + k * stride, partner + k * stride, stride};
  }
};

template <class T>
__device__ __forceinline__ Tile<T> tile_at(T* memory, const SweepLayout& layout, int which) {
  T* base = memory + layout.tiles + which * layout.tile_elements;
  T* behind = base + 2 * layout.stride * layout.fronts;
  return {reinterpret_cast<Arcs<T>*>(base), reinterpret_cast<Extended<T>*>(behind),
          int(layout.stride)};
}

// Which elements of a wound tile, whose rows lie end to end, a thread has.
template <bool kOneWarp>
struct Winding {
  int slots, first, step;  // slots of the first element, and on to the next

  __device__ __forceinline__ explicit Winding(int slots)
      : slots(slots), first(int(threadIdx.x) % slots), step(team_size<kOneWarp>() % slots) {}

  // Calls body(i, u) for every element i of `count` rows, u being its slot.
  template <class Body>
  __device__ __forceinline__ void for_each(int count, Body body) const {
    int u = first;
#pragma unroll 2
    for (int i = int(threadIdx.x); i < count * slots; i += team_size<kOneWarp>()) {
      body(i, u);
      u += step;
      if (u >= slots) u -= slots;
    }
  }
};

// Calls body(i, blank, label, u) for every cell (t, u) of the fronts n0 + k, 0 <= k < count, where
// i = k * stride + u, and `blank` and `label` point to what is at the cell in planes that have
// those of cell (0, 0) at the given ones; spread over the block such that neighbouring threads have
// neighbouring cells of a frame. `capacity`, a power of two that divides the block, is no less than
// count.
template <class T, class Pointer, class Body>
__device__ __forceinline__ void for_each_cell(const Trellis<T>& trellis, int n0, int count,
                                              int capacity, int stride, Pointer blank,
                                              Pointer label, Body body) {
  if (trellis.regular) {
    const int shift = __ffs(capacity) - 1;
    const int k = int(threadIdx.x) & (capacity - 1), step = int(blockDim.x) >> shift;
    if (k >= count) return;
    const int t = larger(n0 - trellis.labels, 0) + (int(threadIdx.x) >> shift);
    int u = n0 + k - t, i = k * stride + u;
    const int end = n0 + k - smaller(trellis.frames, n0 + count);  // of u
    const int64_t cell = t * trellis.plane_stride + u;
    const int64_t cells_of_step = step * (trellis.plane_stride - 1);
    blank += cell;
    label += cell;
#pragma unroll 1
    for (; u > end; u -= step) {
      if (unsigned(u) <= unsigned(trellis.labels)) body(i, blank, label, u);
      i -= step;
      blank += cells_of_step;
      label += cells_of_step;
    }
  } else {
    const int64_t first = n0 * trellis.plane_stride;
#pragma unroll 1
    for (int u = int(threadIdx.x); u <= trellis.labels; u += int(blockDim.x)) {
      int64_t cell = first + u;
#pragma unroll 2
      for (int k = 0; k < count; ++k, cell += trellis.plane_stride) {
        body(k * stride + u, blank + cell, label + cell, u);
      }
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

template <bool kForward, bool kShared, bool kOneWarp, class T>
__device__ __forceinline__ void start_arcs(const Trellis<T>& trellis, int n0, int count,
                                           int capacity, const Tile<T>& tile,
                                           const Winding<kOneWarp>&) {
  for_each_cell(trellis, n0, count, capacity, tile.stride, trellis.blank, trellis.label,
                [&](int i, const T* blank, const T* label, int) {
                  start_copy<kShared>(&tile.arcs[i].blank, blank);
                  start_copy<kShared>(&tile.arcs[kForward ? i + 1 : i].label, label);
                });
}

template <bool kForward, bool kShared, bool kOneWarp, class T>
__device__ __forceinline__ void start_arcs(const Trellis<T, true>& trellis, int n0, int count, int,
                                           const Tile<T>& tile, const Winding<kOneWarp>& winding) {
  const T* blank = trellis.blank + n0 * trellis.plane_stride;
  const T* label = trellis.label + n0 * trellis.plane_stride;
  winding.for_each(count, [&](int i, int u) {
    const int to = kForward ? i + trellis.slot_after(u) - u : i;
    start_copy<kShared>(&tile.arcs[i].blank, blank + i);
    start_copy<kShared>(&tile.arcs[to].label, label + i);
  });
}

// The rows of `count` fronts that the other direction has stored.
template <bool kWound, bool kShared, bool kOneWarp, class T>
__device__ __forceinline__ void start_partner(const Extended<T>* rows, int64_t cells, int slots,
                                              int count, const Tile<T>& tile,
                                              const Winding<kOneWarp>& winding) {
  if constexpr (kWound) {
    winding.for_each(count, [&](int i, int) { start_copy<kShared>(tile.partner + i, rows + i); });
  } else {
#pragma unroll 1
    for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
      const Extended<T>* from = rows + u;
#pragma unroll 4
      for (int k = 0; k < count; ++k, from += cells) {
        start_copy<kShared>(tile.partner + k * tile.stride + u, from);
      }
    }
  }
}

// An occurrence of a constrained label arc is one of both its parts.
template <bool kForward, class T>
__device__ __forceinline__ void add_labels_to_blanks(const Trellis<T>& trellis, int count,
                                                     const Tile<T>& tile) {
  for (int k = 0; k < count; ++k) {
    Arcs<T>* arcs = tile.arcs + k * tile.stride;
    for (int u = 1 + int(threadIdx.x); u <= trellis.labels; u += int(blockDim.x)) {
      arcs[u].blank += arcs[kForward ? u : u - 1].label;
    }
  }
  __syncthreads();
}

// Writes the tile, now posteriors, to the output planes.
template <bool kForward, bool kOneWarp, class T>
__device__ __forceinline__ void drain_tile(const Trellis<T>& trellis, int n0, int count,
                                           int capacity, const Tile<T>& tile,
                                           const Winding<kOneWarp>&) {
  if (trellis.constrained) add_labels_to_blanks<kForward>(trellis, count, tile);
  for_each_cell(trellis, n0, count, capacity, tile.stride, trellis.blank_out, trellis.label_out,
                [&](int i, T* blank_out, T* label_out, int u) {
                  const T blank = tile.arcs[i].blank;
                  const T label = tile.arcs[kForward ? i + 1 : i].label;
                  __stwb(blank_out, blank);
                  __stwb(label_out, u == trellis.labels ? T(0) : label);
                });
}

template <bool kForward, bool kOneWarp, class T>
__device__ __forceinline__ void drain_tile(const Trellis<T, true>& trellis, int n0, int count, int,
                                           const Tile<T>& tile, const Winding<kOneWarp>& winding) {
  T* blank = trellis.blank_out + n0 * trellis.plane_stride;
  T* label = trellis.label_out + n0 * trellis.plane_stride;
  winding.for_each(count, [&](int i, int u) {
    const T of_blank = tile.arcs[i].blank;
    const T of_label = tile.arcs[kForward ? i + trellis.slot_after(u) - u : i].label;
    __stwb(blank + i, of_blank);
    __stwb(label + i, of_label);
  });
}

}  // namespace jax_rnnt::cuda
