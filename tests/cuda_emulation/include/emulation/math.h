// Device functions on numbers that are not in <cmath>. The approximate ones have errors of about
// the documented size, so that tolerances are tried.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace emulation {

// ex2.approx has a relative error up to 2^-22: drop the last bit. Powers of two stay exact.
inline float exp2_approx(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(exp2f(x)) & ~1u);
}

// lg2.approx has an absolute error up to 2^-22 near 1, and a relative one elsewhere.
inline float log2_approx(float x) {
  const float y = log2f(x);
  return 0.5f < x && x < 2.0f ? std::floor(y * 0x1p22f) * 0x1p-22f : y;
}

}  // namespace emulation

// glibc's <math.h> declares some of these names, for functions that it does not have.
extern "C" {
inline float __expf(float x) noexcept { return emulation::exp2_approx(x * 1.442695041f); }
inline float __exp10f(float x) noexcept { return emulation::exp2_approx(x * 3.321928094f); }
inline float __log2f(float x) noexcept { return emulation::log2_approx(x); }
inline float __logf(float x) noexcept { return emulation::log2_approx(x) * 0.6931471806f; }
}

// Large divisors give 0, as documented.
inline float __fdividef(float x, float y) {
  if (0x1p126f < std::fabs(y) && !std::isinf(y)) return std::isinf(x) || x != x ? NAN : x * 0.0f;
  return x / y;
}
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __drcp_rn(double x) { return 1.0 / x; }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __double2hiint(double x) { return int(std::bit_cast<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return int(std::bit_cast<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}

namespace emulation {

// Conversions to integers saturate, and NaN becomes 0.
template <class Integer, class Float>
Integer to_integer(Float x) {
  using Limits = std::numeric_limits<Integer>;
  if (x != x) return 0;
  if (x <= Float(Limits::min())) return Limits::min();
  if (x >= Float(Limits::max())) return Limits::max();
  return Integer(x);
}

}  // namespace emulation

inline int __float2int_rn(float x) { return emulation::to_integer<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return emulation::to_integer<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return emulation::to_integer<int>(std::ceil(x)); }
inline int __float2int_rz(float x) { return emulation::to_integer<int>(std::trunc(x)); }
inline int __double2int_rn(double x) { return emulation::to_integer<int>(std::nearbyint(x)); }
inline long long __double2ll_rn(double x) {
  return emulation::to_integer<long long>(std::nearbyint(x));
}
inline float __int2float_rn(int x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}

#define EMULATION_MIN_MAX(type)                                \
  constexpr type min(type x, type y) { return y < x ? y : x; } \
  constexpr type max(type x, type y) { return x < y ? y : x; }
EMULATION_MIN_MAX(int)
EMULATION_MIN_MAX(unsigned)
EMULATION_MIN_MAX(long)
EMULATION_MIN_MAX(unsigned long)
EMULATION_MIN_MAX(long long)
EMULATION_MIN_MAX(unsigned long long)
#undef EMULATION_MIN_MAX
inline float min(float x, float y) { return std::fmin(x, y); }
inline float max(float x, float y) { return std::fmax(x, y); }
inline double min(double x, double y) { return std::fmin(x, y); }
inline double max(double x, double y) { return std::fmax(x, y); }
