// Sums of rows by their numbers: the gradient of taking rows of an array.
#pragma once

#include "kernels.h"
#include "storage.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Elements that are summed at a time: they stay in the first cache.
inline constexpr int64_t kSummedAtATime = 4096;

template <class In>
JAX_RNNT_INLINE void add_row(const In* row, int64_t columns, Accumulator<In>* sums) {
  using T = Accumulator<In>;
  int64_t c = 0;
  for (; c + kLanes<T> <= columns; c += kLanes<T>) {
    store(sums + c, load<Vec<T>>(sums + c) + load_lanes(row + c));
  }
  for (; c < columns; ++c) sums[c] += load_scalar(row + c);
}

// `count` columns from `column` on of `many` sums from that of `number` on, each of the rows of its
// number in their order.
template <class In>
void sum_columns(const RowSums& p, int64_t b, int64_t number, int64_t many, int64_t column,
                 int64_t count) {
  using T = Accumulator<In>;
  constexpr int64_t L = kLanes<float>;
  const int32_t* numbers = p.numbers + b * p.rows;
  const In* rows = static_cast<const In*>(p.values) + b * p.rows * p.columns + column;
  const auto is_among = [&](auto n) __attribute__((always_inline)) {
    return (n >= int32_t(number)) & (n < int32_t(number + many));
  };
  T sums[kSummedAtATime];
  for (int64_t i = 0; i < many * count; ++i) sums[i] = 0;
  for (int64_t n = 0; n < p.rows; n += L) {
    const int64_t here = p.rows - n < L ? p.rows - n : L;
    if (here == L && !any<float>(is_among(load<IntVec<float>>(numbers + n)))) continue;
    for (int64_t i = n; i < n + here; ++i) {
      if (!is_among(numbers[i])) continue;
      add_row(rows + i * p.columns, count, sums + (numbers[i] - number) * count);
    }
  }
  In* to = static_cast<In*>(p.sums) + (b * p.sums_per_batch + number) * p.columns + column;
  for (const T* from = sums; from < sums + many * count; from += count, to += p.columns) {
    int64_t c = 0;
    for (; c + kLanes<T> <= count; c += kLanes<T>) store_lanes(to + c, load<Vec<T>>(from + c));
    for (; c < count; ++c) store_scalar(to + c, from[c]);
  }
}

// The sums [begin, end) of all batches, one after another.
template <class In>
void sum_rows(const RowSums& p, int64_t begin, int64_t end) {
  if (p.columns == 0) return;
  const int64_t most_columns = p.columns < kSummedAtATime ? p.columns : kSummedAtATime;
  for (int64_t item = begin, many; item < end; item += many) {
    const int64_t b = item / p.sums_per_batch, number = item - b * p.sums_per_batch;
    many = kSummedAtATime / most_columns;  // numbers are read once for all of them
    if (many > end - item) many = end - item;
    if (many > p.sums_per_batch - number) many = p.sums_per_batch - number;
    for (int64_t column = 0; column < p.columns; column += most_columns) {
      const int64_t rest = p.columns - column;
      sum_columns<In>(p, b, number, many, column, rest < most_columns ? rest : most_columns);
    }
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
