// float to and from 16-bit floating point, in integer arithmetic: the processor may flush
// subnormals.
#pragma once

#include <bit>
#include <cstdint>

namespace emulation {

// x / 2^shift, rounded to the nearest integer, ties to even.
constexpr uint32_t round_shift(uint32_t x, int shift) {
  const uint32_t below_half = (1u << (shift - 1)) - 1;
  return (x + below_half + (x >> shift & 1)) >> shift;
}

inline constexpr uint16_t kNan16 = 0x7fff;  // what CUDA's conversions make of every NaN

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return kNan16;
  return uint16_t((bits >> 16 & 0x8000) | round_shift(magnitude, 16));
}

inline float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

inline uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = bits >> 16 & 0x8000;
  const int exponent = int(magnitude >> 23);
  if (magnitude > 0x7f800000) return kNan16;
  if (exponent >= 143) return sign | 0x7c00;  // 2^16 and more
  if (exponent >= 113) return sign | uint16_t(round_shift(magnitude - (112u << 23), 13));
  // The result is a multiple of 2^-24, the smallest subnormal.
  if (exponent < 102) return sign;
  return sign | uint16_t(round_shift((magnitude & 0x7fffff) | 0x800000, 126 - exponent));
}

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  uint32_t exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) {
    if (fraction == 0) return std::bit_cast<float>(sign);
    const int shift = std::countl_zero(fraction) - 21;  // brings the leading one to bit 10
    fraction = fraction << shift & 0x3ff;
    exponent = uint32_t(1 - shift);
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// The larger of two, and +0 of two zeros; a NaN only of two. Subnormals count, flushed or not.
inline uint16_t larger16(uint16_t x, uint16_t y, uint16_t infinity) {
  const auto rank = [&](uint16_t bits) {
    const int magnitude = bits & 0x7fff;
    if (magnitude > infinity) return -0x10000;
    return bits & 0x8000 ? -1 - magnitude : magnitude;
  };
  if (rank(x) == -0x10000 && rank(y) == -0x10000) return kNan16;
  return rank(x) > rank(y) ? x : y;
}

}  // namespace emulation
