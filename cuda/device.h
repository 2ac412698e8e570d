// What the device code shares: storage formats, exponentials, cooperation inside a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace jax_rnnt::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// The dynamic shared memory of a block.
__device__ __forceinline__ unsigned char* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return static_cast<unsigned char*>(emulation::dynamic_shared());
#endif
}

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

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }

template <class T>
struct Constants;

template <>
struct Constants<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Int kExponentBias = 127;
  static constexpr float kInfinity = __builtin_huge_valf();
  static constexpr float kLowest = -3.402823466e38f;
  static constexpr float kLog2e = 1.44269502f;  // kLog2e + kLog2eLow = log2(e) to 48 bits
  static constexpr float kLog2eLow = 1.92596303e-8f;
};

template <>
struct Constants<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Int kExponentBias = 1023;
  static constexpr double kInfinity = __builtin_huge_val();
  static constexpr double kLowest = -1.7976931348623157e308;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLog2eLow = 2.0355273740931033e-17;
};

template <class T>
__device__ __forceinline__ T not_a_number() {
  return T(__builtin_nanf(""));
}

// exp(x), by the hardware's exponential of two: a relative error of about |x| 2^-24. Where it is
// called, x is at most 0, or small enough for that error (the factors of the additive joiner).
__device__ __forceinline__ float exp_nonpositive(float x) {
  return exp2f(x * Constants<float>::kLog2e);
}
__device__ __forceinline__ double exp_nonpositive(double x) { return exp(x); }

__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }

template <class T>
__device__ __forceinline__ T larger(T x, T y) {
  return x > y ? x : y;
}
template <class T>
__device__ __forceinline__ T smaller(T x, T y) {
  return x < y ? x : y;
}

// Combines the values of `kGroup` neighbouring lanes in a fixed order; all of them get the result.
template <int kGroup, class T, class Combine>
__device__ __forceinline__ T reduce_group(T value, Combine combine) {
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
}

}  // namespace jax_rnnt::cuda
