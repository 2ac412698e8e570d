// Arcs: scores -> log-probabilities of the blank and the label arc of every cell, and the gradient
// back. One pass over the logits each; rows outside an utterance's bounds are not read.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Running maximum and sum of exp(x - maximum), one pair a lane.
template <class T>
struct LogSumExp {
  Vec<T> max = broadcast<T>(Traits<T>::kLowest);  // not -inf, whose difference to itself is NaN
  Vec<T> sum = broadcast<T>(T(0));
};

// The last, incomplete vector of a segment: lanes that an earlier vector covered hold -inf.
template <class In>
JAX_RNNT_INLINE Vec<Accumulator<In>> load_tail(const In* x, int64_t size) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const int rest = size % L;
  const Vec<T> minus_inf = broadcast<T>(-__builtin_inf());
  if (size >= L) {
    return lane_index<T>() < T(L - rest) ? minus_inf : load_lanes(x + size - L);
  }
  In lanes[L] = {};
  for (int i = 0; i < rest; ++i) lanes[i] = x[i];
  return lane_index<T>() < T(rest) ? load_lanes(lanes) : minus_inf;
}

template <class T, int N>
JAX_RNNT_INLINE void accumulate(LogSumExp<T>& state, const Vec<T> (&x)[N]) {
  Vec<T> max = state.max;
  for (int k = 0; k < N; ++k) max = x[k] > max ? x[k] : max;
  Vec<T> sum = state.sum * exp_nonpositive<T>(state.max - max);
  for (int k = 0; k < N; ++k) sum += exp_nonpositive<T>(x[k] - max);
  state.max = max;
  state.sum = sum;
}

// Adds x[0 .. size) to the state. Short segments find their maximum first and rescale once; long
// ones go block by block, so that memory is read while the exponentials are computed.
template <class In>
JAX_RNNT_INLINE void accumulate_segment(LogSumExp<Accumulator<In>>& state, const In* x,
                                        int64_t size) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int kBlock = JAX_RNNT_VECTOR_BYTES >= 64 ? 8 : 4;
  const int64_t full = size / L * L;
  if (size <= kBlock * L) {
    Vec<T> max = state.max;
    Vec<T> tail{};
    if (full < size) {
      tail = load_tail(x, size);
      max = tail > max ? tail : max;
    }
    for (int64_t i = 0; i < full; i += L) {
      const Vec<T> v = load_lanes(x + i);
      max = v > max ? v : max;
    }
    Vec<T> sum = state.sum * exp_nonpositive<T>(state.max - max);
    if (full < size) sum += exp_nonpositive<T>(tail - max);
    for (int64_t i = 0; i < full; i += L) sum += exp_nonpositive<T>(load_lanes(x + i) - max);
    state.max = max;
    state.sum = sum;
    return;
  }
  int64_t i = 0;
  for (; i + kBlock * L <= size; i += kBlock * L) {
    Vec<T> block[kBlock];
    for (int k = 0; k < kBlock; ++k) block[k] = load_lanes(x + i + k * L);
    accumulate(state, block);
  }
  for (; i < full; i += L) {
    const Vec<T> one[1] = {load_lanes(x + i)};
    accumulate(state, one);
  }
  if (full < size) {
    const Vec<T> one[1] = {load_tail(x, size)};
    accumulate(state, one);
  }
}

// x - y where -inf - -inf is -inf: a class of a dead row stays forbidden.
template <class T>
JAX_RNNT_INLINE Vec<T> log_ratio(Vec<T> x, Vec<T> y) {
  const Vec<T> minus_inf = broadcast<T>(-__builtin_inf());
  return x == minus_inf ? (y != y ? y : minus_inf) : x - y;
}

// The cells [u_begin, u_end] of one frame that an utterance visits, relative to the frame's row.
struct CellRange {
  int64_t begin, end;  // end is exclusive; empty when the frame is outside the bounds
};

JAX_RNNT_INLINE CellRange cells_of_frame(const Bounds& bounds, int64_t t, int64_t frames,
                                         int64_t cells) {
  const bool inside = bounds.valid(frames, cells - 1) && bounds.frame_begin <= t &&
                      t < bounds.frame_end;
  return inside ? CellRange{bounds.label_begin, int64_t(bounds.label_end) + 1} : CellRange{0, 0};
}

template <class In>
void arcs_forward_frame(const ArcsForward& p, int64_t item) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int kRows = 64;  // rows whose logarithms are taken together
  const int64_t b = item / p.frames, V = p.classes;
  const Bounds& bounds = p.bounds[b];
  const CellRange range = cells_of_frame(bounds, item % p.frames, p.frames, p.cells);
  const In* logits = static_cast<const In*>(p.logits) + item * p.cells * V;
  const int32_t* labels = p.labels + b * (p.cells - 1);
  T* blank_out = static_cast<T*>(p.blank) + item * p.cells;
  T* label_out = static_cast<T*>(p.label) + item * p.cells;
  T* denominator_out = static_cast<T*>(p.denominators) + item * p.cells;
  const T minus_inf = T(-__builtin_inf());
  const auto fill_padding = [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      blank_out[u] = label_out[u] = minus_inf;
      denominator_out[u] = 0;
    }
  };
  fill_padding(0, range.begin);
  fill_padding(range.end, p.cells);
  for (int64_t u0 = range.begin; u0 < range.end; u0 += kRows) {
    const int rows = range.end - u0 < kRows ? int(range.end - u0) : kRows;
    T max[kRows], sum[kRows], blank[kRows], label[kRows];
    for (int r = 0; r < rows; ++r) {
      const In* x = logits + (u0 + r) * V;
      const int64_t u = u0 + r;
      const int64_t k = u < bounds.label_end ? labels[u] : -1;
      blank[r] = load_scalar(x + p.blank_id);
      label[r] = 0 <= k && k < V ? load_scalar(x + k) : minus_inf;
      max[r] = 0;
      sum[r] = 1;
      if (p.normalization == Normalization::kNone) continue;
      LogSumExp<T> state;
      if (p.normalization == Normalization::kHat) {
        accumulate_segment(state, x, p.blank_id);
        accumulate_segment(state, x + p.blank_id + 1, V - p.blank_id - 1);
      } else {
        accumulate_segment(state, x, V);
      }
      max[r] = horizontal_max<T>(state.max);
      sum[r] = horizontal_sum<T>(state.sum * exp_nonpositive<T>(state.max - max[r]));
    }
    for (int r = rows; r % L != 0; ++r) max[r] = sum[r] = blank[r] = label[r] = 0;
    for (int r = 0; r < rows; r += L) {
      const Vec<T> denominator = load<Vec<T>>(max + r) + log_positive<T>(load<Vec<T>>(sum + r));
      Vec<T> log_blank = load<Vec<T>>(blank + r);
      Vec<T> log_label = load<Vec<T>>(label + r);
      if (p.normalization == Normalization::kSoftmax) {
        log_blank = log_ratio<T>(log_blank, denominator);
        log_label = log_ratio<T>(log_label, denominator);
      } else if (p.normalization == Normalization::kHat) {
        // log sigmoid(z) = min(z, 0) - log(1 + exp(-|z|)); +inf is bad input, not certainty.
        const Vec<T> z = log_blank == T(__builtin_inf()) ? broadcast<T>(T(__builtin_nan(""))) : log_blank;
        const Vec<T> negative = z < T(0) ? z : -z;  // -|z|
        const Vec<T> softplus = log1p_unit<T>(exp_nonpositive<T>(negative));
        log_blank = (z > T(0) ? z - z : z) - softplus;
        log_label = log_ratio<T>(log_label, denominator) + ((z > T(0) ? -z : z - z) - softplus);
      }
      store(max + r, denominator);
      store(blank + r, log_blank);
      store(label + r, log_label);
    }
    __builtin_memcpy(blank_out + u0, blank, rows * sizeof(T));
    __builtin_memcpy(label_out + u0, label, rows * sizeof(T));
    __builtin_memcpy(denominator_out + u0, max, rows * sizeof(T));
    // The label arc of the last cell is ignored, whatever a NaN in its row made of it.
    if (u0 + rows == range.end) label_out[range.end - 1] = minus_inf;
  }
}

// What one row's gradient needs beside the logits.
template <class T>
struct RowWeights {
  T blank, label;  // unit arc weights
  T denominator;
  T cotangent;
  T clamp;  // +inf when off
};

template <class T>
JAX_RNNT_INLINE T clamped(T unit, const RowWeights<T>& w) {
  const T bounded = unit < -w.clamp ? -w.clamp : (unit > w.clamp ? w.clamp : unit);
  return w.cotangent * bounded;
}

// gradient[0 .. V) = cotangent * clamp(scale * exp(x - denominator)): the softmax term of every class.
template <class In>
JAX_RNNT_INLINE void softmax_term(const In* x, int64_t V, Accumulator<In> scale,
                                  const RowWeights<Accumulator<In>>& w, In* gradient) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const auto term = [&](Vec<T> v) __attribute__((always_inline)) {
    // The blank class of "hat" can be far above the denominator; the caller overwrites its entry.
    Vec<T> g = scale * exp_nonpositive<T>(v - w.denominator);
    g = g > w.clamp ? broadcast<T>(w.clamp) : g;  // never negative
    return g * w.cotangent;
  };
  if (V < L) {
    In lanes[L] = {};
    for (int64_t i = 0; i < V; ++i) lanes[i] = x[i];
    store_lanes(lanes, term(load_lanes(lanes)));
    for (int64_t i = 0; i < V; ++i) gradient[i] = lanes[i];
    return;
  }
  const Vec<T> tail = load_lanes(x + V - L);
  for (int64_t i = 0; i + L <= V; i += L) store_lanes(gradient + i, term(load_lanes(x + i)));
  store_lanes(gradient + V - L, term(tail));
}

// For weights b, l and p = softmax(x), minus the log-likelihood has the gradient
//   softmax: (b + l) p - b [blank] - l [label]
//   none:    -b [blank] - l [label]
//   hat:     l p' - l [label] over the other classes; l s - b (1 - s) for blank, s = sigmoid(x[blank])
template <class In>
JAX_RNNT_INLINE void gradient_row(const In* x, int64_t V, int64_t blank_id, int64_t label,
                                  Normalization normalization,
                                  const RowWeights<Accumulator<In>>& w, In* gradient) {
  using T = Accumulator<In>;
  const bool has_label = 0 <= label && label < V;
  const bool hat = normalization == Normalization::kHat;
  const T z = load_scalar(x + blank_id);
  const T label_score = has_label ? load_scalar(x + label) : T(0);
  const T scale = normalization == Normalization::kSoftmax ? w.blank + w.label : w.label;
  T blank_unit = -w.blank, label_unit = -w.label;
  Vec<T> exponents{};
  exponents[0] = hat ? (z < 0 ? z : -z) : z - w.denominator;
  exponents[1] = label_score - w.denominator;
  const Vec<T> probabilities = exp_nonpositive<T>(exponents);
  if (normalization == Normalization::kNone || scale == 0) {
    // With scale 0 the other classes of "hat" may all be forbidden: their denominator is -inf.
    __builtin_memset(gradient, 0, V * sizeof(In));
  } else {
    softmax_term(x, V, scale, w, gradient);
    if (!hat) blank_unit += scale * probabilities[0];
    label_unit += scale * probabilities[1];
  }
  if (hat) {
    const T e = probabilities[0];
    const T one_minus_s = (z < 0 ? T(1) : e) / (1 + e);
    const T s = (z < 0 ? e : T(1)) / (1 + e);
    blank_unit = w.label * s - w.blank * one_minus_s;
  }
  store_scalar(gradient + blank_id, clamped(blank_unit, w));
  if (has_label) store_scalar(gradient + label, clamped(label_unit, w));
}

template <class In>
void arcs_backward_frame(const ArcsBackward& p, int64_t item) {
  using T = Accumulator<In>;
  const int64_t b = item / p.frames, V = p.classes;
  const int32_t* labels = p.labels + b * (p.cells - 1);
  const T* blank = static_cast<const T*>(p.blank_weights) + item * p.cells;
  const T* label = static_cast<const T*>(p.label_weights) + item * p.cells;
  const T* denominators = static_cast<const T*>(p.denominators) + item * p.cells;
  const In* logits = static_cast<const In*>(p.logits) + item * p.cells * V;
  In* gradient = static_cast<In*>(p.gradient) + item * p.cells * V;
  for (int64_t u = 0; u < p.cells; ++u) {
    In* out = gradient + u * V;
    if (blank[u] == 0 && label[u] == 0) {
      __builtin_memset(out, 0, V * sizeof(In));
      continue;
    }
    const RowWeights<T> w{blank[u], label[u], denominators[u],
                          static_cast<const T*>(p.cotangents)[b],
                          p.clamp > 0 ? T(p.clamp) : T(__builtin_inf())};
    gradient_row(logits + u * V, V, p.blank_id, u + 1 < p.cells ? labels[u] : -1, p.normalization,
                 w, out);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
