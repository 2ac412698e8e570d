// The dtypes of logits, and the float or double that kernels compute in.
#pragma once

#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Storage formats of the logits. `load_lanes` widens kLanes<Accumulator> elements, `store_lanes`
// rounds to nearest even.
struct BFloat16 {
  uint16_t raw;
};
struct Float16 {
  uint16_t raw;
};

template <class In>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class In>
using Accumulator = typename AccumulatorOf<In>::type;

typedef uint16_t Half16Vec __attribute__((vector_size(JAX_RNNT_VECTOR_BYTES / 2)));
typedef uint32_t UInt32Vec __attribute__((vector_size(JAX_RNNT_VECTOR_BYTES)));

// 16 bits widened to 32 with zeros, and the low ones of 32 bits. GCC 12 makes two or three
// instructions of a conversion where AVX-512 has one.
JAX_RNNT_INLINE UInt32Vec widened(Half16Vec v) {
#if defined(__AVX512F__) && JAX_RNNT_VECTOR_BYTES == 64
  return bits<UInt32Vec>(_mm512_maskz_cvtepu16_epi32(0xffff, bits<__m256i>(v)));
#else
  return __builtin_convertvector(v, UInt32Vec);
#endif
}

JAX_RNNT_INLINE Half16Vec narrowed(UInt32Vec v) {
#if defined(__AVX512F__) && JAX_RNNT_VECTOR_BYTES == 64
  return bits<Half16Vec>(_mm512_maskz_cvtepi32_epi16(0xffff, bits<__m512i>(v)));
#else
  return __builtin_convertvector(v, Half16Vec);
#endif
}

JAX_RNNT_INLINE Vec<float> load_lanes(const float* p) { return load<Vec<float>>(p); }
JAX_RNNT_INLINE Vec<double> load_lanes(const double* p) { return load<Vec<double>>(p); }

JAX_RNNT_INLINE Vec<float> load_lanes(const BFloat16* p) {
  return bits<Vec<float>>(widened(load<Half16Vec>(p)) << 16);
}

JAX_RNNT_INLINE Vec<float> load_lanes(const Float16* p) {
  const UInt32Vec half = widened(load<Half16Vec>(p));
  const UInt32Vec sign = (half & 0x8000u) << 16;
  const UInt32Vec magnitude = half & 0x7fffu;
  const UInt32Vec normal = (magnitude << 13) + ((127u - 15u) << 23);
  const UInt32Vec inf_or_nan = (magnitude << 13) | 0x7f800000u;
  // Subnormal halves are small integers times 2^-24; this is exact also when denormals are flushed.
  const UInt32Vec subnormal = bits<UInt32Vec>(
      __builtin_convertvector(bits<IntVec<float>>(magnitude), Vec<float>) * 5.9604644775390625e-8f);
  const UInt32Vec finite = magnitude < 0x0400u ? subnormal : normal;
  return bits<Vec<float>>((magnitude >= 0x7c00u ? inf_or_nan : finite) | sign);
}

JAX_RNNT_INLINE void store_lanes(float* p, Vec<float> v) { store(p, v); }
JAX_RNNT_INLINE void store_lanes(double* p, Vec<double> v) { store(p, v); }

JAX_RNNT_INLINE void store_lanes(BFloat16* p, Vec<float> v) {
  const UInt32Vec raw = bits<UInt32Vec>(v);
  const UInt32Vec rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
  const UInt32Vec nan = (raw >> 16) | 0x0040u;
  const UInt32Vec is_nan = bits<UInt32Vec>(v != v);
  store(p, narrowed((is_nan & nan) | (~is_nan & rounded)));
}

JAX_RNNT_INLINE void store_lanes(Float16* p, Vec<float> v) {
  const UInt32Vec raw = bits<UInt32Vec>(v);
  const UInt32Vec sign = (raw >> 16) & 0x8000u;
  const UInt32Vec magnitude = raw & 0x7fffffffu;
  const UInt32Vec rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
  const UInt32Vec normal = (rounded - ((127u - 15u) << 23)) >> 13;
  // Below the normal halves: adding 0.5 lets the hardware round at the subnormal's last bit, 2^-24.
  const UInt32Vec half_one = bits<UInt32Vec>(broadcast<float>(0.5f));
  const UInt32Vec subnormal = bits<UInt32Vec>(bits<Vec<float>>(magnitude) + 0.5f) - half_one;
  UInt32Vec half = magnitude < (113u << 23) ? subnormal : normal;
  half = rounded >= (143u << 23) ? (UInt32Vec{} + 0x7c00u) : half;
  half = magnitude > 0x7f800000u ? (UInt32Vec{} + 0x7e00u) : half;
  store(p, narrowed(half | sign));
}

JAX_RNNT_INLINE float load_scalar(const float* p) { return *p; }
JAX_RNNT_INLINE double load_scalar(const double* p) { return *p; }
JAX_RNNT_INLINE float load_scalar(const BFloat16* p) { return bits<float>(uint32_t{p->raw} << 16); }
JAX_RNNT_INLINE float load_scalar(const Float16* p) {
  Float16 lanes[kLanes<float>] = {*p};
  return load_lanes(lanes)[0];
}

JAX_RNNT_INLINE void store_scalar(float* p, float value) { *p = value; }
JAX_RNNT_INLINE void store_scalar(double* p, double value) { *p = value; }
template <class Half>
JAX_RNNT_INLINE void store_scalar(Half* p, float value) {
  Half lanes[kLanes<float>];
  store_lanes(lanes, broadcast<float>(value));
  *p = lanes[0];
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
