// Arc weights to the gradient of the scores: each logit is read once, each gradient written once.
//
// The gradient may be in the memory of the logits. Each vector is written by the lane that has read
// it; of a vector that rows share, a lane writes the elements of its own row, and has no use for
// the others, whatever they are by then. No load of logits may be a non-coherent one (`__ldg`).
#include "kernels.h"
#include "launch.h"
#include "rows.h"

namespace jax_rnnt::cuda {
namespace {

// For weights b, l and p = softmax(x), minus the log-likelihood has the gradient
//   softmax: (b + l) p - b [blank] - l [label]
//   none:    -b [blank] - l [label]
//   hat:     l p' - l [label] over the other classes; l s - b (1 - s) for blank, s = sigmoid(x)
// of which each element is clamped, then multiplied by the cotangent.
template <class T>
struct RowGradient {
  // scale * exp(x - denominator); without scale x may be anything, as the other classes of "hat"
  // are where only blank has weight.
  T scale, denominator;
  T at_blank, at_label;  // added at these classes
  int blank_id, label_id;
  bool blank_in_softmax;
  T clamp, cotangent;

  __device__ __forceinline__ T operator()(T x, int index) const {
    T value = scale == 0 ? T(0) : scale * exp_nonpositive(x - denominator);
    if (index == blank_id) value = (blank_in_softmax ? value : T(0)) + at_blank;
    if (index == label_id) value += at_label;
    return smaller(larger(value, -clamp), clamp) * cotangent;
  }
};

template <class In, int kGroup>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<In>)
    arcs_backward_kernel(const ArcsBackward p) {
  using T = Accumulator<In>;
  const int64_t rows = p.batch * p.frames * p.cells;
  const int64_t index = int64_t(blockIdx.x) * (kRowThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = threadIdx.x % kGroup;
  if (index >= rows) return;
  const Cell cell = locate(index, rows, p.frames, p.cells);
  const In* logits = static_cast<const In*>(p.logits);
  In* gradient = static_cast<In*>(p.gradient);
  const T blank = static_cast<const T*>(p.blank_weights)[index];
  const T label = static_cast<const T*>(p.label_weights)[index];
  const bool dead = blank == 0 && label == 0;
  const bool reads = !dead && p.normalization != Normalization::kNone;
  const bool hat = p.normalization == Normalization::kHat;

  RowGradient<T> row_gradient;
  row_gradient.scale = !reads ? T(0) : hat ? label : blank + label;
  row_gradient.denominator = static_cast<const T*>(p.denominators)[index];
  row_gradient.at_blank = -blank;
  row_gradient.at_label = -label;
  row_gradient.blank_id = int(p.blank_id);
  // Without weight there is no label here, but padding, which may well equal blank.
  row_gradient.label_id = label != 0 && cell.u < p.labels_per_utterance
                              ? p.labels[cell.batch * p.labels_per_utterance + cell.u]
                              : -1;
  row_gradient.blank_in_softmax = !hat;
  row_gradient.clamp = p.clamp > 0 ? T(p.clamp) : Constants<T>::kInfinity;
  row_gradient.cotangent = static_cast<const T*>(p.cotangents)[cell.batch];
  if (hat && reads) {
    // In place, another lane may have written over it: then this is not the lane that uses it.
    const T z = widen(logits[index * p.classes + p.blank_id]);
    const T e = exp_nonpositive(z < 0 ? z : -z);
    row_gradient.at_blank = (label * (z < 0 ? e : T(1)) - blank * (z < 0 ? T(1) : e)) / (1 + e);
  }

  const RowVectors<In> row(logits, index, rows, p.classes);
  for (int base = lane; base < row.count; base += kGroup * kVectorsInFlight) {
    Vector<In> vectors[kVectorsInFlight];
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      const int i = base + k * kGroup;
      if (reads && i < row.count) vectors[k] = row.load(logits, i);
    }
#pragma unroll
    for (int k = 0; k < kVectorsInFlight; ++k) {
      const int i = base + k * kGroup;
      if (i >= row.count) break;
#pragma unroll
      for (int j = 0; j < kVectorSize<In>; ++j) {
        const T x = reads ? T(widen(vectors[k].element[j])) : T(0);
        const T value = dead ? T(0) : row_gradient(x, row.class_of(i, j));
        narrow(value, vectors[k].element[j]);
      }
      row.store(gradient, i, vectors[k]);
    }
  }
}

template <class In>
cudaError_t launch_arcs_backward(const ArcsBackward& p, cudaStream_t stream) {
  const auto misalignment = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % kVectorBytes;
  };
  if (p.classes > INT32_MAX - 2 * kVectorSize<In> ||
      misalignment(p.logits) != misalignment(p.gradient)) {
    return cudaErrorInvalidValue;
  }
  const int group = group_size<In>(p.classes);
  const Grid grid{blocks_for_rows(p.batch * p.frames * p.cells, group), kRowThreads};
  switch (group) {
    case 1: return launch(arcs_backward_kernel<In, 1>, grid, stream, p);
    case 2: return launch(arcs_backward_kernel<In, 2>, grid, stream, p);
    case 8: return launch(arcs_backward_kernel<In, 8>, grid, stream, p);
    default: return launch(arcs_backward_kernel<In, kWarp>, grid, stream, p);
  }
}

}  // namespace

cudaError_t arcs_backward(const ArcsBackward& p, DType dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32: return launch_arcs_backward<float>(p, stream);
    case DType::kF64: return launch_arcs_backward<double>(p, stream);
    case DType::kBF16: return launch_arcs_backward<__nv_bfloat16>(p, stream);
    case DType::kF16: return launch_arcs_backward<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace jax_rnnt::cuda
