// Elementary functions of vectors.
#pragma once

#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// exp(r) for |r| <= ln(2)/2: minimax polynomials of the relative error, 1.9e-9 (float) and 3.1e-18
// (double) before rounding.
JAX_RNNT_INLINE Vec<float> exp_reduced(Vec<float> r) {
  Vec<float> p = broadcast<float>(0.0013836794166131717975f);
  p = p * r + 0.0083748570487936426061f;
  p = p * r + 0.041668228679853750789f;
  p = p * r + 0.16666419680857871919f;
  p = p * r + 0.49999992056119701231f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}

JAX_RNNT_INLINE Vec<double> exp_reduced(Vec<double> r) {
  Vec<double> p = broadcast<double>(2.499425709266684349e-8);
  p = p * r + 2.7632367970425102655e-7;
  p = p * r + 2.7557623105475205444e-6;
  p = p * r + 2.4801486320738795558e-5;
  p = p * r + 1.9841269431490030315e-4;
  p = p * r + 1.3888888951410092322e-3;
  p = p * r + 8.3333333335601570798e-3;
  p = p * r + 4.1666666666492075491e-2;
  p = p * r + 0.16666666666666166211;
  p = p * r + 0.50000000000000177735;
  p = p * r + 1.0;
  return p * r + 1.0;
}

// 2^n for integer n, with 0 for n <= -bias; n must not exceed the largest exponent of T.
template <class T>
JAX_RNNT_INLINE Vec<T> exp2_int(IntVec<T> n) {
  const IntVec<T> floor = IntVec<T>{} - Traits<T>::kExponentBias;
  n = n < floor ? floor : n;
  return bits<Vec<T>>((n + Traits<T>::kExponentBias) << Traits<T>::kMantissaBits);
}

template <class T>
struct RangeReduced {
  Vec<T> remainder;  // x - quotient * ln 2, within +-ln(2)/2
  IntVec<T> quotient;
};

// For all log-probabilities that count, down to -1e7: such small probabilities are still compared
// with each other.
JAX_RNNT_INLINE RangeReduced<float> reduce_by_ln2(Vec<float> x) {
  using C = Traits<float>;
  // Adding a large number, as below, would round to integers below 2^22 alone.
  const IntVec<float> quotient = nearest(x * C::kLog2e);
  const Vec<float> n = __builtin_convertvector(quotient, Vec<float>);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return {(x - n * C::kLn2High) - n * C::kLn2Low, quotient};
#else
  // Two parts of the quotient, of 12 bits each, whose products with few bits are exact, as are the
  // differences: the upper part is 0 for small quotients.
  const Vec<float> upper = __builtin_convertvector((quotient + 0x800) & ~0xfff, Vec<float>);
  const Vec<float> lower = n - upper;
  Vec<float> rest = (x - upper * C::kLn2High) - lower * C::kLn2High;
  rest = (rest - upper * C::kLn2Middle) - lower * C::kLn2Middle;
  return {rest - n * C::kLn2Rest, quotient};
#endif
}

JAX_RNNT_INLINE RangeReduced<double> reduce_by_ln2(Vec<double> x) {
  using C = Traits<double>;
  // Below AVX-512 no instruction makes integers of doubles: they are the low bits of `shifted`.
  const Vec<double> shifted = x * C::kLog2e + C::kRoundingMagic;
  const Vec<double> n = shifted - C::kRoundingMagic;
  const IntVec<double> magic = bits<IntVec<double>>(broadcast<double>(C::kRoundingMagic));
  return {(x - n * C::kLn2High) - n * C::kLn2Low, bits<IntVec<double>>(shifted) - magic};
}

// exp(x) for x that is not far above 0, the size of rounding: exp(-inf) = 0, NaN stays NaN; results
// below the smallest normal number may be 0. Within 1 ULP in float where the instruction set has
// FMA, and with AVX-512 within 1.3 + 2/3 |x|, whose second part is less than a quarter of an ULP of
// the largest term, exp(0), of the sums that it is used for.
//
// AVX-512 has instructions for the fraction of 2^x and for its scale, of any x. Elsewhere, the
// multiple of ln 2 is rounded to an integer that already has the exponent's bias and whose low bits
// are the exponent of the scale; and the bound is hidden from the compiler, since GCC makes two or
// three instructions of a maximum that has a constant operand.
template <class T>
JAX_RNNT_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  using C = Traits<T>;
#if defined(__AVX512DQ__) && JAX_RNNT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    // 2^r for r in [0, 1): the minimax polynomial of the relative error, 8.2e-8, that is 1 at 0.
    // Without a mask, GCC 12 takes what these begin with for an uninitialised variable.
    constexpr __mmask16 kAll = 0xffff;
    const Vec<float> base2 = x * C::kLog2e;
    const Vec<float> r =
        bits<Vec<float>>(_mm512_maskz_reduce_ps(kAll, bits<__m512>(base2), _MM_FROUND_TO_NEG_INF));
    Vec<float> p = broadcast<float>(0.00186713008191f);
    p = p * r + 0.00901703028444f;
    p = p * r + 0.055799913146f;
    p = p * r + 0.240164450136f;
    p = p * r + 0.693151311808f;
    p = p * r + 1.0f;
    return bits<Vec<float>>(_mm512_maskz_scalef_ps(kAll, bits<__m512>(p), bits<__m512>(base2)));
  }
#endif
  constexpr T kMagic = C::kRoundingMagic + C::kExponentBias;
  Int<T> underflow_bits = bits<Int<T>>(T(-C::kExponentBias) / C::kLog2e);
  __asm__("" : "+r"(underflow_bits));
  const Vec<T> underflow = bits<Vec<T>>(IntVec<T>{} + underflow_bits);
  x = underflow > x ? underflow : x;  // NaN stays
  const Vec<T> shifted = x * C::kLog2e + kMagic;
  const Vec<T> n = shifted - kMagic;
  const Vec<T> scale = bits<Vec<T>>(bits<IntVec<T>>(shifted) << C::kMantissaBits);
  return exp_reduced((x - n * C::kLn2High) - n * C::kLn2Low) * scale;
}

// log(x) for finite normal x > 0; 0 gives -inf, NaN stays NaN. About 1 ULP.
// With x = 2^n f, f in [sqrt(1/2), sqrt(2)), s = (f - 1) / (f + 1):  log f = 2 s (1 + s^2/3 + s^4/5
// + ...).
template <class T>
JAX_RNNT_INLINE Vec<T> log_positive(Vec<T> x) {
  using C = Traits<T>;
  constexpr int kTerms = sizeof(T) == 4 ? 5 : 11;
  const IntVec<T> raw = bits<IntVec<T>>(x);
  const Int<T> sqrt_half = bits<Int<T>>(T(0.70710678118654752440));
  const IntVec<T> n = (raw - sqrt_half) >> C::kMantissaBits;
  const Vec<T> f = bits<Vec<T>>(raw - (n << C::kMantissaBits));
  const Vec<T> s = (f - T(1)) / (f + T(1));
  const Vec<T> z = s * s;
  Vec<T> series = broadcast<T>(T(1) / T(2 * kTerms + 1));
  for (int k = kTerms - 1; k >= 1; --k) series = series * z + T(1) / T(2 * k + 1);
  const Vec<T> log_f = T(2) * s + T(2) * s * z * series;
  const Vec<T> exponent = __builtin_convertvector(n, Vec<T>);
  const Vec<T> result = exponent * C::kLn2High + (log_f + exponent * C::kLn2Low);
  const Vec<T> zero_result = broadcast<T>(-__builtin_inf());
  return x > T(0) ? result : (x == T(0) ? zero_result : x);
}

// log(1 + y) for 0 <= y <= 1; NaN stays NaN. Kahan's correction of the rounding of 1 + y.
template <class T>
JAX_RNNT_INLINE Vec<T> log1p_unit(Vec<T> y) {
  const Vec<T> w = y + T(1);
  const Vec<T> rounded = w - T(1);
  return rounded == T(0) ? y : log_positive<T>(w) * (y / rounded);
}

// log sigmoid(z) = min(z, 0) - log(1 + exp(-|z|)), and that of -z. NaN for +inf, which is bad
// input, not certainty.
template <class T>
struct LogSigmoids {
  Vec<T> of_z, of_minus_z;
};

template <class T>
JAX_RNNT_INLINE LogSigmoids<T> log_sigmoids(Vec<T> z) {
  z = z == T(__builtin_inf()) ? broadcast<T>(T(__builtin_nan(""))) : z;
  const Vec<T> softplus = log1p_unit<T>(exp_nonpositive<T>(z < T(0) ? z : -z));
  return {(z > T(0) ? Vec<T>{} : z) - softplus, (z > T(0) ? -z : Vec<T>{}) - softplus};
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
