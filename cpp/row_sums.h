// Sums of rows by their numbers: the gradient of taking rows of an array.
#pragma once

#include "kernels.h"
#include "storage.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Columns that are summed at a time: their sums stay in the first cache.
inline constexpr int64_t kSummedColumns = 1024;

template <class In>
JAX_RNNT_INLINE void add_row(const In* row, int64_t columns, Accumulator<In>* sums) {
  using T = Accumulator<In>;
  int64_t c = 0;
  for (; c + kLanes<T> <= columns; c += kLanes<T>) {
    store(sums + c, load<Vec<T>>(sums + c) + load_lanes(row + c));
  }
  for (; c < columns; ++c) sums[c] += load_scalar(row + c);
}

// One sum, that of the rows of its number in their order.
template <class In>
void row_sum(const RowSums& p, int64_t item) {
  using T = Accumulator<In>;
  constexpr int64_t L = kLanes<float>;
  const int64_t b = item / p.sums_per_batch;
  const int32_t number = int32_t(item - b * p.sums_per_batch);
  const int32_t* numbers = p.numbers + b * p.rows;
  for (int64_t begin = 0; begin < p.columns; begin += kSummedColumns) {
    const int64_t columns = p.columns - begin < kSummedColumns ? p.columns - begin : kSummedColumns;
    const In* rows = static_cast<const In*>(p.values) + b * p.rows * p.columns + begin;
    T sums[kSummedColumns];
    for (int64_t c = 0; c < columns; ++c) sums[c] = 0;
    for (int64_t n = 0; n < p.rows; n += L) {
      const int64_t here = p.rows - n < L ? p.rows - n : L;
      if (here == L && !any<float>(load<IntVec<float>>(numbers + n) == number)) continue;
      for (int64_t i = n; i < n + here; ++i) {
        if (numbers[i] == number) add_row(rows + i * p.columns, columns, sums);
      }
    }
    In* to = static_cast<In*>(p.sums) + item * p.columns + begin;
    int64_t c = 0;
    for (; c + kLanes<T> <= columns; c += kLanes<T>) store_lanes(to + c, load<Vec<T>>(sums + c));
    for (; c < columns; ++c) store_scalar(to + c, sums[c]);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
