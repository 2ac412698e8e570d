// The gradient of arcs with respect to the logits, in one pass over them. Rows without weight are
// not read.
#pragma once

#include <type_traits>

#include "elementary.h"
#include "live_rows.h"
#include "log_sum_exp.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// What one row's gradient needs beside the logits.
template <class T>
struct RowGradient {
  T blank, label;  // unit arc weights
  T denominator;
  T cotangent;
  T clamp;
  int64_t blank_id;
  int64_t label_id;  // -1 where there is none
  T hat_blank;       // unit gradient at blank, with "hat"
};

// For "hat", from the score of blank.
template <class T>
JAX_RNNT_INLINE T gradient_of_hat_blank(T z, T blank, T label) {
  const T e = exp_nonpositive<T>(broadcast<T>(z < 0 ? z : -z))[0];
  return (label * (z < 0 ? e : T(1)) - blank * (z < 0 ? T(1) : e)) / (1 + e);
}

// The last `count` elements of something, which may write over what follows, up to `limit`.
template <class Out>
JAX_RNNT_INLINE void store_last(Out* out, Vec<Accumulator<Out>> v, int64_t count,
                                const Out* limit) {
  constexpr int L = kLanes<Accumulator<Out>>;
  if (limit - out >= L) return store_lanes(out, v);
  Out lanes[L];
  store_lanes(lanes, v);
  for (int64_t i = 0; i < count; ++i) out[i] = lanes[i];
}

// For weights b, l and p = softmax(x), minus the log-likelihood has the gradient
//   softmax: (b + l) p - b [blank] - l [label]
//   none:    -b [blank] - l [label]
//   hat:     l p' - l [label] over the other classes; l s - b (1 - s) for blank, s =
//   sigmoid(x[blank])
// of which each element is clamped, then multiplied by the cotangent. This is that of the classes
// [begin, end) of a row x. It may write up to `limit`.
template <bool kHat, bool kClamp, class In, class Out>
JAX_RNNT_INLINE void gradient_of_classes(const In* x, int64_t begin, int64_t end,
                                         const RowGradient<Accumulator<In>>& row, const In* ahead,
                                         const RowReader<In>& read, Out* out, const Out* limit) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const T scale = kHat ? row.label : row.blank + row.label;
  // Where only blank has weight, "hat" has no use for the other classes, which may be anything.
  const bool spread = !kHat || scale != 0;
  const auto weighted = [&](Vec<T> unit) __attribute__((always_inline)) {
    if constexpr (kClamp) {
      unit = unit < -row.clamp ? broadcast<T>(-row.clamp) : unit;
      unit = unit > row.clamp ? broadcast<T>(row.clamp) : unit;
    }
    return unit * row.cotangent;
  };
  const auto softmax = [&](Vec<T> v) __attribute__((always_inline)) {
    return spread ? scale * exp_nonpositive<T>(v - row.denominator) : Vec<T>{};
  };
  const auto with_arcs = [&](Vec<T> v, int64_t i) __attribute__((always_inline)) {
    const IntVec<T> classes = lane_index<T>();
    Vec<T> unit = softmax(v);
    unit = classes == Int<T>(row.label_id - i) ? unit - row.label : unit;
    const Vec<T> blank_unit = kHat ? broadcast<T>(row.hat_blank) : unit - row.blank;
    return weighted(classes == Int<T>(row.blank_id - i) ? blank_unit : unit);
  };
  const bool few = end - begin <= 4 * L;
  const int64_t full = begin + (end - begin) / L * L;
  for (int64_t i = begin; i < full; i += L) {
    prefetch(ahead, i - begin);
    const Vec<T> v = read(x + i);
    store_lanes(out + (i - begin), few ? with_arcs(v, i) : weighted(softmax(v)));
  }
  if (full < end) {
    prefetch(ahead, full - begin);
    const Vec<T> v = read.partial(x + full, int(end - full));
    store_last(out + (full - begin), with_arcs(v, full), end - full, limit);
  }
  if (few) return;
  const auto overwrite = [&](int64_t k) __attribute__((always_inline)) {
    if (k < begin || k >= full) return;
    const int64_t i = k - (k - begin) % L;
    store_lanes(out + (i - begin), with_arcs(read(x + i), i));
  };
  overwrite(row.label_id);
  overwrite(row.blank_id);
}

template <class Out>
JAX_RNNT_INLINE void gradient_of_log_probs(int64_t begin, int64_t end,
                                           const RowGradient<Accumulator<Out>>& row, Out* out) {
  using T = Accumulator<Out>;
  const auto set = [&](int64_t k, T weight) {
    const T unit = row.clamp > 0 && weight > row.clamp ? row.clamp : weight;
    if (begin <= k && k < end) store_scalar(out + (k - begin), -unit * row.cotangent);
  };
  __builtin_memset(out, 0, (end - begin) * sizeof(Out));
  set(row.blank_id, row.blank);
  set(row.label_id, row.label);
}

// What a row adds to the gradient at each of its classes.
template <class T>
struct SoftmaxShare {
  Vec<T> factor, denominator;

  JAX_RNNT_INLINE_MEMBER explicit SoftmaxShare(const RowGradient<T>& row)
      : factor(broadcast<T>((row.blank + row.label) * row.cotangent)),
        denominator(broadcast<T>(row.denominator)) {}
  JAX_RNNT_INLINE_MEMBER Vec<T> operator()(Vec<T> v) const {
    return factor * exp_nonpositive<T>(v - denominator);
  }
};

// gradient_of_classes() of the classes [begin, end) of some rows, of the softmax without a clamp:
// of one row, or of whole ones of at least a vector each. Before it is rounded to 16 bits.
//
// Exponentials are taken of vectors that lie end to end, whatever the rows: of V = 50 classes and
// vectors of 16, three and an eighth a row instead of four. Then the arcs' weights are subtracted.
template <class In, class RowOf>
JAX_RNNT_INLINE void unrounded_gradient_of_rows(const In* x, int64_t rows, int64_t begin,
                                                int64_t end, RowOf row_of, const In* ahead,
                                                const RowReader<In>& read, Accumulator<In>* out,
                                                const Accumulator<In>* limit) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const int64_t width = end - begin, size = rows * width;
  const IntVec<T> lane = lane_index<T>();
  x += begin;
  int64_t i = 0;
  SoftmaxShare<T> share(row_of(0));
  for (int64_t r = 0, stop = width; r < rows; ++r, stop += width) {
    for (; i + L <= stop; i += L) {
      prefetch(ahead, i);
      store(out + i, share(read(x + i)));
    }
    if (r + 1 == rows) break;
    const SoftmaxShare<T> next(row_of(r + 1));
    if (i < stop) {
      const IntVec<T> here = lane < Int<T>(stop - i);
      share.factor = here ? share.factor : next.factor;
      share.denominator = here ? share.denominator : next.denominator;
      prefetch(ahead, i);
      store(out + i, share(read(x + i)));
      i += L;
    }
    share = next;
  }
  if (i < size) {
    prefetch(ahead, i);
    store_last(out + i, share(read.partial(x + i, int(size - i))), size - i, limit);
  }
  for (int64_t r = 0; r < rows; ++r, out += width) {
    const RowGradient<T> row = row_of(r);
    const auto subtract = [&](int64_t k, T weight) __attribute__((always_inline)) {
      if (begin <= k && k < end) out[k - begin] -= weight * row.cotangent;
    };
    subtract(row.label_id, row.label);
    subtract(row.blank_id, row.blank);
  }
}

// The same, of at most kCapacity elements.
template <class In, class Out, class RowOf>
JAX_RNNT_INLINE void gradient_of_rows(const In* x, int64_t rows, int64_t begin, int64_t end,
                                      RowOf row_of, const In* ahead, const RowReader<In>& read,
                                      Out* out, const Out* limit) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  if constexpr (sizeof(Out) == sizeof(T)) {
    unrounded_gradient_of_rows(x, rows, begin, end, row_of, ahead, read, out, limit);
  } else {
    alignas(JAX_RNNT_VECTOR_BYTES) T unrounded[StreamWriter<Out>::kCapacity + L];
    unrounded_gradient_of_rows(x, rows, begin, end, row_of, ahead, read, unrounded,
                               unrounded + StreamWriter<Out>::kCapacity + L);
    const int64_t size = rows * (end - begin);
    int64_t i = 0;
    for (; i + L <= size; i += L) store_lanes(out + i, load<Vec<T>>(unrounded + i));
    if (i < size) store_last(out + i, load<Vec<T>>(unrounded + i), size - i, limit);
  }
}

// The gradient of consecutive rows. `label_of` gives a row's label, or -1.
template <bool kHat, bool kClamp, class In, class Out, class LabelOf, class CotangentOf>
JAX_RNNT_INLINE void arcs_backward_rows(const ArcsBackward& p, int64_t begin, int64_t end,
                                        LabelOf label_of, CotangentOf cotangent_of,
                                        const RowReader<In>& read, RowsAhead<In>& ahead,
                                        StreamWriter<Out>& writer) {
  using T = Accumulator<In>;
  constexpr int64_t kPiece = StreamWriter<Out>::kCapacity;
  const int64_t V = p.classes;
  const In* logits = static_cast<const In*>(p.logits);
  const RowWeights<T> weights = row_weights<T>(p);
  const auto row_gradient = [&](int64_t row) __attribute__((always_inline)) {
    const T label = weights.label[row];
    RowGradient<T> of{
        .blank = weights.blank[row],
        .label = label,
        .denominator = weights.denominators[row],
        .cotangent = cotangent_of(row),
        .clamp = T(p.clamp),
        .blank_id = p.blank_id,
        // Without weight there is no label here, but padding, which may well equal blank.
        .label_id = label != 0 ? label_of(row) : -1,
        .hat_blank = 0,
    };
    if (kHat) {
      const T blank_score = load_scalar(logits + row * V + p.blank_id);
      of.hat_blank = gradient_of_hat_blank<T>(blank_score, of.blank, of.label);
    }
    return of;
  };
  const bool end_to_end =
      !kHat && !kClamp && p.normalization == Normalization::kSoftmax && V >= kLanes<T>;
  // Classes [from, to) of some rows; all classes, if there are several rows.
  const auto write = [&](int64_t row, int64_t rows, int64_t from, int64_t to, auto row_of,
                         Out* out) __attribute__((always_inline)) {
    const In* x = logits + row * V;
    const In* next = ahead.advance(x + from, rows * (to - from));
    if (end_to_end) {
      gradient_of_rows(x, rows, from, to, row_of, next, read, out, writer.limit());
      return;
    }
    for (int64_t r = 0; r < rows; ++r, x += V, next += V, out += V) {
      if (p.normalization == Normalization::kNone) {
        gradient_of_log_probs(from, to, row_of(r), out);
      } else {
        gradient_of_classes<kHat, kClamp>(x, from, to, row_of(r), next, read, out, writer.limit());
      }
    }
  };
  for (int64_t row = begin;;) {
    const int64_t live = weights.first_live(row, end);
    writer.zeros((live - row) * V);
    row = live;
    if (row == end) return;
    if (const int64_t most = kPiece / V; most > 0) {
      const int64_t stop = weights.first_dead(row, end - row < most ? end : row + most);
      Out* out = writer.next((stop - row) * V);
      write(row, stop - row, 0, V, [&](int64_t r) { return row_gradient(row + r); }, out);
      writer.add((stop - row) * V);
      row = stop;
    } else {
      // Once: in place, the score of blank is gone after the first piece.
      const RowGradient<T> of = row_gradient(row);
      for (int64_t from = 0; from < V; from += kPiece) {
        const int64_t to = V - from < kPiece ? V : from + kPiece;
        write(row, 1, from, to, [&](int64_t) { return of; }, writer.next(to - from));
        writer.add(to - from);
      }
      ++row;
    }
  }
}

// Whether there is a gradient in `Out` of logits in `In`.
template <class In, class Out>
constexpr bool kIsGradientType =
    std::is_same_v<In, Out> || (std::is_same_v<In, float> && sizeof(Out) == 2);

// Frames [begin, end) of all utterances, one after another.
template <bool kHat, bool kClamp, class In, class Out>
void arcs_backward_frames(const ArcsBackward& p, int64_t begin, int64_t end) {
  using T = Accumulator<In>;
  const int64_t frame_elements = p.cells * p.classes;
  Out* const gradient = static_cast<Out*>(p.gradient);
  // Not beyond these frames: in place, others may be written at the same time.
  const RowReader<In> read{static_cast<const In*>(p.logits) + end * frame_elements};
  const bool large = p.batch * p.frames * frame_elements * int64_t(sizeof(Out)) > kMostCached;
  // Not streamed in place, where the lines are in the cache: they have just been read.
  const Writing how = p.gradient == p.logits ? Writing::kInPlace
                      : large                ? Writing::kStreamed
                                             : Writing::kDirect;
  // Log-probabilities are not read again.
  const int64_t read_from = p.normalization == Normalization::kNone ? end : begin;
  RowsAhead<In> ahead(static_cast<const In*>(p.logits), p.classes, row_weights<T>(p),
                      read_from * p.cells, end * p.cells);
  StreamWriter<Out> writer(gradient + begin * frame_elements, gradient + end * frame_elements, how);
  const T* cotangents = static_cast<const T*>(p.cotangents);
  if (p.frames == 1 && p.cells == 1 && p.labels_per_utterance == 1) {
    arcs_backward_rows<kHat, kClamp>(
        p, begin, end, [&](int64_t row) { return p.labels[row]; },
        [&](int64_t row) { return cotangents[row]; }, read, ahead, writer);
  } else {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / p.frames, cell = item * p.cells;
      const int32_t* labels = p.labels + b * p.labels_per_utterance;
      arcs_backward_rows<kHat, kClamp>(
          p, cell, cell + p.cells,
          [&](int64_t row) {
            return row - cell < p.labels_per_utterance ? labels[row - cell] : int32_t{-1};
          },
          [&](int64_t) { return cotangents[b]; }, read, ahead, writer);
    }
  }
  writer.finish();
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
