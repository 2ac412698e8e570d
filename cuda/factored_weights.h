// What the gradients of the additive joiner need of an utterance's weights before any product: the
// factors, and the sums by frame and by label position. Two kernels, since the latter are sums over
// all frames, and every sum has its fixed order.
#pragma once

#include "factored.h"

namespace jax_rnnt::cuda {

// What a frame or a label position has weights for, as an element. Inexact: also for cells whose
// sum of products is too small, which come one by one.
inline constexpr int kUnused = 0, kArcsOnly = 1, kSoftmax = 2, kInexact = 3;

// One utterance of a call.
template <class In>
struct FactoredUtterance {
  using T = Accumulator<In>;

  const FactoredBackward& p;
  const FactoredLayout& layout;
  const int64_t b;
  T* const workspace;
  const In *const am, *const lm;
  const T *const am_top, *const lm_top;
  const T *const blank, *const label, *const denominators;  // planes
  const T* const average;
  const T* const encoder_logs;

  __device__ __forceinline__ FactoredUtterance(const FactoredBackward& p,
                                               const FactoredLayout& layout, int64_t b)
      : p(p),
        layout(layout),
        b(b),
        workspace(static_cast<T*>(p.workspace) + b * p.workspace_elements),
        am(static_cast<const In*>(p.am) + b * p.frames * p.classes),
        lm(static_cast<const In*>(p.lm) + b * p.cells * p.classes),
        am_top(static_cast<const T*>(p.am_top) + b * p.frames),
        lm_top(static_cast<const T*>(p.lm_top) + b * p.cells),
        blank(plane(p.blank_weights)),
        label(plane(p.label_weights)),
        denominators(plane(p.denominators)),
        average(if_smoothed(p.smoothing.average, b * p.classes)),
        encoder_logs(if_smoothed(p.smoothing.encoder_logs, b * p.frames)) {}

  __device__ __forceinline__ const T* plane(const void* data) const {
    return static_cast<const T*>(data) + b * p.frames * p.cells;
  }
  __device__ __forceinline__ const T* if_smoothed(const void* data, int64_t begin) const {
    return p.smoothing.used() ? static_cast<const T*>(data) + begin : nullptr;
  }
  // Of `rows` rows of scores from row `begin` on, relative to their shifts in the workspace.
  __device__ __forceinline__ Exponentials<In> exponentials(const In* scores, int64_t shifts,
                                                           int64_t begin, int64_t rows) const {
    return {scores + begin * p.classes, int(rows),        int(p.classes), p.classes,
            workspace + shifts + begin, excluded_class(p)};
  }
  __device__ __forceinline__ T cotangent() const { return static_cast<const T*>(p.cotangents)[b]; }
  __device__ __forceinline__ T joint_share() const { return T(p.smoothing.joint_share); }
  __device__ __forceinline__ T am_share() const { return T(p.smoothing.am_share); }
  // Smoothed, nothing of an utterance without cotangent counts, whatever it holds.
  __device__ __forceinline__ bool dropped() const { return p.smoothing.used() && cotangent() == 0; }
  // Of labels, and with smoothed arcs one more, for the average.
  __device__ __forceinline__ int positions() const {
    return int(p.cells) + (p.smoothing.used() ? 1 : 0);
  }
  __device__ __forceinline__ bool is_average(int u) const { return u == p.cells; }

  __device__ __forceinline__ T softmax_weight(T blank, T label) const {
    switch (p.normalization) {
      case Normalization::kNone: return T(0);
      case Normalization::kHat: return label;
      default: return blank + label;
    }
  }
  // The logarithm of the smallest sum that the products give exactly.
  __device__ __forceinline__ T log_smallest() const {
    return log_of(smallest_exact_sum<T>(p.classes));
  }

  // Weight and logarithm of the sum of what the softmax has in a cell, or with the average.
  struct Term {
    T weight, log;

    __device__ __forceinline__ bool inexact(T log_smallest) const {
      return weight != 0 && log < log_smallest;
    }
  };
  __device__ __forceinline__ Term term_of_cell(int t, int u) const {
    const int64_t cell = t * p.cells + u;
    return {joint_share() * softmax_weight(blank[cell], label[cell]), denominators[cell]};
  }
  __device__ __forceinline__ Term term_of_average(int t) const {
    return {am_share() * workspace[layout.softmax_of_frame + t], encoder_logs[t]};
  }
  __device__ __forceinline__ T use(const Term& term, T log_smallest) const {
    if (term.weight == 0) return T(kUnused);
    return term.inexact(log_smallest) ? T(kInexact) : T(kSoftmax);
  }
  __device__ __forceinline__ T factor(const Term& term, T log_smallest) const {
    const bool exact = term.weight != 0 && !term.inexact(log_smallest);
    return exact ? term.weight * exp_nonpositive(-term.log) : T(0);
  }
};

// A kernel's blocks are chunks of frames, a warp eight of them.
inline constexpr int kWeightsThreads = 256;

template <class In>
__global__ void __launch_bounds__(kWeightsThreads)
    factored_weights_kernel(const FactoredBackward p, const FactoredLayout layout) {
  using T = Accumulator<In>;
  constexpr int kWarps = kWeightsThreads / kWarp, kFrames = kChunkFrames / kWarps;
  const T infinity = Constants<T>::kInfinity;
  // Of each warp's frames by label position: use, blank and label; two turns.
  __shared__ T sums[2][3][kWarps][kWarp];
  const int64_t b = blockIdx.x / layout.chunks, chunk = blockIdx.x - b * layout.chunks;
  const FactoredUtterance<In> of(p, layout, b);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = int(chunk) * kChunkFrames + warp * kFrames, frames = int(p.frames);
  const int cells = int(p.cells);
  const bool hat = p.normalization == Normalization::kHat;
  const T log_smallest = of.log_smallest();
  T* const factors = of.workspace + layout.factors;

  T am_blank[kFrames], use_of_frame[kFrames] = {}, blank_of_frame[kFrames] = {};
  T softmax_of_frame[kFrames] = {};
#pragma unroll
  for (int k = 0; k < kFrames; ++k) {
    am_blank[k] = 0;
    if (hat && first + k < frames) am_blank[k] = widen(of.am[(first + k) * p.classes + p.blank_id]);
  }
  // What all warps have of a label position, or the average; `part` of it by one warp.
  const auto combine = [&](int turn, int part, int u) {
    T result = sums[turn][part][0][lane];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      const T next = sums[turn][part][w][lane];
      result = part == 0 ? larger(result, next) : result + next;
    }
    const int64_t to = part == 0   ? layout.use_of_chunk
                       : part == 1 ? layout.blank_of_chunk
                                   : layout.label_of_chunk;
    of.workspace[to + chunk * layout.width + u] = result;
  };

  int turn = 0;
#pragma unroll 1
  for (int begin = 0; begin < cells; begin += kWarp) {
    const int u = begin + lane;
    T blank[kFrames], label[kFrames], log[kFrames];
#pragma unroll
    for (int k = 0; k < kFrames; ++k) {
      const int64_t cell = int64_t(first + k) * cells + u;
      const bool there = u < cells && first + k < frames;
      blank[k] = there ? of.blank[cell] : T(0);
      label[k] = there ? of.label[cell] : T(0);
      log[k] = there ? of.denominators[cell] : T(0);
    }
    const T lm_blank = hat && u < cells ? T(widen(of.lm[u * p.classes + p.blank_id])) : T(0);
    T use_of_position = 0, blank_of_position = 0, label_of_position = 0;
#pragma unroll
    for (int k = 0; k < kFrames; ++k) {
      const T weight = of.softmax_weight(blank[k], label[k]);
      const typename FactoredUtterance<In>::Term term{of.joint_share() * weight, log[k]};
      const bool active = blank[k] != 0 || label[k] != 0;
      const T use = larger(of.use(term, log_smallest), active ? T(kArcsOnly) : T(kUnused));
      T of_blank = -blank[k];
      if (hat && active) {
        const T z = am_blank[k] + lm_blank, e = exp_nonpositive(z < 0 ? z : -z);
        of_blank = (label[k] * (z < 0 ? e : T(1)) - blank[k] * (z < 0 ? T(1) : e)) / (1 + e);
      }
      if (u < cells && first + k < frames) {
        factors[(first + k) * layout.width + u] = of.factor(term, log_smallest);
      }
      use_of_frame[k] = larger(use_of_frame[k], use);
      blank_of_frame[k] += of_blank;
      softmax_of_frame[k] += weight;
      use_of_position = larger(use_of_position, use);
      blank_of_position += of_blank;
      label_of_position += label[k];
    }
    sums[turn][0][warp][lane] = use_of_position;
    sums[turn][1][warp][lane] = blank_of_position;
    sums[turn][2][warp][lane] = label_of_position;
    __syncthreads();
    if (warp < 3 && u < cells) combine(turn, warp, u);
    turn ^= 1;
  }

  T use_of_average = 0;
#pragma unroll
  for (int k = 0; k < kFrames; ++k) {
    const auto sum = [](T x, T y) { return x + y; };
    T use = reduce_group<kWarp>(use_of_frame[k], [](T x, T y) { return larger(x, y); });
    const T blank = reduce_group<kWarp>(blank_of_frame[k], sum);
    const T softmax = reduce_group<kWarp>(softmax_of_frame[k], sum);
    const int t = first + k;
    if (t >= frames) continue;
    if (p.smoothing.used()) {
      const typename FactoredUtterance<In>::Term term{of.am_share() * softmax, of.encoder_logs[t]};
      use_of_average = larger(use_of_average, of.use(term, log_smallest));
      if (lane == 0) factors[t * layout.width + cells] = of.factor(term, log_smallest);
    }
    if (lane != 0) continue;
    if (of.dropped()) use = T(kUnused);
    of.workspace[layout.use_of_frame + t] = use;
    of.workspace[layout.shift_of_frame + t] = use < T(kSoftmax) ? infinity : of.am_top[t];
    of.workspace[layout.blank_of_frame + t] = blank;
    of.workspace[layout.softmax_of_frame + t] = softmax;
  }
  if (!p.smoothing.used()) return;
  sums[turn][0][warp][lane] = use_of_average;
  sums[turn][1][warp][lane] = 0;
  sums[turn][2][warp][lane] = 0;
  __syncthreads();
  if (warp < 3 && lane == 0) combine(turn, warp, cells);
}

// Adds up the chunks' sums by label position, a thread for each.
template <class In>
__global__ void __launch_bounds__(kWeightsThreads)
    factored_positions_kernel(const FactoredBackward p, const FactoredLayout layout) {
  using T = Accumulator<In>;
  const int64_t index = int64_t(blockIdx.x) * kWeightsThreads + threadIdx.x;
  const int64_t b = index / layout.width;
  const int u = int(index - b * layout.width);
  if (b >= p.batch) return;
  const FactoredUtterance<In> of(p, layout, b);
  if (u >= of.positions()) return;
  T* const w = of.workspace;
  T use = 0, blank = 0, label = 0;
#pragma unroll 4
  for (int64_t chunk = 0; chunk < layout.chunks; ++chunk) {
    const int64_t place = chunk * layout.width + u;
    use = larger(use, w[layout.use_of_chunk + place]);
    blank += w[layout.blank_of_chunk + place];
    label += w[layout.label_of_chunk + place];
  }
  if (of.dropped()) use = T(kUnused);
  const T top = of.is_average(u) ? T(0) : of.lm_top[u];
  w[layout.use_of_position + u] = use;
  w[layout.shift_of_position + u] = use < T(kSoftmax) ? Constants<T>::kInfinity : top;
  w[layout.blank_of_position + u] = blank;
  w[layout.label_of_position + u] = label;
  if (!p.smoothing.used() || of.is_average(u)) return;
  static_cast<T*>(p.blank_of_position)[b * p.cells + u] = -blank;
  static_cast<T*>(p.label_of_position)[b * p.cells + u] = label;
}

}  // namespace jax_rnnt::cuda
