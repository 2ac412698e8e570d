// Arcs: scores -> log-probabilities of the blank and the label arc of every cell, and the gradient
// back. One pass over the logits each; rows outside an utterance's bounds are not read.
#pragma once

#include "kernels.h"
#include "log_sum_exp.h"
#include "storage.h"
#include "stream_writer.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

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

template <class In, class Arcs>
JAX_RNNT_INLINE void fill_padding(const Arcs& p, int64_t begin, int64_t end) {
  using T = Accumulator<In>;
  for (int64_t cell = begin; cell < end; ++cell) {
    static_cast<T*>(p.blank)[cell] = static_cast<T*>(p.label)[cell] = T(-__builtin_inf());
    static_cast<T*>(p.denominators)[cell] = 0;
  }
}

// Arcs of neighbouring cells, all of them visited. `label_of` gives a cell's label, or -1.
template <class In, class LabelOf>
JAX_RNNT_INLINE void arcs_forward_cells(const ArcsForward& p, int64_t begin, int64_t end,
                                        LabelOf label_of) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int kRows = 64;  // rows whose logarithms are taken together
  const int64_t V = p.classes;
  const In* logits = static_cast<const In*>(p.logits);
  const RowReader<In> read{logits + p.batch * p.frames * p.cells * V};
  const T minus_inf = T(-__builtin_inf());
  In forbidden;
  store_scalar(&forbidden, minus_inf);
  for (int64_t first = begin; first < end; first += kRows) {
    const int rows = end - first < kRows ? int(end - first) : kRows;
    T max[kRows], sum[kRows], blank[kRows], label[kRows];
    In blank_scores[kRows], label_scores[kRows];
    if (p.normalization == Normalization::kSoftmax) {
      log_sum_exp_of_rows<false>(logits + first * V, rows, V, -1, read, max, sum);
    } else if (p.normalization == Normalization::kHat) {
      log_sum_exp_of_rows<true>(logits + first * V, rows, V, p.blank_id, read, max, sum);
    } else {
      for (int r = 0; r < rows; ++r) max[r] = 0, sum[r] = 1;
    }
    // After the sums, which have brought the rows into the cache in order. Numbers of 16 bits are
    // converted below, many at once.
    for (int r = 0; r < rows; ++r) {
      const In* x = logits + (first + r) * V;
      const int64_t k = label_of(first + r);
      blank_scores[r] = x[p.blank_id];
      label_scores[r] = 0 <= k && k < V ? x[k] : forbidden;
    }
    for (int r = rows; r % L != 0; ++r) {
      max[r] = sum[r] = 0;
      blank_scores[r] = label_scores[r] = In{};
    }
    for (int r = 0; r < rows; r += L) {
      const Vec<T> row_max = load<Vec<T>>(max + r);
      const Vec<T> log_sum = log_positive<T>(load<Vec<T>>(sum + r));
      Vec<T> log_blank = load_lanes(blank_scores + r);
      Vec<T> log_label = load_lanes(label_scores + r);
      if (p.normalization == Normalization::kSoftmax) {
        log_blank = log_ratio<T>(log_blank, row_max, log_sum);
        log_label = log_ratio<T>(log_label, row_max, log_sum);
      } else if (p.normalization == Normalization::kHat) {
        const LogSigmoids<T> sigmoids = log_sigmoids<T>(log_blank);
        log_blank = sigmoids.of_z;
        log_label = log_ratio<T>(log_label, row_max, log_sum) + sigmoids.of_minus_z;
      }
      store(max + r, row_max + log_sum);
      store(blank + r, log_blank);
      store(label + r, log_label);
    }
    __builtin_memcpy(static_cast<T*>(p.blank) + first, blank, rows * sizeof(T));
    __builtin_memcpy(static_cast<T*>(p.label) + first, label, rows * sizeof(T));
    __builtin_memcpy(static_cast<T*>(p.denominators) + first, max, rows * sizeof(T));
  }
}

template <class In>
void arcs_forward_frame(const ArcsForward& p, int64_t item) {
  using T = Accumulator<In>;
  const int64_t b = item / p.frames, cell = item * p.cells;
  const Bounds& bounds = p.bounds[b];
  const CellRange range = cells_of_frame(p, bounds, item % p.frames);
  const int32_t* labels = p.labels + b * p.labels_per_utterance;
  fill_padding<In>(p, cell, cell + range.begin);
  fill_padding<In>(p, cell + range.end, cell + p.cells);
  arcs_forward_cells<In>(p, cell + range.begin, cell + range.end, [&](int64_t i) {
    return i - cell < bounds.label_end ? labels[i - cell] : int32_t{-1};
  });
  // A last cell without label arc: whatever a NaN in its row made of it.
  if (range.end > bounds.label_end) {
    static_cast<T*>(p.label)[cell + bounds.label_end] = T(-__builtin_inf());
  }
}

// Utterances of one cell each, which are rows that need not have anything to do with one another:
// as many at a time as come without padding in between.
template <class In>
void arcs_forward_rows(const ArcsForward& p, int64_t begin, int64_t end) {
  using T = Accumulator<In>;
  const auto visited = [&](int64_t i) {
    const CellRange range = cells_of_frame(p, p.bounds[i], 0);
    return range.begin < range.end;
  };
  while (begin < end) {
    int64_t stop = begin;
    while (stop < end && visited(stop)) ++stop;
    arcs_forward_cells<In>(p, begin, stop, [&](int64_t i) {
      return p.bounds[i].label_end > 0 ? p.labels[i] : int32_t{-1};
    });
    for (int64_t i = begin; i < stop; ++i) {
      if (p.bounds[i].label_end == 0) static_cast<T*>(p.label)[i] = T(-__builtin_inf());
    }
    for (begin = stop; begin < end && !visited(begin);) ++begin;
    fill_padding<In>(p, stop, begin);
  }
}

// What one row's gradient needs beside the logits.
template <class T>
struct RowWeights {
  T blank, label;  // unit arc weights
  T denominator;
  T cotangent;
  T clamp;
  int64_t label_id;  // -1 where there is none
  T hat_blank;       // unit gradient at blank, with "hat"

  JAX_RNNT_INLINE_MEMBER bool dead() const { return blank == 0 && label == 0; }
};

// For "hat", from the score of blank.
template <class T>
JAX_RNNT_INLINE T gradient_of_hat_blank(T z, T blank, T label) {
  const T e = exp_nonpositive<T>(broadcast<T>(z < 0 ? z : -z))[0];
  return (label * (z < 0 ? e : T(1)) - blank * (z < 0 ? T(1) : e)) / (1 + e);
}

// For weights b, l and p = softmax(x), minus the log-likelihood has the gradient
//   softmax: (b + l) p - b [blank] - l [label]
//   none:    -b [blank] - l [label]
//   hat:     l p' - l [label] over the other classes; l s - b (1 - s) for blank, s =
//   sigmoid(x[blank])
// of which each element is clamped, then multiplied by the cotangent. This is that of the classes
// [begin, end) of a row x. It may write up to `limit`.
template <bool kHat, bool kClamp, class In>
JAX_RNNT_INLINE void gradient_of_classes(const In* x, int64_t begin, int64_t end, int64_t blank_id,
                                         const RowWeights<Accumulator<In>>& w,
                                         const RowReader<In>& read, In* out, const In* limit) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int64_t kAhead = (1 << 14) / sizeof(In);
  const T scale = kHat ? w.label : w.blank + w.label;
  // Where only blank has weight, "hat" has no use for the other classes, which may be anything.
  const bool spread = !kHat || scale != 0;
  const auto weighted = [&](Vec<T> unit) __attribute__((always_inline)) {
    if constexpr (kClamp) {
      unit = unit < -w.clamp ? broadcast<T>(-w.clamp) : unit;
      unit = unit > w.clamp ? broadcast<T>(w.clamp) : unit;
    }
    return unit * w.cotangent;
  };
  const auto softmax = [&](Vec<T> v) __attribute__((always_inline)) {
    return spread ? scale * exp_nonpositive<T>(v - w.denominator) : Vec<T>{};
  };
  const auto with_arcs = [&](Vec<T> v, int64_t i) __attribute__((always_inline)) {
    const IntVec<T> classes = lane_index<T>();
    Vec<T> unit = softmax(v);
    unit = classes == Int<T>(w.label_id - i) ? unit - w.label : unit;
    const Vec<T> blank_unit = kHat ? broadcast<T>(w.hat_blank) : unit - w.blank;
    return weighted(classes == Int<T>(blank_id - i) ? blank_unit : unit);
  };
  // Where nothing but their rounding keeps the arcs from being subtracted at the end, they are.
  constexpr bool kArcsLast = !kHat && !kClamp && sizeof(In) == sizeof(T);
  const T factor = scale * w.cotangent;
  const auto without_arcs = [&](Vec<T> v) __attribute__((always_inline)) {
    return kArcsLast ? factor * exp_nonpositive<T>(v - w.denominator) : weighted(softmax(v));
  };
  const bool few = !kArcsLast && end - begin <= 4 * L;
  const int64_t full = begin + (end - begin) / L * L;
  for (int64_t i = begin; i < full; i += L) {
    prefetch(x, i + kAhead);
    const Vec<T> v = read(x + i);
    store_lanes(out + (i - begin), few ? with_arcs(v, i) : without_arcs(v));
  }
  if (full < end) {
    prefetch(x, full + kAhead);
    const Vec<T> v = read.partial(x + full, int(end - full));
    const Vec<T> last = kArcsLast ? without_arcs(v) : with_arcs(v, full);
    In* const tail = out + (full - begin);
    if (limit - tail >= L) {
      store_lanes(tail, last);
    } else {
      In lanes[L];
      store_lanes(lanes, last);
      for (int64_t k = 0; full + k < end; ++k) tail[k] = lanes[k];
    }
  }
  if constexpr (kArcsLast) {
    const auto subtract = [&](int64_t k, T weight) __attribute__((always_inline)) {
      if (begin <= k && k < end) out[k - begin] -= weight * w.cotangent;
    };
    subtract(w.label_id, w.label);
    subtract(blank_id, w.blank);
  } else if (!few) {
    const auto overwrite = [&](int64_t k) __attribute__((always_inline)) {
      if (k < begin || k >= full) return;
      const int64_t i = k - (k - begin) % L;
      store_lanes(out + (i - begin), with_arcs(read(x + i), i));
    };
    overwrite(w.label_id);
    overwrite(blank_id);
  }
}

template <class In>
JAX_RNNT_INLINE void gradient_of_log_probs(int64_t begin, int64_t end, int64_t blank_id,
                                           const RowWeights<Accumulator<In>>& w, In* out) {
  using T = Accumulator<In>;
  const auto set = [&](int64_t k, T weight) {
    const T unit = w.clamp > 0 && weight > w.clamp ? w.clamp : weight;
    if (begin <= k && k < end) store_scalar(out + (k - begin), -unit * w.cotangent);
  };
  __builtin_memset(out, 0, (end - begin) * sizeof(In));
  set(blank_id, w.blank);
  set(w.label_id, w.label);
}

// The gradient of consecutive rows. `label_of` gives a row's label, or -1.
template <bool kHat, bool kClamp, class In, class LabelOf, class CotangentOf>
JAX_RNNT_INLINE void arcs_backward_rows(const ArcsBackward& p, int64_t begin, int64_t end,
                                        LabelOf label_of, CotangentOf cotangent_of,
                                        const RowReader<In>& read, StreamWriter<In>& writer) {
  using T = Accumulator<In>;
  constexpr int64_t kPiece = StreamWriter<In>::kCapacity;
  const int64_t V = p.classes;
  const In* logits = static_cast<const In*>(p.logits);
  const T* blank = static_cast<const T*>(p.blank_weights);
  const T* label = static_cast<const T*>(p.label_weights);
  const T* denominators = static_cast<const T*>(p.denominators);
  const auto weights_of = [&](int64_t row) __attribute__((always_inline)) {
    RowWeights<T> w{
        .blank = blank[row],
        .label = label[row],
        .denominator = denominators[row],
        .cotangent = cotangent_of(row),
        .clamp = T(p.clamp),
        // Without weight there is no label here, but padding, which may well equal blank.
        .label_id = label[row] != 0 ? label_of(row) : -1,
        .hat_blank = 0,
    };
    if (kHat && !w.dead()) {
      w.hat_blank =
          gradient_of_hat_blank<T>(load_scalar(logits + row * V + p.blank_id), w.blank, w.label);
    }
    return w;
  };
  // Classes [from, to) of a row.
  const auto write = [&](int64_t row, const RowWeights<T>& w, int64_t from, int64_t to,
                         In* out) __attribute__((always_inline)) {
    if (w.dead()) {
      __builtin_memset(out, 0, (to - from) * sizeof(In));
    } else if (p.normalization == Normalization::kNone) {
      gradient_of_log_probs(from, to, p.blank_id, w, out);
    } else {
      gradient_of_classes<kHat, kClamp>(logits + row * V, from, to, p.blank_id, w, read, out,
                                        writer.limit());
    }
  };
  if (V <= kPiece) {
    const int64_t most = kPiece / V;
    for (int64_t row = begin; row < end;) {
      const int64_t rows = end - row < most ? end - row : most;
      In* out = writer.next(rows * V);
      for (const int64_t stop = row + rows; row < stop; ++row, out += V) {
        write(row, weights_of(row), 0, V, out);
      }
      writer.add(rows * V);
    }
    return;
  }
  for (int64_t row = begin; row < end; ++row) {
    // Once: in place, the score of blank is gone after the first piece.
    const RowWeights<T> w = weights_of(row);
    for (int64_t from = 0; from < V; from += kPiece) {
      const int64_t to = V - from < kPiece ? V : from + kPiece;
      write(row, w, from, to, writer.next(to - from));
      writer.add(to - from);
    }
  }
}

// Frames [begin, end) of all utterances, one after another.
template <bool kHat, bool kClamp, class In>
void arcs_backward_frames(const ArcsBackward& p, int64_t begin, int64_t end) {
  using T = Accumulator<In>;
  const int64_t frame_elements = p.cells * p.classes;
  In* const gradient = static_cast<In*>(p.gradient);
  // Not beyond these frames: in place, others may be written at the same time.
  const RowReader<In> read{static_cast<const In*>(p.logits) + end * frame_elements};
  const bool large = p.batch * p.frames * frame_elements * int64_t(sizeof(In)) > kMostCached;
  // Not streamed in place, where the lines are in the cache: they have just been read.
  const Writing how = p.gradient == p.logits ? Writing::kInPlace
                      : large                ? Writing::kStreamed
                                             : Writing::kDirect;
  StreamWriter<In> writer(gradient + begin * frame_elements, gradient + end * frame_elements, how);
  const T* cotangents = static_cast<const T*>(p.cotangents);
  if (p.frames == 1 && p.cells == 1 && p.labels_per_utterance == 1) {
    arcs_backward_rows<kHat, kClamp, In>(
        p, begin, end, [&](int64_t row) { return p.labels[row]; },
        [&](int64_t row) { return cotangents[row]; }, read, writer);
  } else {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / p.frames, cell = item * p.cells;
      const int32_t* labels = p.labels + b * p.labels_per_utterance;
      arcs_backward_rows<kHat, kClamp, In>(
          p, cell, cell + p.cells,
          [&](int64_t row) {
            return row - cell < p.labels_per_utterance ? labels[row - cell] : int32_t{-1};
          },
          [&](int64_t) { return cotangents[b]; }, read, writer);
    }
  }
  writer.finish();
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
