// Which arcs of a band complete paths take, found by one block for one utterance. Where bands move,
// cells at their edges cannot be reached, or cannot reach the end; whatever stands in those is
// padding.
#pragma once

#include "../cpp/kernels.h"
#include "device.h"

namespace jax_rnnt::cuda {

// Label positions [low, high]; empty if low > high.
struct Interval {
  int low, high;

  __device__ __forceinline__ bool empty() const { return low > high; }
  __device__ __forceinline__ bool contains(int u) const { return low <= u && u <= high; }
};

__device__ __forceinline__ Interval intersection(Interval x, Interval y) {
  return {larger(x.low, y.low), smaller(x.high, y.high)};
}

// Rows of one element a frame, in an utterance's workspace or in shared memory.
struct Corridor {
  int32_t* rows;
  int64_t frames;

  static constexpr int kRows = 6;
  __device__ __forceinline__ int32_t* row(int i) const { return rows + i * frames; }
  __device__ __forceinline__ Interval blank(int64_t t) const { return {row(0)[t], row(1)[t]}; }
  __device__ __forceinline__ Interval label(int64_t t) const { return {row(2)[t], row(3)[t]}; }
  __device__ __forceinline__ void set(int64_t t, Interval blank, Interval label) const {
    row(0)[t] = blank.low;
    row(1)[t] = blank.high;
    row(2)[t] = label.low;
    row(3)[t] = label.high;
  }
  // While the others are being found: the positions on complete paths.
  __device__ __forceinline__ Interval nodes(int64_t t) const { return {row(4)[t], row(5)[t]}; }
};

// Positions that no utterance has, with room for sums.
inline constexpr int kFar = 1 << 30;

__device__ __forceinline__ Interval band_of(const int32_t* starts, int64_t t, int64_t cells) {
  const int low = larger(smaller(int(starts[t]), kFar), -kFar);
  return {low, int(low + cells - 1)};
}

// What frames allow in one of them: those up to it, that no path is below `low`, nor above `rise`
// from the diagonal u = t with at most one label a frame; those from it on, that none is above
// `high`, nor below `fall` from the diagonal.
struct Limits {
  int low, rise;
  int high, fall;

  static __device__ __forceinline__ Limits none() {
    return {INT32_MIN, INT32_MAX, INT32_MAX, INT32_MIN};
  }
  __device__ __forceinline__ Limits with(const Limits& other) const {
    return {larger(low, other.low), smaller(rise, other.rise), smaller(high, other.high),
            larger(fall, other.fall)};
  }
  __device__ __forceinline__ Limits of_lane_below(int step) const {
    return {__shfl_up_sync(kAllLanes, low, step), __shfl_up_sync(kAllLanes, rise, step),
            __shfl_up_sync(kAllLanes, high, step), __shfl_up_sync(kAllLanes, fall, step)};
  }
};

// Fills the rows low, high, rise, fall with the limits of each frame, by the whole block. The scans
// of both directions are one: a thread has the i-th frame from the begin, and the i-th from the
// end.
__device__ __forceinline__ void find_limits(const Corridor& corridor, const int32_t* starts,
                                            int64_t cells, int frames) {
  __shared__ Limits of_warp[kWarp];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int warps = int(blockDim.x) / kWarp;
  Limits carry = Limits::none();
  for (int begin = 0; begin < frames; begin += int(blockDim.x)) {
    const int t = begin + int(threadIdx.x), from_end = frames - 1 - t;
    Limits limits = Limits::none();
    if (t < frames) {
      const Interval band = band_of(starts, t, cells), last = band_of(starts, from_end, cells);
      limits = {band.low, band.high - t, last.high, last.low - from_end};
    }
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const Limits below = limits.of_lane_below(step);
      if (lane >= step) limits = limits.with(below);
    }
    if (lane == kWarp - 1) of_warp[warp] = limits;
    __syncthreads();
    Limits before = carry;
    for (int w = 0; w < warps; ++w) {
      if (w == warp) before = carry;
      carry = carry.with(of_warp[w]);
    }
    limits = limits.with(before);
    if (t < frames) {
      corridor.row(0)[t] = limits.low;
      corridor.row(1)[from_end] = limits.high;
      corridor.row(2)[t] = limits.rise;
      corridor.row(3)[from_end] = limits.fall;
    }
    __syncthreads();
  }
}

// Fills the corridor of an utterance with frames; t = 0 is its first one. False, for all threads,
// if it has no path. With a final blank (which the regular topology has anyway) the last frame has
// no label arc.
//
// In a frame, the label positions that can be reached from the begin are an interval, and so are
// those from which the end can be reached; both are nonempty, and then exact, if every frame has an
// arc to the next in what they have in common.
__device__ __forceinline__ bool find_corridor(const Corridor& corridor, const Bounds& bounds,
                                              const int32_t* starts, int64_t cells,
                                              Topology topology, bool final_blank = false) {
  const bool regular = topology == Topology::kRegular;
  const bool constrained = topology == Topology::kConstrained;
  const int frames = bounds.frame_end - bounds.frame_begin;
  const int begin = bounds.label_begin, end = bounds.label_end;
  const int32_t *low = corridor.row(0), *high = corridor.row(1);
  const int32_t *rise = corridor.row(2), *fall = corridor.row(3);
  find_limits(corridor, starts, cells, frames);
#pragma unroll 1
  for (int t = int(threadIdx.x); t < frames; t += int(blockDim.x)) {
    Interval nodes = intersection({low[t], high[t]}, {begin, end});
    nodes = intersection(nodes, band_of(starts, t, cells));
    if (!regular) {
      int most = smaller(rise[t], begin);
      if (constrained && t > 0) most = smaller(most, rise[t - 1] - 1);
      nodes = intersection(nodes, {larger(fall[t], end - frames + final_blank) + t, most + t});
    }
    corridor.row(4)[t] = nodes.low;
    corridor.row(5)[t] = nodes.high;
  }
  __syncthreads();
  bool broken = !band_of(starts, 0, cells).contains(begin);
#pragma unroll 1
  for (int t = int(threadIdx.x); t < frames; t += int(blockDim.x)) {
    const Interval nodes = corridor.nodes(t);
    const Interval next = t + 1 < frames ? corridor.nodes(t + 1) : Interval{end, end};
    const Interval blank = intersection(nodes, next);
    Interval label{nodes.low, nodes.high - 1};
    if (!regular) label = intersection(nodes, {next.low - 1, next.high - 1});
    if (constrained) label.high = smaller(label.high, band_of(starts, t, cells).high - 1);
    broken = broken || (blank.empty() && (regular || label.empty()));
    corridor.set(t, blank, label);
  }
  return !__syncthreads_or(broken);
}

}  // namespace jax_rnnt::cuda
