// Rows of scores of the additive joiner, and what both directions do with them.
#pragma once

#include "factored_layout.h"
#include "log_sum_exp.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

template <class T>
constexpr int64_t kClassesOfBlock = kClassBytesOfBlock / int64_t(sizeof(T));

// Rows of one half of the logits.
template <class In>
struct ScoreRows {
  using T = Accumulator<In>;
  const In* data;
  int64_t classes;
  int64_t excluded;  // class that counts as -inf, or -1
  RowReader<In> read;

  ScoreRows(const void* scores, int64_t rows, int64_t classes, int64_t excluded)
      : data(static_cast<const In*>(scores)),
        classes(classes),
        excluded(excluded),
        read{data + rows * classes} {}

  const In* row(int64_t r) const { return data + r * classes; }
  // Classes i, i + 1, ... of a row; -inf for those that there are not.
  JAX_RNNT_INLINE_MEMBER Vec<T> at(const In* row, int64_t i) const {
    const Vec<T> minus_inf = broadcast<T>(T(-__builtin_inf()));
    Vec<T> v;
    if (i + kLanes<T> <= classes) {
      v = read(row + i);
    } else {
      v = lane_index<T>() < Int<T>(classes - i) ? read.partial(row + i, int(classes - i))
                                                : minus_inf;
    }
    return lane_index<T>() == Int<T>(excluded - i) ? minus_inf : v;
  }

  // The largest score; NaN for +inf. NaN scores do not count.
  T top(const In* row) const {
    constexpr int L = kLanes<T>;
    Vec<T> tops[4];
    for (Vec<T>& top : tops) top = broadcast<T>(T(-__builtin_inf()));
    for (int64_t i = 0; i < classes; i += 4 * L) {
      for (int k = 0; k < 4; ++k) {
        if (i + k * L >= classes) break;
        const Vec<T> v = at(row, i + k * L);
        tops[k] = v > tops[k] ? v : tops[k];
      }
    }
    tops[0] = tops[1] > tops[0] ? tops[1] : tops[0];
    tops[2] = tops[3] > tops[2] ? tops[3] : tops[2];
    const T top = max_of_lanes<T>(tops[2] > tops[0] ? tops[2] : tops[0])[0];
    return top == T(__builtin_inf()) ? T(__builtin_nan("")) : top;
  }

  // exp(score - top) for `count` classes from `begin` on, a multiple of the lanes; 0 for those that
  // there are not. Reads ahead what the next block of frames needs.
  void exponentials(const In* row, T top, int64_t begin, int64_t count, T* out) const {
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      prefetch<2>(row, begin + i + kFramesOfBlock * classes);
      store(out + i, exp_nonpositive<T>(at(row, begin + i) - top));
    }
  }
};

template <class T>
JAX_RNNT_INLINE void fill_zeros(T* out, int64_t count) {
  __builtin_memset(out, 0, count * sizeof(T));
}

// A sum of V products of exponentials below this may have lost some that fall below the normal
// numbers, by more than its rounding.
template <class T>
JAX_RNNT_INLINE T smallest_exact_sum(int64_t classes) {
  constexpr bool kFloat = sizeof(T) == 4;
  constexpr T kTinyOverEpsilon = kFloat ? T(0x1p-103) : T(0x1p-970);
  return T(classes) * kTinyOverEpsilon;
}

// The label of a position; the last one has none, and bad ones are no arcs.
JAX_RNNT_INLINE int64_t clipped_label(const int32_t* labels, int64_t count, int64_t u, int64_t V) {
  const int64_t label = u < count ? labels[u] : 0;
  return label < 0 ? 0 : label < V ? label : V - 1;
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
