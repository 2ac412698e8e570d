// Scores to arcs: the log-sum-exp of every valid row in one pass over the logits.
#include "kernels.h"
#include "launch.h"
#include "rows.h"

namespace jax_rnnt::cuda {
namespace {

template <class T>
struct LogSumExp {
  T max, sum;  // log sum exp = max + log(sum)
};

// Rescales a sum to a larger maximum. `max` starts out finite, since -inf less itself is NaN, and a
// NaN never becomes the maximum, as fmax() has it: it makes the sum NaN.
template <class T>
__device__ __forceinline__ void raise_max(LogSumExp<T>& total, T max) {
  total.sum *= exp_nonpositive(total.max - max);
  total.max = max;
}

// The largest of `max` and what was loaded. Vectors of 16-bit elements are compared in pairs,
// before they are widened.
template <class In, int kGroup>
__device__ __forceinline__ Accumulator<In> largest(Accumulator<In> max,
                                                   const Loaded<In, kGroup>& loaded) {
  using T = Accumulator<In>;
  if constexpr (sizeof(In) == 2) {
    const T minus_inf = -Constants<T>::kInfinity;
    auto pair = narrow_pair(minus_inf, minus_inf, In{});
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (k >= loaded.vectors_here) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) pair = __hmax2(as_pair(loaded.vectors[k].word[j], In{}), pair);
    }
    max = fmax(fmax(__low2float(pair), __high2float(pair)), max);
  } else {
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (k >= loaded.vectors_here) break;
      T x[kVectorSize<In>];
      widen(loaded.vectors[k], x);
#pragma unroll
      for (int j = 0; j < kVectorSize<In>; ++j) max = fmax(x[j], max);
    }
  }
#pragma unroll
  for (int k = 0; k < kMostSingles<In, kGroup>; ++k) {
    if (k >= loaded.singles_here) break;
    max = fmax(T(widen(loaded.singles[k])), max);
  }
  return max;
}

template <class In, int kGroup>
__device__ __forceinline__ void add(LogSumExp<Accumulator<In>>& total,
                                    const Loaded<In, kGroup>& loaded) {
  using T = Accumulator<In>;
  raise_max(total, largest(total.max, loaded));
#pragma unroll
  for (int k = 0; k < kVectorsInFlight; ++k) {
    if (k >= loaded.vectors_here) break;
    T x[kVectorSize<In>];
    widen(loaded.vectors[k], x);
#pragma unroll
    for (int j = 0; j < kVectorSize<In>; ++j) total.sum += exp_nonpositive(x[j] - total.max);
  }
#pragma unroll
  for (int k = 0; k < kMostSingles<In, kGroup>; ++k) {
    if (k >= loaded.singles_here) break;
    total.sum += exp_nonpositive(T(widen(loaded.singles[k])) - total.max);
  }
}

// Makes -inf of class `skipped`, if it is among what was loaded from vector `begin` on.
template <class In, int kGroup>
__device__ __forceinline__ void skip(Loaded<In, kGroup>& loaded, const RowParts<In>& parts,
                                     int begin, int lane, int skipped) {
  In minus_inf;
  narrow(-Constants<Accumulator<In>>::kInfinity, minus_inf);
#pragma unroll
  for (int k = 0; k < kVectorsInFlight; ++k) {
    const int place = skipped - parts.class_of_vector(begin + k * kGroup + lane);
#pragma unroll
    for (int j = 0; j < kVectorSize<In>; ++j) {
      if (place == j) set_element(loaded.vectors[k], j, minus_inf);
    }
  }
#pragma unroll
  for (int k = 0; k < kMostSingles<In, kGroup>; ++k) {
    if (k >= loaded.singles_here) break;
    if (parts.class_of_single(k * kGroup + lane) == skipped) loaded.singles[k] = minus_inf;
  }
}

// This lane's share of the sum over the classes of a row, without class `skipped`.
template <int kGroup, class In>
__device__ __forceinline__ LogSumExp<Accumulator<In>> partial_log_sum_exp(const In* row,
                                                                          int classes, int lane,
                                                                          int skipped) {
  using T = Accumulator<In>;
  constexpr int kClasses = kStep<kGroup> * kVectorSize<In>;
  const RowParts<In> parts(row, classes);
  const int in_steps = vectors_in_steps<kGroup>(parts.vectors);
  LogSumExp<T> total{Constants<T>::kLowest, T(0)};
  Loaded<In, kGroup> loaded;
  loaded.load_rest(row, parts, in_steps, lane);
  if (skipped >= 0) skip(loaded, parts, in_steps, lane, skipped);
  add(total, loaded);
  for (int begin = 0; begin < in_steps; begin += kStep<kGroup>) {
    loaded.load_step(row, parts, begin, lane);
    if (unsigned(skipped - parts.class_of_vector(begin)) < unsigned(kClasses)) {
      skip(loaded, parts, begin, lane, skipped);
    }
    add(total, loaded);
  }
  return total;
}

// x - (max + log_sum), without rounding the sum to the size of large logits. A forbidden class
// stays forbidden also where all are, and log_sum is -inf.
template <class T>
__device__ __forceinline__ T log_ratio(T x, T max, T log_sum) {
  if (x == -Constants<T>::kInfinity) return log_sum != log_sum ? log_sum : x;
  return (x - max) - log_sum;
}

template <class In, int kGroup>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<In>)
    arcs_forward_kernel(const ArcsForward p, const Rows rows) {
  using T = Accumulator<In>;
  const int64_t index = int64_t(blockIdx.x) * (kRowThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = threadIdx.x % kGroup;
  const bool exists = index < rows.count;
  const Cell cell = rows.locate(exists ? index : 0);
  // The label's id at the same time as the bounds, not after them.
  const Bounds bounds = p.bounds[cell.batch];
  const int64_t label_id =
      cell.u < p.labels_per_utterance ? p.labels[cell.batch * p.labels_per_utterance + cell.u] : -1;
  const bool visited = bounds.valid(p.frames, p.labels_per_utterance) &&
                       bounds.frame_begin <= cell.t && cell.t < bounds.frame_end &&
                       bounds.label_begin <= cell.u && cell.u <= bounds.label_end && exists;
  const bool has_label = visited && cell.u < bounds.label_end;
  const In* row = static_cast<const In*>(p.logits) + index * p.classes;
  const T minus_inf = -Constants<T>::kInfinity;

  // Loaded along with the row, whose sectors these are; then not waited for again. Not widened
  // before the row is loaded: to widen is to wait.
  In blank_score, label_score;
  narrow(minus_inf, blank_score);
  narrow(minus_inf, label_score);
  if (visited && lane == 0) {
    blank_score = row[p.blank_id];
    if (has_label && 0 <= label_id && label_id < p.classes) label_score = row[label_id];
  }

  LogSumExp<T> total{T(0), T(1)};
  if (p.normalization != Normalization::kNone) {
    total = {Constants<T>::kLowest, T(0)};
    if (visited) {
      const int skipped = p.normalization == Normalization::kHat ? int(p.blank_id) : -1;
      total = partial_log_sum_exp<kGroup>(row, int(p.classes), lane, skipped);
    }
    const T max = reduce_group<kGroup>(total.max, [](T x, T y) { return fmax(x, y); });
    raise_max(total, max);
    total.sum = reduce_group<kGroup>(total.sum, [](T x, T y) { return x + y; });
  }
  if (!exists || lane != 0) return;

  T blank = widen(blank_score), label = widen(label_score), denominator = 0;
  if (visited) {
    const T log_sum = log_of(total.sum);
    denominator = total.max + log_sum;
    if (p.normalization == Normalization::kSoftmax) {
      blank = log_ratio(blank, total.max, log_sum);
      label = log_ratio(label, total.max, log_sum);
    } else if (p.normalization == Normalization::kHat) {
      // log sigmoid(z) = min(z, 0) - log(1 + exp(-|z|)); +inf is bad input, not certainty.
      const T z = blank == Constants<T>::kInfinity ? not_a_number<T>() : blank;
      const T softplus = log1p_of(exp_nonpositive(z > 0 ? -z : z));
      blank = (z > 0 ? T(0) : z) - softplus;
      label = log_ratio(label, total.max, log_sum) + ((z > 0 ? -z : T(0)) - softplus);
    }
    // Without a label, there is no arc, whatever a NaN in the row made of it.
    if (!has_label) label = minus_inf;
  }
  static_cast<T*>(p.blank)[index] = blank;
  static_cast<T*>(p.label)[index] = label;
  static_cast<T*>(p.denominators)[index] = denominator;
}

template <class In>
cudaError_t launch_arcs_forward(const ArcsForward& p, cudaStream_t stream) {
  if (p.classes > kMostClasses<In>) return cudaErrorInvalidValue;
  const Rows rows(p.batch, p.frames, p.cells);
  // Log-probabilities are only looked up, which takes one lane.
  const int group = p.normalization == Normalization::kNone ? 1 : group_size<In>(p.classes);
  const Grid grid{blocks_for_rows(rows.count, group), kRowThreads};
  switch (group) {
    case 1: return launch(arcs_forward_kernel<In, 1>, grid, stream, p, rows);
    case 2: return launch(arcs_forward_kernel<In, 2>, grid, stream, p, rows);
    case 4: return launch(arcs_forward_kernel<In, 4>, grid, stream, p, rows);
    case 8: return launch(arcs_forward_kernel<In, 8>, grid, stream, p, rows);
    default: return launch(arcs_forward_kernel<In, kWarp>, grid, stream, p, rows);
  }
}

}  // namespace

cudaError_t arcs_forward(const ArcsForward& p, DType dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32: return launch_arcs_forward<float>(p, stream);
    case DType::kF64: return launch_arcs_forward<double>(p, stream);
    case DType::kBF16: return launch_arcs_forward<__nv_bfloat16>(p, stream);
    case DType::kF16: return launch_arcs_forward<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace jax_rnnt::cuda
