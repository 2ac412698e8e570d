// Scores to arcs: the log-sum-exp of every valid row in one pass over the logits.
#include "kernels.h"
#include "launch.h"
#include "log_sum_exp.h"

namespace jax_rnnt::cuda {
namespace {

// x - (max + log_sum), without rounding the sum to the size of large logits. A forbidden class
// stays forbidden also where all are, and log_sum is -inf.
template <class T>
__device__ __forceinline__ T log_ratio(T x, T max, T log_sum) {
  if (x == -Constants<T>::kInfinity) return log_sum != log_sum ? log_sum : x;
  return (x - max) - log_sum;
}

template <class In, int kGroup>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<In>)
    arcs_forward_kernel(const ArcsForward p, const Cells rows) {
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
    combine_group<kGroup>(total);
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
      const LogSigmoids<T> sigmoids(blank);
      blank = sigmoids.of_z;
      label = log_ratio(label, total.max, log_sum) + sigmoids.of_minus_z;
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
  const Cells rows(p.batch, p.frames, p.cells);
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
