// Probabilities as mantissa * 2^exponent, as in cpp/extended.h, one number at a time.
#pragma once

#include "../cpp/kernels.h"
#include "device.h"

namespace jax_rnnt::cuda {

template <class T>
using Exponent = typename Constants<T>::Int;

template <class T>
struct alignas(2 * sizeof(T)) Extended {
  T mantissa;
  Exponent<T> exponent;
};

// Exponent of zeros, and the lowest there is: what falls below becomes zero. Sums of two of them,
// less what exponents change between two renormalisations, do not overflow.
template <class T>
inline constexpr Exponent<T> kDead = -(Exponent<T>{3} << (sizeof(T) * 8 - 4));

template <class T>
__device__ __forceinline__ Extended<T> dead() {
  return {T(0), kDead<T>};
}

__device__ __forceinline__ float from_bits(int32_t x) { return __int_as_float(x); }
__device__ __forceinline__ double from_bits(int64_t x) { return __longlong_as_double(x); }
__device__ __forceinline__ int32_t to_bits(float x) { return __float_as_int(x); }
__device__ __forceinline__ int64_t to_bits(double x) { return __double_as_longlong(x); }

__device__ __forceinline__ float exp2_of(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }
__device__ __forceinline__ int32_t round_of(float x) { return __float2int_rn(x); }
__device__ __forceinline__ int64_t round_of(double x) { return __double2ll_rn(x); }
__device__ __forceinline__ float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double multiply_add(double x, double y, double z) {
  return fma(x, y, z);
}

// 2^n, with 0 for n <= -bias; n must not exceed the largest exponent of T.
template <class T>
__device__ __forceinline__ T exp2_int(Exponent<T> n) {
  using C = Constants<T>;
  return from_bits((larger(n, Exponent<T>(-C::kExponentBias)) + C::kExponentBias)
                   << C::kMantissaBits);
}

template <class T>
__device__ __forceinline__ Extended<T> multiply(Extended<T> x, Extended<T> y) {
  return {x.mantissa * y.mantissa, x.exponent + y.exponent};
}

template <class T>
__device__ __forceinline__ Extended<T> add(Extended<T> x, Extended<T> y) {
  const Exponent<T> top = larger(x.exponent, y.exponent);
  const T sum =
      x.mantissa * exp2_int<T>(x.exponent - top) + y.mantissa * exp2_int<T>(y.exponent - top);
  // A zero must not keep a high exponent: it would push its neighbours' mantissas out of range.
  return {sum, sum == T(0) ? kDead<T> : top};
}

// exp(x) of an arc's log-probability. Forbidden arcs give 0, as do those that are not `live`,
// whatever their x; NaN and excessive ones give a NaN mantissa.
// Without branches: one arc's instructions fill the time that another's take.
template <class T>
__device__ __forceinline__ Extended<T> exp_extended(T x, bool live = true) {
  using C = Constants<T>;
  const bool forbidden = !live || x < T(kForbidden), bad = !(x <= T(kExcessive));
  const T inside = min(max(x, T(kForbidden)), T(kExcessive));  // of NaN: kForbidden
  // The product with log2(e) in two parts: rounded once, it would be off by x 2^-24.
  const Exponent<T> n = round_of(inside * C::kLog2e);
  const T rest = multiply_add(inside, C::kLog2eLow, multiply_add(inside, C::kLog2e, -T(n)));
  const T mantissa = bad ? not_a_number<T>() : exp2_of(rest);
  return {forbidden ? T(0) : mantissa, forbidden ? kDead<T> : n};
}

// With the mantissa in [1, 2), unless it is zero or NaN.
template <class T>
__device__ __forceinline__ Extended<T> normalised(Extended<T> x) {
  using C = Constants<T>;
  const Exponent<T> shift = (to_bits(x.mantissa) >> C::kMantissaBits) - C::kExponentBias;
  const bool live = shift > -C::kExponentBias && shift <= C::kExponentBias;
  if (!live) return x;
  return {x.mantissa * exp2_int<T>(-shift), x.exponent + shift};
}

// x * 2^-exponent, where what falls out of range becomes zero (and a NaN stays one).
template <class T>
__device__ __forceinline__ Extended<T> relative_to(Extended<T> x, Exponent<T> exponent) {
  x.exponent -= exponent;
  if (x.exponent < kDead<T>) x.mantissa *= T(0);
  if (x.mantissa == T(0) || x.exponent < kDead<T>) x.exponent = kDead<T>;
  return x;
}

}  // namespace jax_rnnt::cuda
