// Maxima and sums of exponentials over the classes of rows of logits.
#pragma once

#include "elementary.h"
#include "storage.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// The rows of one frame, and how to touch vectors of them. The last vector of a row may reach into
// what follows: reads are masked, and stores only ever spill into rows that are written later.
template <class In>
struct RowReader {
  using T = Accumulator<In>;
  const In* buffer_end;  // of the logits that may be read

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

  // A long row: block by block, a reference and sums per lane, so that every logit is read once,
  // and memory while exponentials are computed. The reference is the maximum of the first block
  // until an element exceeds it by more than kSlack: of most rows, never. A sum's terms are as
  // exact.
  constexpr T kSlack = 4;
  constexpr int64_t kAhead = (1 << 14) / sizeof(In);

  Vec<T> sums[2] = {};
  const auto add_block = [&](const auto& block) __attribute__((always_inline)) {
    constexpr int kSize = sizeof(block) / sizeof(Vec<T>);
    Vec<T> block_max = block[0];
    for (int k = 1; k < kSize; ++k) block_max = block[k] > block_max ? block[k] : block_max;
    if (any<T>(block_max - max > kSlack)) {
      const Vec<T> new_max = block_max > max ? block_max : max;
      const Vec<T> scale = exp_nonpositive<T>(max - new_max);
      for (Vec<T>& sum : sums) sum *= scale;
      max = new_max;
    }
    for (int k = 0; k < kSize; ++k) sums[k % 2] += exp_nonpositive<T>(block[k] - max);
  };
  const auto next = [&](int64_t i) __attribute__((always_inline)) {
    prefetch(x, i + kAhead);
    return vector(i);
  };
  int64_t i = 0;
  for (; i + kBlock * L <= V; i += kBlock * L) {
    Vec<T> block[kBlock];
    for (int k = 0; k < kBlock; ++k) block[k] = next(i + k * L);
    add_block(block);
  }
  for (; i + 2 * L <= V; i += 2 * L) {
    const Vec<T> block[2] = {next(i), next(i + L)};
    add_block(block);
  }
  if (i < V) {
    const Vec<T> block[2] = {i < full ? next(i) : minus_inf, rest != 0 ? tail() : minus_inf};
    add_block(block);
  }
  const Vec<T> row_max = max_of_lanes<T>(max);
  sum = (sums[0] + sums[1]) * exp_nonpositive<T>(max - row_max);
  return {row_max[0], sum_of_lanes<T>(sum)[0]};
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
  const auto plus = [](Vec<T> a, Vec<T> b) __attribute__((always_inline)) { return a + b; };
  const auto for_each_row = [&](T* out, auto combine, auto of_row) __attribute__((always_inline)) {
    // The last group may take rows again that the one before it took.
    for (int64_t r = 0; r < rows; r += L) {
      const int64_t first = r + L <= rows ? r : rows - L;
      store(out + first, reduce_each<T>(combine, [&](int i) __attribute__((always_inline)) {
              return of_row(x + (first + i) * V, first + i);
            }));
    }
  };
  for_each_row(max_out, larger, [&](const In* row, int64_t) __attribute__((always_inline)) {
    Vec<T> max = larger(last(row), lowest);
    for (int64_t i = 0; i < full; i += L) max = larger(vector(row, i), max);
    return max;
  });
  for_each_row(sum_out, plus, [&](const In* row, int64_t r) __attribute__((always_inline)) {
    const Vec<T> max = bits<Vec<T>>(IntVec<T>{} + bits<Int<T>>(max_out[r]));
    prefetch(row, full + kRowsAhead * V);
    Vec<T> sum = exp_nonpositive<T>(last(row) - max);
    for (int64_t i = 0; i < full; i += L) {
      prefetch(row, i + kRowsAhead * V);
      sum += exp_nonpositive<T>(vector(row, i) - max);
    }
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
    if (together >= L) {
      const auto of_short_rows = vectors == 1   ? log_sum_exp_of_short_rows<kSkip, 0, In>
                                 : vectors == 2 ? log_sum_exp_of_short_rows<kSkip, 1, In>
                                 : vectors == 4 ? log_sum_exp_of_short_rows<kSkip, 3, In>
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
