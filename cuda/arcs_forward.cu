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
// NaN never becomes the maximum: it makes the sum NaN.
template <class T>
__device__ __forceinline__ void raise_max(LogSumExp<T>& total, T max) {
  total.sum *= exp_nonpositive(total.max - max);
  total.max = max;
}

// This lane's share of the sum over the classes of a row, without class `skipped`.
template <int kGroup, class In>
__device__ __forceinline__ LogSumExp<Accumulator<In>> partial_log_sum_exp(const In* logits,
                                                                          const RowVectors<In>& row,
                                                                          int lane, int skipped) {
  using T = Accumulator<In>;
  constexpr int kSize = kVectorSize<In>;
  LogSumExp<T> total{Constants<T>::kLowest, T(0)};
  for (int base = lane; base < row.count; base += kGroup * kVectorsInFlight) {
    Vector<In> vectors[kVectorsInFlight];
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      const int i = base + k * kGroup;
      if (i < row.count) vectors[k] = row.load(logits, i);
    }
    // Masked as loaded, in the few vectors that need it: widened elements are not kept, which would
    // take registers that hold more rows in flight.
    T max = total.max;
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      const int i = base + k * kGroup;
      if (i >= row.count) break;
      if (!row.is_whole(i) || row.class_of(i, 0) <= skipped) {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          const int index = row.class_of(i, j);
          if (!row.is_class(index) || index == skipped) {
            narrow(-Constants<T>::kInfinity, vectors[k].element[j]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kSize; ++j) max = larger(T(widen(vectors[k].element[j])), max);
    }
    raise_max(total, max);
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (base + k * kGroup >= row.count) break;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        total.sum += exp_nonpositive(widen(vectors[k].element[j]) - max);
      }
    }
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
    arcs_forward_kernel(const ArcsForward p) {
  using T = Accumulator<In>;
  const int64_t rows = p.batch * p.frames * p.cells;
  const int64_t index = int64_t(blockIdx.x) * (kRowThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = threadIdx.x % kGroup;
  const bool exists = index < rows;
  const Cell cell = locate(exists ? index : 0, rows, p.frames, p.cells);
  const Bounds bounds = p.bounds[cell.batch];
  const bool visited = exists && bounds.valid(p.frames, p.labels_per_utterance) &&
                       bounds.frame_begin <= cell.t && cell.t < bounds.frame_end &&
                       bounds.label_begin <= cell.u && cell.u <= bounds.label_end;
  const bool has_label = visited && cell.u < bounds.label_end;
  const In* logits = static_cast<const In*>(p.logits);
  const T minus_inf = -Constants<T>::kInfinity;

  // Loaded along with the row, whose sectors these are; then not waited for again.
  T blank = minus_inf, label = minus_inf;
  if (visited && lane == 0) {
    const In* x = logits + index * p.classes;
    blank = widen(x[p.blank_id]);
    if (has_label) {
      const int64_t k = p.labels[cell.batch * p.labels_per_utterance + cell.u];
      if (0 <= k && k < p.classes) label = widen(x[k]);
    }
  }

  LogSumExp<T> total{T(0), T(1)};
  if (p.normalization != Normalization::kNone) {
    total = {Constants<T>::kLowest, T(0)};
    if (visited) {
      const int skipped = p.normalization == Normalization::kHat ? int(p.blank_id) : -1;
      const RowVectors<In> row(logits, index, rows, p.classes);
      total = partial_log_sum_exp<kGroup>(logits, row, lane, skipped);
    }
    const T max = reduce_group<kGroup>(total.max, [](T x, T y) { return larger(x, y); });
    raise_max(total, max);
    total.sum = reduce_group<kGroup>(total.sum, [](T x, T y) { return x + y; });
  }
  if (!exists || lane != 0) return;

  T denominator = 0;
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
  const int64_t rows = p.batch * p.frames * p.cells;
  if (p.classes > INT32_MAX - 2 * kVectorSize<In>) return cudaErrorInvalidValue;
  // Log-probabilities are only looked up, which takes one lane.
  const int group = p.normalization == Normalization::kNone ? 1 : group_size<In>(p.classes);
  const Grid grid{blocks_for_rows(rows, group), kRowThreads};
  switch (group) {
    case 1: return launch(arcs_forward_kernel<In, 1>, grid, stream, p);
    case 2: return launch(arcs_forward_kernel<In, 2>, grid, stream, p);
    case 8: return launch(arcs_forward_kernel<In, 8>, grid, stream, p);
    default: return launch(arcs_forward_kernel<In, kWarp>, grid, stream, p);
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
