// Arcs: scores -> log-probabilities of the blank and the label arc of every cell, and the gradient
// back. One pass over the logits each; rows outside an utterance's bounds are not read.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// The rows of one frame, and how to touch vectors of them. The last vector of a row may reach into
// what follows: reads are masked, and stores only ever spill into rows that are written later.
template <class In>
struct RowReader {
  using T = Accumulator<In>;
  const In* buffer_end;  // of all logits

  JAX_RNNT_INLINE_MEMBER Vec<T> operator()(const In* x) const { return load_lanes(x); }

  JAX_RNNT_INLINE_MEMBER Vec<T> partial(const In* x, int size) const {
    if (buffer_end - x >= kLanes<T>) return load_lanes(x);
    In lanes[kLanes<T>] = {};
    for (int i = 0; i < size; ++i) lanes[i] = x[i];
    return load_lanes(lanes);
  }
};

template <class T>
struct LogSumExp {
  T max, sum;  // log sum exp = max + log(sum)
};

// Over the classes of one row, without class `skipped` if there is such a class. `max` is finite
// unless an element is +inf; without any finite element `sum` is 0.
template <bool kSkip, class In>
JAX_RNNT_INLINE LogSumExp<Accumulator<In>> log_sum_exp(const In* x, int64_t V, int64_t skipped,
                                                       const RowReader<In>& read) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int kBlock = JAX_RNNT_VECTOR_BYTES >= 64 ? 8 : 4;
  const int64_t full = V / L * L;
  const int rest = int(V - full);
  const Vec<T> minus_inf = broadcast<T>(T(-__builtin_inf()));
  const auto masked = [&](Vec<T> v, int64_t i) __attribute__((always_inline)) {
    if constexpr (kSkip) v = lane_index<T>() == Int<T>(skipped - i) ? minus_inf : v;
    return v;
  };
  const auto vector = [&](int64_t i)
                          __attribute__((always_inline)) { return masked(read(x + i), i); };
  const auto tail = [&]() __attribute__((always_inline)) {
    const Vec<T> v = masked(read.partial(x + full, rest), full);
    return lane_index<T>() < Int<T>(rest) ? v : minus_inf;
  };
  // Not -inf, whose difference to itself is NaN.
  Vec<T> max = broadcast<T>(Traits<T>::kLowest), sum{};

  if (V <= kBlock * L) {  // a short row: its maximum first, then its exponentials
    const Vec<T> last = rest != 0 ? tail() : minus_inf;
    for (int64_t i = 0; i < full; i += L) {
      const Vec<T> v = vector(i);
      max = v > max ? v : max;
    }
    max = max_of_lanes<T>(last > max ? last : max);
    if (rest != 0) sum = exp_nonpositive<T>(last - max);
    for (int64_t i = 0; i < full; i += L) sum += exp_nonpositive<T>(vector(i) - max);
    return {max[0], sum_of_lanes<T>(sum)[0]};
  }

  // A long row: block by block, a maximum and a sum per lane, so that memory is read while
  // exponentials are computed, and every logit is read once.
  const auto add_to = [&](const Vec<T>& v, Vec<T> new_max) __attribute__((always_inline)) {
    sum = sum * exp_nonpositive<T>(max - new_max) + exp_nonpositive<T>(v - new_max);
    max = new_max;
  };
  int64_t i = 0;
  for (; i + kBlock * L <= V; i += kBlock * L) {
    Vec<T> block[kBlock], new_max = max;
    for (int k = 0; k < kBlock; ++k) {
      block[k] = vector(i + k * L);
      new_max = block[k] > new_max ? block[k] : new_max;
    }
    add_to(block[0], new_max);
    for (int k = 1; k < kBlock; ++k) sum += exp_nonpositive<T>(block[k] - new_max);
  }
  for (; i < full; i += L) {
    const Vec<T> v = vector(i);
    add_to(v, v > max ? v : max);
  }
  if (rest != 0) {
    const Vec<T> v = tail();
    add_to(v, v > max ? v : max);
  }
  const Vec<T> row_max = max_of_lanes<T>(max);
  return {row_max[0], sum_of_lanes<T>(sum * exp_nonpositive<T>(max - row_max))[0]};
}

// x - (max + log_sum), without rounding the sum to the size of large logits. A forbidden class
// stays forbidden also where all are, and log_sum is -inf.
template <class T>
JAX_RNNT_INLINE Vec<T> log_ratio(Vec<T> x, Vec<T> max, Vec<T> log_sum) {
  const Vec<T> minus_inf = broadcast<T>(T(-__builtin_inf()));
  return x == minus_inf ? (log_sum != log_sum ? log_sum : minus_inf) : (x - max) - log_sum;
}

// The cells of one frame that an utterance visits, relative to the frame's row.
struct CellRange {
  int64_t begin, end;  // end is exclusive; empty when the frame is outside the bounds
};

JAX_RNNT_INLINE CellRange cells_of_frame(const ArcsForward& p, const Bounds& bounds, int64_t t) {
  const bool inside = bounds.valid(p.frames, p.labels_per_utterance) && bounds.frame_begin <= t &&
                      t < bounds.frame_end;
  if (!inside) return {0, 0};
  const int64_t end = int64_t(bounds.label_end) + 1;
  return {bounds.label_begin, end < p.cells ? end : p.cells};
}

template <class In>
void arcs_forward_frame(const ArcsForward& p, int64_t item) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int kRows = 64;  // rows whose logarithms are taken together
  const int64_t b = item / p.frames, V = p.classes;
  const Bounds& bounds = p.bounds[b];
  const CellRange range = cells_of_frame(p, bounds, item % p.frames);
  const In* logits = static_cast<const In*>(p.logits) + item * p.cells * V;
  const RowReader<In> read{static_cast<const In*>(p.logits) + p.batch * p.frames * p.cells * V};
  const int32_t* labels = p.labels + b * p.labels_per_utterance;
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
      LogSumExp<T> total{0, 1};
      if (p.normalization == Normalization::kSoftmax) {
        total = log_sum_exp<false>(x, V, -1, read);
      } else if (p.normalization == Normalization::kHat) {
        total = log_sum_exp<true>(x, V, p.blank_id, read);
      }
      max[r] = total.max;
      sum[r] = total.sum;
    }
    for (int r = rows; r % L != 0; ++r) max[r] = sum[r] = blank[r] = label[r] = 0;
    for (int r = 0; r < rows; r += L) {
      const Vec<T> row_max = load<Vec<T>>(max + r);
      const Vec<T> log_sum = log_positive<T>(load<Vec<T>>(sum + r));
      Vec<T> log_blank = load<Vec<T>>(blank + r);
      Vec<T> log_label = load<Vec<T>>(label + r);
      if (p.normalization == Normalization::kSoftmax) {
        log_blank = log_ratio<T>(log_blank, row_max, log_sum);
        log_label = log_ratio<T>(log_label, row_max, log_sum);
      } else if (p.normalization == Normalization::kHat) {
        // log sigmoid(z) = min(z, 0) - log(1 + exp(-|z|)); +inf is bad input, not certainty.
        const Vec<T> z =
            log_blank == T(__builtin_inf()) ? broadcast<T>(T(__builtin_nan(""))) : log_blank;
        const Vec<T> negative = z < T(0) ? z : -z;  // -|z|
        const Vec<T> softplus = log1p_unit<T>(exp_nonpositive<T>(negative));
        log_blank = (z > T(0) ? Vec<T>{} : z) - softplus;
        log_label =
            log_ratio<T>(log_label, row_max, log_sum) + ((z > T(0) ? -z : Vec<T>{}) - softplus);
      }
      store(max + r, row_max + log_sum);
      store(blank + r, log_blank);
      store(label + r, log_label);
    }
    __builtin_memcpy(blank_out + u0, blank, rows * sizeof(T));
    __builtin_memcpy(label_out + u0, label, rows * sizeof(T));
    __builtin_memcpy(denominator_out + u0, max, rows * sizeof(T));
    // A last cell without label arc: whatever a NaN in its row made of it.
    if (u0 + rows > bounds.label_end) label_out[bounds.label_end] = minus_inf;
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

// For weights b, l and p = softmax(x), minus the log-likelihood has the gradient
//   softmax: (b + l) p - b [blank] - l [label]
//   none:    -b [blank] - l [label]
//   hat:     l p' - l [label] over the other classes; l s - b (1 - s) for blank, s =
//   sigmoid(x[blank])
// of which each element is clamped, then multiplied by the cotangent. Writes up to `frame_end`,
// that is, possibly into the next row.
template <bool kHat, class In>
JAX_RNNT_INLINE void gradient_row(const In* x, int64_t V, int64_t blank_id, int64_t label_id,
                                  const RowWeights<Accumulator<In>>& w, const RowReader<In>& read,
                                  In* gradient, const In* frame_end) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const T scale = kHat ? w.label : w.blank + w.label;
  // Where only blank has weight, the other classes of "hat" may all be forbidden.
  const T denominator = scale == 0 ? T(__builtin_inf()) : w.denominator;
  T hat_blank = 0;
  if constexpr (kHat) {
    const T z = load_scalar(x + blank_id);
    const T e = exp_nonpositive<T>(broadcast<T>(z < 0 ? z : -z))[0];
    hat_blank = (w.label * (z < 0 ? e : T(1)) - w.blank * (z < 0 ? T(1) : e)) / (1 + e);
  }
  const auto gradient_of = [&](Vec<T> v, int64_t i) __attribute__((always_inline)) {
    const IntVec<T> classes = lane_index<T>();
    Vec<T> unit = scale * exp_nonpositive<T>(v - denominator);
    unit = classes == Int<T>(label_id - i) ? unit - w.label : unit;
    const Vec<T> blank_unit = kHat ? broadcast<T>(hat_blank) : unit - w.blank;
    unit = classes == Int<T>(blank_id - i) ? blank_unit : unit;
    unit = unit < -w.clamp ? broadcast<T>(-w.clamp) : unit;
    unit = unit > w.clamp ? broadcast<T>(w.clamp) : unit;
    return unit * w.cotangent;
  };
  int64_t i = 0;
  for (; i + L <= V; i += L) store_lanes(gradient + i, gradient_of(read(x + i), i));
  if (i == V) return;
  const Vec<T> last = gradient_of(read.partial(x + i, int(V - i)), i);
  if (frame_end - (gradient + i) >= L) {
    store_lanes(gradient + i, last);
    return;
  }
  In lanes[L];
  store_lanes(lanes, last);
  for (int64_t k = 0; i + k < V; ++k) gradient[i + k] = lanes[k];
}

template <class In>
JAX_RNNT_INLINE void gradient_row_of_log_probs(int64_t V, int64_t blank_id, int64_t label_id,
                                               const RowWeights<Accumulator<In>>& w, In* gradient) {
  using T = Accumulator<In>;
  const auto element = [&](T weight) {
    return -(weight < w.clamp ? weight : w.clamp) * w.cotangent;
  };
  __builtin_memset(gradient, 0, V * sizeof(In));
  store_scalar(gradient + blank_id, element(w.blank));
  if (0 <= label_id && label_id < V) store_scalar(gradient + label_id, element(w.label));
}

template <class In>
void arcs_backward_frame(const ArcsBackward& p, int64_t item) {
  using T = Accumulator<In>;
  const int64_t b = item / p.frames, V = p.classes;
  const int32_t* labels = p.labels + b * p.labels_per_utterance;
  const T* blank = static_cast<const T*>(p.blank_weights) + item * p.cells;
  const T* label = static_cast<const T*>(p.label_weights) + item * p.cells;
  const T* denominators = static_cast<const T*>(p.denominators) + item * p.cells;
  const In* logits = static_cast<const In*>(p.logits) + item * p.cells * V;
  const RowReader<In> read{static_cast<const In*>(p.logits) + p.batch * p.frames * p.cells * V};
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
    const In* x = logits + u * V;
    // Without weight there is no label here, but padding, which may well equal blank.
    const int64_t label_id = label[u] != 0 && u < p.labels_per_utterance ? labels[u] : -1;
    switch (p.normalization) {
      case Normalization::kSoftmax:
        gradient_row<false>(x, V, p.blank_id, label_id, w, read, out, gradient + p.cells * V);
        break;
      case Normalization::kHat:
        gradient_row<true>(x, V, p.blank_id, label_id, w, read, out, gradient + p.cells * V);
        break;
      case Normalization::kNone: gradient_row_of_log_probs(V, p.blank_id, label_id, w, out); break;
    }
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
