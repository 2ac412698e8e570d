// Arcs: scores -> log-probabilities of the blank and the label arc of every cell, in one pass over
// the logits. Rows outside an utterance's bounds are not read.
#pragma once

#include "kernels.h"
#include "log_sum_exp.h"
#include "storage.h"

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
  if (range.begin < range.end && range.end > bounds.label_end) {
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

}  // namespace jax_rnnt::JAX_RNNT_TARGET
