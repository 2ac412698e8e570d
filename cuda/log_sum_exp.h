// Logarithms of sums of exponentials over the classes of a row, in one pass.
#pragma once

#include "rows.h"

namespace jax_rnnt::cuda {

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

// Of the shares of a group's lanes that of the row, for all of them.
template <int kGroup, class T>
__device__ __forceinline__ void combine_group(LogSumExp<T>& total) {
  raise_max(total, reduce_group<kGroup>(total.max, [](T x, T y) { return fmax(x, y); }));
  total.sum = reduce_group<kGroup>(total.sum, [](T x, T y) { return x + y; });
}

// log sum_v exp(term(v)) by a warp, in two passes.
template <class T, class Term>
__device__ __forceinline__ T log_sum_exp(int classes, int lane, Term term) {
  LogSumExp<T> total{Constants<T>::kLowest, T(0)};
  for (int v = lane; v < classes; v += kWarp) total.max = fmax(T(term(v)), total.max);
  for (int v = lane; v < classes; v += kWarp) total.sum += exp_nonpositive(term(v) - total.max);
  combine_group<kWarp>(total);
  return total.max + log_of(total.sum);
}

// log sigmoid(z) = min(z, 0) - log(1 + exp(-|z|)), and that of -z; +inf is bad input, not
// certainty.
template <class T>
struct LogSigmoids {
  T of_z, of_minus_z;

  __device__ __forceinline__ explicit LogSigmoids(T z) {
    if (z == Constants<T>::kInfinity) z = not_a_number<T>();
    const T softplus = log1p_of(exp_nonpositive(z > 0 ? -z : z));
    of_z = (z > 0 ? T(0) : z) - softplus;
    of_minus_z = (z > 0 ? -z : T(0)) - softplus;
  }
};

}  // namespace jax_rnnt::cuda
