// The gradient of the additive joiner by `am`; see factored_backward.cu for what it is.
#pragma once

#include "factored_weights.h"

namespace jax_rnnt::cuda {

// The gradient by a tile of `am`: frames, classes.
template <class In>
struct FramesTile {
  using T = Accumulator<In>;
  using Tile = ProductTile<T>;
  using Term = typename FactoredUtterance<In>::Term;
  static constexpr int kLaneColumns = Tile::kLaneColumns, kFramesOfWarp = Tile::kRowsOfWarp;
  static constexpr int kFramesAtOnce = 4;

  // Label positions whose label is one of the tile's classes.
  struct Labels {
    int count_of_warp[Tile::kWarps];
    int position[Tile::kThreads], column[Tile::kThreads];
  };

  const FactoredUtterance<In>& of;
  const TilePlace& place;
  typename Tile::Memory& memory;
  Labels& labels;

  __device__ __forceinline__ static int warp() { return threadIdx.x / kWarp; }
  __device__ __forceinline__ static int lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ T arcs_share() const { return of.joint_share() + of.am_share(); }
  __device__ __forceinline__ T use(int t) const {
    return t < of.p.frames ? of.workspace[of.layout.use_of_frame + t] : T(kUnused);
  }

  __device__ __forceinline__ void run() {
    if (any_frame_of(kSoftmax)) {
      const int frames = int(of.p.frames), cells = int(of.p.cells);
      const Plane<T> factors{of.workspace + of.layout.factors, frames, cells, of.layout.width};
      const auto lm = of.exponentials(of.lm, of.layout.shift_of_position, 0, cells);
      multiply<T>(cells, Stage<Tile::kRows, true, Plane<T>>(factors, place.row),
                  Stage<Tile::kColumns, false, Exponentials<In>>(lm, place.column), memory);
    }
#pragma unroll 1
    for (int i = 0; i < kFramesOfWarp; i += kFramesAtOnce) add_am(warp() * kFramesOfWarp + i);
    __syncwarp();
    if (any_frame_of(kArcsOnly)) subtract_labels();
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < kFramesOfWarp; i += kFramesAtOnce) write(warp() * kFramesOfWarp + i);
  }

  // Whether the tile has a frame with weights for as much. All threads call it.
  __device__ __forceinline__ bool any_frame_of(int least_use) const {
    const bool is_row = int(threadIdx.x) < Tile::kRows;
    return __syncthreads_or(is_row && use(place.row + int(threadIdx.x)) >= T(least_use)) != 0;
  }

  // Makes expected counts of the sums of some rows.
  __device__ __forceinline__ void add_am(int first) {
    In scores[kFramesAtOnce][kLaneColumns];
    T uses[kFramesAtOnce], tops[kFramesAtOnce], averages[kLaneColumns];
    Term of_average[kFramesAtOnce];
    const bool smoothed = of.p.smoothing.used();
    const int excluded = excluded_class(of.p);
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const int v = place.column + c * kWarp + lane();
      averages[c] = smoothed && v < of.p.classes ? of.average[v] : T(0);
    }
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
      const int t = place.row + first + k;
      uses[k] = use(t);
      tops[k] = 0;
      of_average[k] = {T(0), T(0)};
      if (uses[k] >= T(kSoftmax)) {
        tops[k] = of.am_top[t];
        if (smoothed) of_average[k] = of.term_of_average(t);
      }
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const int v = place.column + c * kWarp + lane();
        narrow(-Constants<T>::kInfinity, scores[k][c]);
        if (uses[k] >= T(kSoftmax) && v < of.p.classes && v != excluded) {
          scores[k][c] = of.am[t * of.p.classes + v];
        }
      }
    }
    bool any_inexact = false;
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        T& element = memory.sums[first + k][c * kWarp + lane()];
        const T score = widen(scores[k][c]) - tops[k];
        T counts = 0;
        if (uses[k] >= T(kSoftmax)) counts = element * exp_nonpositive(score);
        if (of_average[k].weight != 0) {
          counts +=
              of_average[k].weight * exp_nonpositive((score + averages[c]) - of_average[k].log);
        }
        element = counts;
      }
      any_inexact |= uses[k] == T(kInexact);
    }
    if (any_inexact) add_inexact_cells(first);
  }

  // What those cells of these rows have that have no factor. The lanes look for them together, then
  // add what each one has to their columns.
  __device__ __forceinline__ void add_inexact_cells(int first) {
    const T log_smallest = of.log_smallest();
    const int excluded = excluded_class(of.p);
#pragma unroll 1
    for (int row = first; row < first + kFramesAtOnce; ++row) {
      const int t = place.row + row;
      if (use(t) != T(kInexact)) continue;
#pragma unroll 1
      for (int begin = 0; begin < of.p.cells; begin += kWarp) {
        Term of_lane{T(0), T(0)};
        if (begin + lane() < of.p.cells) of_lane = of.term_of_cell(t, begin + lane());
        unsigned inexact = __ballot_sync(kAllLanes, of_lane.inexact(log_smallest));
#pragma unroll 1
        while (inexact != 0) {
          const int owner = __ffs(int(inexact)) - 1;
          inexact &= inexact - 1;
          const T weight = __shfl_sync(kAllLanes, of_lane.weight, owner);
          const T log = __shfl_sync(kAllLanes, of_lane.log, owner);
          const T lm_top = of.lm_top[begin + owner];
          const In* lm = of.lm + (begin + owner) * of.p.classes;
          for (int column = lane(); column < Tile::kColumns; column += kWarp) {
            const int v = place.column + column;
            if (v >= of.p.classes || v == excluded) continue;
            const T am = widen(of.am[t * of.p.classes + v]) - of.am_top[t];
            const T score = am + (widen(lm[v]) - lm_top);
            memory.sums[row][column] += weight * exp_nonpositive(score - log);
          }
        }
      }
    }
  }

  // A lane for each of the warp's rows, since positions may have a label in common: one after
  // another, but loaded together.
  __device__ __forceinline__ void subtract_labels() {
    constexpr int kAtOnce = 8;
    const int row = warp() * kFramesOfWarp + lane(), t = place.row + row;
    const bool is_row = lane() < kFramesOfWarp && use(t) != T(kUnused);
    const int num_labels = int(of.p.cells) - 1;
    const T* weights = of.label + int64_t(t) * of.p.cells;
    for (int begin = 0; begin < num_labels; begin += Tile::kThreads) {
      const int count = find_labels(begin, num_labels);
      for (int i = 0; i < count && is_row; i += kAtOnce) {
        T weight[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          weight[k] = i + k < count ? weights[labels.position[i + k]] : T(0);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (i + k < count) memory.sums[row][labels.column[i + k]] -= arcs_share() * weight[k];
        }
      }
    }
  }

  // Collects them from position `begin` on, in order, for as many positions as there are threads.
  __device__ __forceinline__ int find_labels(int begin, int num_labels) {
    const int u = begin + int(threadIdx.x);
    const int column = u < num_labels ? clipped_label(of.p, of.b, u) - place.column : -1;
    const bool here = 0 <= column && column < Tile::kColumns;
    const unsigned in_warp = __ballot_sync(kAllLanes, here);
    __syncthreads();  // the last ones have been read
    if (lane() == 0) labels.count_of_warp[warp()] = __popc(in_warp);
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < Tile::kWarps; ++w) {
      if (w < warp()) before += labels.count_of_warp[w];
      all += labels.count_of_warp[w];
    }
    if (here) {
      const int to = before + __popc(in_warp & ((1u << lane()) - 1));
      labels.position[to] = u;
      labels.column[to] = column;
    }
    __syncthreads();
    return all;
  }

  __device__ __forceinline__ void write(int first) const {
    const T cotangent = of.cotangent();
    T blanks[kFramesAtOnce];
    bool used[kFramesAtOnce];
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
      const int t = place.row + first + k;
      used[k] = use(t) != T(kUnused);
      blanks[k] = used[k] ? arcs_share() * of.workspace[of.layout.blank_of_frame + t] : T(0);
    }
#pragma unroll
    for (int k = 0; k < kFramesAtOnce; ++k) {
      const int t = place.row + first + k;
      if (t >= of.p.frames) return;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const int v = place.column + c * kWarp + lane();
        if (v >= of.p.classes) continue;
        T counts = memory.sums[first + k][c * kWarp + lane()];
        if (v == of.p.blank_id) counts += blanks[k];
        In* to = static_cast<In*>(of.p.am_gradient) + (of.b * of.p.frames + t) * of.p.classes + v;
        narrow(used[k] ? cotangent * counts : T(0), *to);
      }
    }
  }
};

template <class In>
__global__ void __launch_bounds__(ProductTile<Accumulator<In>>::kThreads,
                                  ProductTile<Accumulator<In>>::kBlocks)
    factored_am_kernel(const FactoredBackward p, const FactoredLayout layout, const int frame_tiles,
                       const int class_tiles) {
  using T = Accumulator<In>;
  __shared__ typename ProductTile<T>::Memory memory;
  __shared__ typename FramesTile<In>::Labels labels;
  const TilePlace place = TilePlace::of<T>(blockIdx.x, frame_tiles, class_tiles);
  const FactoredUtterance<In> of(p, layout, place.outer);
  FramesTile<In>{of, place, memory, labels}.run();
}

}  // namespace jax_rnnt::cuda
