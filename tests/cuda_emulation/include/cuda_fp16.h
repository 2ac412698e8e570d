// __half and __half2: storage, conversions and the maximum, no other arithmetic.
#pragma once

#include "cuda_runtime.h"
#include "emulation/small_floats.h"

struct __half {
  unsigned short bits;

  __half() = default;
  __half(float value) : bits(emulation::float_to_half(value)) {}
  operator float() const { return emulation::half_to_float(bits); }
};

struct alignas(4) __half2 {
  __half x, y;
};

using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }

inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline __half2 __hmax2(__half2 x, __half2 y) {
  x.x.bits = emulation::larger16(x.x.bits, y.x.bits, 0x7c00);
  x.y.bits = emulation::larger16(x.y.bits, y.y.bits, 0x7c00);
  return x;
}
