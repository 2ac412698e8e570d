// Maxima and sums of exponentials over the classes of rows of logits.
#pragma once

#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Combines the lanes of each of several vectors, all at the same time, in one instruction a vector
// instead of log2(lanes). With as many rows as lanes, lane i of the result is that of rows[i].
template <class T, int Count = kLanes<T>, class Combine>
JAX_RNNT_INLINE Vec<T> reduce_each(const Vec<T> (&rows)[Count], Combine combine) {
  if constexpr (Count == 1) {
    return rows[0];
  } else {
    Vec<T> halves[Count / 2];
    for (int i = 0; i < Count / 2; ++i) {
      halves[i] = combine(LanesOf<T>::template interleaved<0>(rows[i], rows[i + Count / 2]),
                          LanesOf<T>::template interleaved<1>(rows[i], rows[i + Count / 2]));
    }
    return reduce_each<T, Count / 2>(halves, combine);
  }
}

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

// Rows up to this length are taken together: two passes over 64 of them stay in the cache.
constexpr int64_t kShortRow = 128;

// What log_sum_exp() does for a short row, for many at once: what combines lanes, and waits for
// the result, would take longer than the exponentials. `rows` are read in whole vectors,
// kFull + 1 of them a row (-1: any number). Results are stored in whole vectors.
template <bool kSkip, int kFull, class In>
__attribute__((noinline)) void log_sum_exp_of_short_rows(const In* x, int64_t rows, int64_t V,
                                                         int64_t skipped, Accumulator<In>* max_out,
                                                         Accumulator<In>* sum_out) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  constexpr int kCacheLine = 64;
  constexpr int kRowsAhead = 64;
  const int64_t full = kFull >= 0 ? kFull * L : (V - 1) / L * L;
  const IntVec<T> rest = IntVec<T>{} + Int<T>(V - full);
  const Vec<T> minus_inf = broadcast<T>(T(-__builtin_inf()));
  const Vec<T> lowest = broadcast<T>(Traits<T>::kLowest);
  const auto vector = [&](const In* row, int64_t i) __attribute__((always_inline)) {
    Vec<T> v = load_lanes(row + i);
    if constexpr (kSkip) v = lane_index<T>() == Int<T>(skipped - i) ? minus_inf : v;
    return v;
  };
  const auto last = [&](const In* row) __attribute__((always_inline)) {
    return lane_index<T>() < rest ? vector(row, full) : minus_inf;
  };
  const auto larger = [](Vec<T> a, Vec<T> b)
                          __attribute__((always_inline)) { return a > b ? a : b; };
  const auto for_each_row = [&](T* out, auto combine, auto of_row) __attribute__((always_inline)) {
    const In* row = x;
    for (int64_t begin = 0; begin < rows; begin += L) {
      const int64_t count = rows - begin < L ? rows - begin : L;
      Vec<T> lanes[L];
      for (int64_t r = 0; r < count; ++r, row += V) lanes[r] = of_row(row, begin + r);
      for (int64_t r = count; r < L; ++r) lanes[r] = Vec<T>{};
      store(out + begin, reduce_each<T>(lanes, combine));
    }
  };
  for_each_row(max_out, larger, [&](const In* row, int64_t) __attribute__((always_inline)) {
    Vec<T> max = larger(last(row), lowest);
    for (int64_t i = 0; i < full; i += L) max = larger(vector(row, i), max);
    return max;
  });
  const auto sum = [](Vec<T> a, Vec<T> b) __attribute__((always_inline)) { return a + b; };
  for_each_row(sum_out, sum, [&](const In* row, int64_t r) __attribute__((always_inline)) {
    // Nothing new is read while exponentials are computed, and the processor's own prefetching
    // stops. The address may be past the end of all.
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(row) + kRowsAhead * V * sizeof(In);
    for (int64_t i = 0; i < V * int64_t(sizeof(In)); i += kCacheLine) {
      __builtin_prefetch(reinterpret_cast<const void*>(ahead + i));
    }
    const Vec<T> max = bits<Vec<T>>(IntVec<T>{} + bits<Int<T>>(max_out[r]));
    Vec<T> sum = exp_nonpositive<T>(last(row) - max);
    for (int64_t i = 0; i < full; i += L) sum += exp_nonpositive<T>(vector(row, i) - max);
    return sum;
  });
}

// log_sum_exp() of consecutive rows. `max` and `sum` have room for a multiple of kLanes.
template <bool kSkip, class In>
JAX_RNNT_INLINE void log_sum_exp_of_rows(const In* x, int rows, int64_t V, int64_t skipped,
                                         const RowReader<In>& read, Accumulator<In>* max,
                                         Accumulator<In>* sum) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  int64_t together = 0;
  if (V <= kShortRow) {
    const int64_t vectors = (V - 1) / L + 1;
    // Rows whose last vector is inside the buffer.
    together = (read.buffer_end - x - vectors * L + V) / V;
    together = together < rows ? together : rows;
    // A few rows are faster one by one.
    if (together % L <= L / 2) together -= together % L;
    if (together > 0) {
      const auto of_short_rows = vectors == 1   ? log_sum_exp_of_short_rows<kSkip, 0, In>
                                 : vectors == 2 ? log_sum_exp_of_short_rows<kSkip, 1, In>
                                                : log_sum_exp_of_short_rows<kSkip, -1, In>;
      of_short_rows(x, together, V, skipped, max, sum);
    } else {
      together = 0;
    }
  }
  for (int64_t r = together; r < rows; ++r) {
    const LogSumExp<T> total = log_sum_exp<kSkip>(x + r * V, V, skipped, read);
    max[r] = total.max;
    sum[r] = total.sum;
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
