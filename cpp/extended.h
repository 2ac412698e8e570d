// Probabilities as mantissa * 2^exponent, with an integer exponent for each: no rounding that grows
// with the logarithm, and in float 5e8 nats of range below the likeliest of a row.
#pragma once

#include "elementary.h"
#include "lattice_layout.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Exponent of zeros, and the lowest there is: what falls below becomes zero. Sums of two of them,
// less what exponents change between two renormalisations, do not overflow.
template <class T>
constexpr Int<T> kDead = -(Int<T>{3} << (sizeof(T) * 8 - 4));

// Rows of extended-exponent numbers.
template <class T>
struct Row {
  T* mantissa;
  Int<T>* exponent;
};

template <class T>
struct Extended {
  Vec<T> mantissa;
  IntVec<T> exponent;
};

template <class T>
JAX_RNNT_INLINE Extended<T> load_row(Row<T> row, int64_t u) {
  return {load<Vec<T>>(row.mantissa + u), load<IntVec<T>>(row.exponent + u)};
}

template <class T>
JAX_RNNT_INLINE void store_row(Row<T> row, int64_t u, Extended<T> x) {
  store(row.mantissa + u, x.mantissa);
  store(row.exponent + u, x.exponent);
}

template <class T>
JAX_RNNT_INLINE Extended<T> dead() {
  return {Vec<T>{}, IntVec<T>{} + kDead<T>};
}

template <class T>
JAX_RNNT_INLINE Extended<T> multiply(Extended<T> x, Extended<T> y) {
  return {x.mantissa * y.mantissa, x.exponent + y.exponent};
}

template <class T>
JAX_RNNT_INLINE Extended<T> add(Extended<T> x, Extended<T> y) {
  const IntVec<T> top = x.exponent > y.exponent ? x.exponent : y.exponent;
  const Vec<T> sum =
      x.mantissa * exp2_int<T>(x.exponent - top) + y.mantissa * exp2_int<T>(y.exponent - top);
  // A zero must not keep a high exponent: it would push its neighbours' mantissas out of range.
  return {sum, sum == T(0) ? IntVec<T>{} + kDead<T> : top};
}

// exp(x) of an arc's log-probability. Forbidden arcs give 0; NaN and excessive ones a NaN mantissa.
template <class T>
JAX_RNNT_INLINE Extended<T> exp_extended(Vec<T> x) {
  const Vec<T> low = broadcast<T>(T(kForbidden)), high = broadcast<T>(T(kExcessive));
  Vec<T> bounded = x < low ? low : x;
  bounded = bounded < high ? bounded : high;
  const RangeReduced<T> reduced = reduce_by_ln2(bounded);
  Vec<T> mantissa = exp_reduced(reduced.remainder);
  mantissa = x < low ? Vec<T>{} : mantissa;
  mantissa = x <= high ? mantissa : broadcast<T>(T(__builtin_nan("")));
  return {mantissa, x < low ? IntVec<T>{} + kDead<T> : reduced.quotient};
}

// What is out of range becomes zero, or stays NaN.
template <class T>
JAX_RNNT_INLINE Extended<T> in_range(Extended<T> x) {
  const IntVec<T> floor = IntVec<T>{} + kDead<T>;
  const Vec<T> mantissa = x.exponent < floor ? x.mantissa * T(0) : x.mantissa;
  return {mantissa, x.exponent < floor || mantissa == T(0) ? floor : x.exponent};
}

// Mantissas to [1, 2).
template <class T>
JAX_RNNT_INLINE Extended<T> normalised(Extended<T> x) {
  using C = Traits<T>;
  const IntVec<T> raw = bits<IntVec<T>>(x.mantissa);
  IntVec<T> shift = (raw >> C::kMantissaBits) - C::kExponentBias;
  // Not zeros, nor a NaN, whose exponent field is one too large for the shift.
  shift &= (shift > -C::kExponentBias) & (shift <= C::kExponentBias);
  return in_range<T>({bits<Vec<T>>(raw - (shift << C::kMantissaBits)), x.exponent + shift});
}

// alpha * rest in units of the likelihood, where `exponent` is that of the offsets of both less the
// likelihood's.
template <class T>
JAX_RNNT_INLINE Vec<T> posterior(Extended<T> alpha, Extended<T> rest, IntVec<T> exponent) {
  // Floors that keep the sums from overflowing; what reaches them is 0 in any case.
  const IntVec<T> floor = IntVec<T>{} + kDead<T>, first = alpha.exponent + exponent;
  IntVec<T> e = (first < floor ? floor : first) + (rest.exponent < floor ? floor : rest.exponent);
  const IntVec<T> ceiling = IntVec<T>{} + Traits<T>::kExponentBias;
  e = e > ceiling ? ceiling : e;
  return alpha.mantissa * rest.mantissa * exp2_int<T>(e);
}

template <class T>
struct VectorRange {
  int64_t begin, end;  // multiples of a vector
};

// Mantissas to [1, 2), exponents relative to the largest of the row, which is returned (0 for a
// dead row).
template <class T>
Int<T> renormalise(Row<T> row, VectorRange<T> range) {
  using C = Traits<T>;
  const IntVec<T> none = IntVec<T>{} + (Int<T>{1} << (sizeof(T) * 8 - 1));
  IntVec<T> top = none;
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    Extended<T> x = load_row(row, v);
    const IntVec<T> shift = (bits<IntVec<T>>(x.mantissa) >> C::kMantissaBits) - C::kExponentBias;
    // Zeros stay dead; a NaN, whose exponent field is one too large for the shift, stays as it is.
    const IntVec<T> live = (shift > -C::kExponentBias) & (shift <= C::kExponentBias);
    x.mantissa = live ? x.mantissa * exp2_int<T>(-(shift & live)) : x.mantissa;
    x.exponent = x.exponent + (shift & live);
    const IntVec<T> candidate = x.mantissa == T(0) ? none : x.exponent;
    top = candidate > top ? candidate : top;
    store_row(row, v, x);
  }
  const Int<T> largest = max_of_lanes<T>(top)[0];
  const Int<T> max = largest == none[0] ? 0 : largest;
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    Extended<T> x = load_row(row, v);
    const IntVec<T> floor = IntVec<T>{} + kDead<T>, relative = x.exponent - max;
    // Times 0, which keeps a NaN: out of range means no path, not one with another probability.
    x.mantissa = relative < floor ? x.mantissa * T(0) : x.mantissa;
    x.exponent = ((x.mantissa == T(0)) | (relative < floor)) ? floor : relative;
    store_row(row, v, x);
  }
  return max;
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
