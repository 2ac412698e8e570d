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

// Rows of one element a frame, in an utterance's workspace.
struct Corridor {
  int32_t* rows;
  int64_t frames;

  static constexpr int kRows = 6;
  __device__ __forceinline__ int32_t* row(int i) const { return rows + i * frames; }
  __device__ __forceinline__ Interval blank(int64_t t) const { return {row(0)[t], row(1)[t]}; }
  __device__ __forceinline__ Interval label(int64_t t) const { return {row(2)[t], row(3)[t]}; }
  // While the others are being found: the positions on complete paths.
  __device__ __forceinline__ Interval nodes(int64_t t) const { return {row(4)[t], row(5)[t]}; }
};

// Positions that no utterance has, with room for sums.
inline constexpr int kFar = 1 << 30;

__device__ __forceinline__ Interval band_of(const int32_t* starts, int64_t t, int64_t cells) {
  const int low = larger(smaller(int(starts[t]), kFar), -kFar);
  return {low, int(low + cells - 1)};
}

// Each element combined with all before it (kReverse: after it), in place, by the whole block.
template <bool kReverse, class Combine>
__device__ __forceinline__ void scan(int32_t* row, int count, int identity, Combine combine) {
  __shared__ int of_warp[kWarp];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int warps = int(blockDim.x) / kWarp;
  int carry = identity;
  for (int begin = 0; begin < count; begin += int(blockDim.x)) {
    const int i = begin + int(threadIdx.x), place = kReverse ? count - 1 - i : i;
    int value = i < count ? row[place] : identity;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int below = __shfl_up_sync(kAllLanes, value, step);
      if (lane >= step) value = combine(value, below);
    }
    if (lane == kWarp - 1) of_warp[warp] = value;
    __syncthreads();
    for (int w = 0; w < warp; ++w) value = combine(value, of_warp[w]);
    value = combine(value, carry);
    for (int w = 0; w < warps; ++w) carry = combine(carry, of_warp[w]);
    if (i < count) row[place] = value;
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
  const auto min_of = [](int x, int y) { return smaller(x, y); };
  const auto max_of = [](int x, int y) { return larger(x, y); };
  int32_t *low = corridor.row(0), *high = corridor.row(1);
  // How far above and below the diagonal u = t a path may get, with at most one label a frame.
  int32_t *rise = corridor.row(2), *fall = corridor.row(3);
  for (int t = int(threadIdx.x); t < frames; t += int(blockDim.x)) {
    const Interval band = band_of(starts, t, cells);
    low[t] = band.low;
    high[t] = band.high;
    rise[t] = band.high - t;
    fall[t] = band.low - t;
  }
  __syncthreads();
  scan<false>(low, frames, INT32_MIN, max_of);
  scan<true>(high, frames, INT32_MAX, min_of);
  if (!regular) {
    scan<false>(rise, frames, INT32_MAX, min_of);
    scan<true>(fall, frames, INT32_MIN, max_of);
  }
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
  for (int t = int(threadIdx.x); t < frames; t += int(blockDim.x)) {
    const Interval nodes = corridor.nodes(t);
    const Interval next = t + 1 < frames ? corridor.nodes(t + 1) : Interval{end, end};
    const Interval blank = intersection(nodes, next);
    Interval label{nodes.low, nodes.high - 1};
    if (!regular) label = intersection(nodes, {next.low - 1, next.high - 1});
    if (constrained) label.high = smaller(label.high, band_of(starts, t, cells).high - 1);
    broken = broken || (blank.empty() && (regular || label.empty()));
    low[t] = blank.low;
    high[t] = blank.high;
    rise[t] = label.low;
    fall[t] = label.high;
  }
  return !__syncthreads_or(broken);
}

}  // namespace jax_rnnt::cuda
