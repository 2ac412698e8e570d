// Arc weights to the gradient of the scores: each logit is read once, each gradient written once.
//
// The gradient may be in the memory of the logits: each element is written by the lane that has
// read it, when all lanes have what they read beside their own elements. No load of logits may be a
// non-coherent one (`__ldg`).
#include "kernels.h"
#include "launch.h"
#include "rows.h"

namespace jax_rnnt::cuda {
namespace {

// For weights b, l and p = softmax(x), minus the log-likelihood has the gradient
//   softmax: (b + l) p - b [blank] - l [label]
//   none:    -b [blank] - l [label]
//   hat:     l p' - l [label] over the other classes; l s - b (1 - s) for blank, s = sigmoid(x)
// of which each element is clamped, then multiplied by the cotangent. Without a clamp, scale and
// weights are multiplied instead, which spares each element three instructions.
template <class In, bool kClamped>
struct RowGradient {
  using T = Accumulator<In>;

  T scale, denominator;  // the softmax's share is scale * exp(x - denominator)
  T blank_weight, label_weight;
  In blank_score, label_score;  // not widened before the row is loaded: to widen is to wait
  int blank_id, label_id;       // -1 without a label
  bool hat;
  T clamp, cotangent;

  __device__ __forceinline__ T softmax(T x) const {
    return scale * exp_nonpositive(x - denominator);
  }
  __device__ __forceinline__ T weighted(T unit) const {
    return kClamped ? fmin(fmax(unit, -clamp), clamp) * cotangent : unit;
  }
};

// Of the one or two classes with an arc.
template <class In>
struct ArcGradient {
  using T = Accumulator<In>;

  T blank, label;
  int blank_id, label_id;

  template <bool kClamped>
  __device__ __forceinline__ explicit ArcGradient(const RowGradient<In, kClamped>& of)
      : blank_id(of.blank_id), label_id(of.label_id) {
    // Without scale the denominator may be anything.
    const auto softmax = [&](T x) { return of.scale == 0 ? T(0) : of.softmax(x); };
    T at_blank = softmax(widen(of.blank_score)) - of.blank_weight;
    if (of.hat) {
      const T z = widen(of.blank_score), e = exp_nonpositive(z < 0 ? z : -z);
      at_blank =
          (of.label_weight * (z < 0 ? e : T(1)) - of.blank_weight * (z < 0 ? T(1) : e)) / (1 + e);
    }
    const T before = label_id == blank_id ? at_blank : softmax(widen(of.label_score));
    blank = of.weighted(at_blank);
    label = of.weighted(before - of.label_weight);
  }

  // Puts them in place among the gradients of a number of classes.
  template <int kSize>
  __device__ __forceinline__ void put(T (&gradient)[kSize], int first_class) const {
    const int blank_place = blank_id - first_class, label_place = label_id - first_class;
    if (unsigned(blank_place) >= unsigned(kSize) && unsigned(label_place) >= unsigned(kSize))
      return;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      gradient[j] = j == label_place ? label : j == blank_place ? blank : gradient[j];
    }
  }
};

// Writes the gradient of the classes that were loaded, from vector `begin` of the row on.
template <class In, class Out, int kGroup, bool kClamped>
__device__ __forceinline__ void write(Out* gradient, const Loaded<In, kGroup>& loaded,
                                      const RowParts<In>& parts, int begin, int lane,
                                      const RowGradient<In, kClamped>& of,
                                      const ArcGradient<In>& arcs) {
  using T = Accumulator<In>;
  Out* to = gradient + parts.class_of_vector(begin + lane);
#pragma unroll
  for (int k = 0; k < kVectorsInFlight; ++k) {
    if (k >= loaded.vectors_here) break;
    T x[kVectorSize<In>];
    widen(loaded.vectors[k], x);
#pragma unroll
    for (int j = 0; j < kVectorSize<In>; ++j) x[j] = of.weighted(of.softmax(x[j]));
    arcs.put(x, parts.class_of_vector(begin + k * kGroup + lane));
    store_elements(to + k * kGroup * kVectorSize<In>, x);
  }
#pragma unroll
  for (int k = 0; k < kMostSingles<In, kGroup>; ++k) {
    if (k >= loaded.singles_here) break;
    const int index = parts.class_of_single(k * kGroup + lane);
    T x[1] = {of.weighted(of.softmax(widen(loaded.singles[k])))};
    arcs.put(x, index);
    narrow(x[0], gradient[index]);
  }
}

// This lane's share of a row.
template <int kGroup, class In, class Out, bool kClamped>
__device__ __forceinline__ void write_row(const In* row, Out* gradient, int classes, int lane,
                                          const RowGradient<In, kClamped>& of) {
  const RowParts<In> parts(row, classes);
  const int in_steps = vectors_in_steps<kGroup>(parts.vectors);
  Loaded<In, kGroup> loaded;
  loaded.load_rest(row, parts, in_steps, lane);
  const ArcGradient<In> arcs(of);
  write(gradient, loaded, parts, in_steps, lane, of, arcs);
  for (int begin = 0; begin < in_steps; begin += kStep<kGroup>) {
    loaded.load_step(row, parts, begin, lane);
    write(gradient, loaded, parts, begin, lane, of, arcs);
  }
}

// The same for rows that the softmax has no share in: they are not read.
template <int kGroup, class In, class Out, bool kClamped>
__device__ __forceinline__ void write_arcs(Out* gradient, int classes, int lane,
                                           const RowGradient<In, kClamped>& of) {
  using T = Accumulator<In>;
  const RowParts<Out> parts(gradient, classes);
  const ArcGradient<In> arcs(of);
#pragma unroll 1
  for (int i = lane; i < parts.vectors; i += kGroup) {
    T x[kVectorSize<Out>] = {};
    arcs.put(x, parts.class_of_vector(i));
    store_elements(gradient + parts.class_of_vector(i), x);
  }
#pragma unroll 1
  for (int i = lane; i < parts.singles; i += kGroup) {
    T x[1] = {};
    arcs.put(x, parts.class_of_single(i));
    narrow(x[0], gradient[parts.class_of_single(i)]);
  }
}

template <class In, class Out, int kGroup, bool kClamped>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<In>)
    arcs_backward_kernel(const ArcsBackward p, const Cells rows, const Accumulator<In> clamp) {
  using T = Accumulator<In>;
  const int64_t index = int64_t(blockIdx.x) * (kRowThreads / kGroup) + threadIdx.x / kGroup;
  const int lane = threadIdx.x % kGroup;
  if (index >= rows.count) return;
  const Cell cell = rows.locate(index);
  const In* row = static_cast<const In*>(p.logits) + index * p.classes;
  Out* gradient = static_cast<Out*>(p.gradient) + index * p.classes;
  const T blank = static_cast<const T*>(p.blank_weights)[index];
  const T label = static_cast<const T*>(p.label_weights)[index];
  const int label_id =
      cell.u < p.labels_per_utterance ? p.labels[cell.batch * p.labels_per_utterance + cell.u] : -1;
  const bool dead = blank == 0 && label == 0;
  // Without weight there is no label here, but padding, which may well equal blank.
  const bool has_label = label != 0 && 0 <= label_id && label_id < p.classes;

  RowGradient<In, kClamped> of;
  of.hat = p.normalization == Normalization::kHat;
  of.scale = p.normalization == Normalization::kNone ? T(0) : of.hat ? label : blank + label;
  of.denominator = static_cast<const T*>(p.denominators)[index];
  of.blank_weight = blank;
  of.label_weight = label;
  of.blank_id = dead ? -1 : int(p.blank_id);
  of.label_id = has_label ? label_id : -1;
  of.clamp = clamp;
  of.cotangent = static_cast<const T*>(p.cotangents)[cell.batch];
  if (!kClamped && !dead) {  // not 0 * NaN
    of.scale *= of.cotangent;
    of.blank_weight *= of.cotangent;
    of.label_weight *= of.cotangent;
  }
  narrow(T(0), of.blank_score);
  of.label_score = of.blank_score;
  if (of.scale != 0 || (of.hat && !dead)) of.blank_score = row[p.blank_id];
  if (of.scale != 0 && has_label) of.label_score = row[label_id];
  __syncwarp();  // in place, other lanes write over these

  if (of.scale != 0) {
    write_row<kGroup>(row, gradient, int(p.classes), lane, of);
  } else {
    write_arcs<kGroup>(gradient, int(p.classes), lane, of);
  }
}

template <class In, class Out, bool kClamped>
cudaError_t launch_kernel(const ArcsBackward& p, cudaStream_t stream) {
  const Cells rows(p.batch, p.frames, p.cells);
  // Neighbouring lanes fill sectors, which the second-level cache takes one at a time.
  const int group = max(2, group_size<In>(p.classes));
  const auto launch_one = [&](auto kernel) {
    const Grid grid{blocks_for_rows(rows.count, group), kRowThreads};
    return launch(kernel, grid, stream, p, rows, Accumulator<In>(p.clamp));
  };
  switch (group) {
    case 2: return launch_one(arcs_backward_kernel<In, Out, 2, kClamped>);
    case 4: return launch_one(arcs_backward_kernel<In, Out, 4, kClamped>);
    case 8: return launch_one(arcs_backward_kernel<In, Out, 8, kClamped>);
    default: return launch_one(arcs_backward_kernel<In, Out, kWarp, kClamped>);
  }
}

template <class In, class Out = In>
cudaError_t launch_arcs_backward(const ArcsBackward& p, cudaStream_t stream) {
  // In elements, of how far each lies behind a vector of the logits.
  const auto misalignment = [](const void* data, size_t element_bytes) {
    return reinterpret_cast<uintptr_t>(data) % (kVectorSize<In> * element_bytes) / element_bytes;
  };
  if (p.classes > kMostClasses<In> ||
      misalignment(p.logits, sizeof(In)) != misalignment(p.gradient, sizeof(Out))) {
    return cudaErrorInvalidValue;
  }
  return p.clamp > 0 ? launch_kernel<In, Out, true>(p, stream)
                     : launch_kernel<In, Out, false>(p, stream);
}

}  // namespace

cudaError_t arcs_backward(const ArcsBackward& p, DType dtype, cudaStream_t stream) {
  if (dtype != p.gradient_dtype) {
    return p.gradient_dtype == DType::kBF16 ? launch_arcs_backward<float, __nv_bfloat16>(p, stream)
                                            : launch_arcs_backward<float, __half>(p, stream);
  }
  switch (dtype) {
    case DType::kF32: return launch_arcs_backward<float>(p, stream);
    case DType::kF64: return launch_arcs_backward<double>(p, stream);
    case DType::kBF16: return launch_arcs_backward<__nv_bfloat16>(p, stream);
    case DType::kF16: return launch_arcs_backward<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace jax_rnnt::cuda
