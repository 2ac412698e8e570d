// Device functions on numbers: 16-bit formats over all their values, bit patterns, approximations.
// Plain CUDA, as selftest.cu.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "selftest.h"

namespace {

__global__ void widen_kernel(const uint16_t* bits, float* half, float* bfloat, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  half[i] = __half2float(reinterpret_cast<const __half*>(bits)[i]);
  bfloat[i] = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bits)[i]);
}

template <class Small, class Pair, bool kBfloat>
__global__ void narrow_kernel(const float* values, uint16_t* bits, uint16_t* pair_bits, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Small one;
  Pair two;
  if constexpr (kBfloat) {
    one = __float2bfloat16_rn(values[i]);
    two = __floats2bfloat162_rn(0.0f, values[i]);
  } else {
    one = __float2half_rn(values[i]);
    two = __floats2half2_rn(0.0f, values[i]);
  }
  memcpy(bits + i, &one, 2);
  memcpy(pair_bits + i, &two.y, 2);
}

// What 16 bits mean, from the definition of the formats. The exponent that is reserved for infinity
// continues the scale, so that rounding to infinity is rounding to the next number.
double value_of(int bits, int fraction_bits, int bias) {
  const int exponent = (bits & 0x7fff) >> fraction_bits, fraction = bits % (1 << fraction_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                    : std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
  return bits & 0x8000 ? -magnitude : magnitude;
}

template <class Small, class Pair, bool kBfloat>
void test_narrowing(int fraction_bits, int bias, int infinity) {
  std::vector<float> values;
  std::vector<uint16_t> expected;
  const auto add = [&](double value, int bits) {
    values.insert(values.end(), {static_cast<float>(value), -static_cast<float>(value)});
    expected.insert(expected.end(), {uint16_t(bits), uint16_t(bits | 0x8000)});
  };
  for (int bits = 0; bits < infinity; ++bits) {
    const double here = value_of(bits, fraction_bits, bias);
    const float middle = static_cast<float>((here + value_of(bits + 1, fraction_bits, bias)) / 2);
    add(here, bits);
    add(middle, bits + bits % 2);
    add(std::nextafter(middle, 0.0f), bits);
    add(std::nextafter(middle, INFINITY), bits + 1);
  }
  add(INFINITY, infinity);
  const size_t n = values.size();
  values.push_back(NAN);
  const Buffer<float> input(values);
  const Buffer<uint16_t> output(n + 1), pairs(n + 1);
  check_success(launch(narrow_kernel<Small, Pair, kBfloat>, static_cast<unsigned>(n / 256 + 1), 256,
                       0, input.data(), output.data(), pairs.data(), static_cast<int>(n + 1)));
  const std::vector<uint16_t> bits = output.read(), pair_bits = pairs.read();
  for (size_t i = 0; i < n; ++i) {
    check(bits[i] == expected[i] && pair_bits[i] == expected[i], "rounding to 16 bits");
  }
  check((bits[n] & 0x7fff) > infinity && (pair_bits[n] & 0x7fff) > infinity, "NaN to 16 bits");
}

void test_conversions() {
  std::vector<uint16_t> bits(65536);
  for (int i = 0; i < 65536; ++i) bits[i] = static_cast<uint16_t>(i);
  const Buffer<uint16_t> input(bits);
  const Buffer<float> half(65536), bfloat(65536);
  check_success(launch(widen_kernel, 256, 256, 0, input.data(), half.data(), bfloat.data(), 65536));
  const auto compare = [](const std::vector<float>& found, int fraction_bits, int bias,
                          int infinity) {
    for (int i = 0; i < 65536; ++i) {
      const int magnitude = i & 0x7fff;
      if (magnitude > infinity) {
        check(std::isnan(found[i]), "NaN from 16 bits");
      } else if (magnitude == infinity) {
        check(found[i] == (i == magnitude ? INFINITY : -INFINITY), "infinity from 16 bits");
      } else {
        check(found[i] == value_of(i, fraction_bits, bias) && std::signbit(found[i]) == (i >> 15),
              "number from 16 bits");
      }
    }
  };
  compare(half.read(), 10, 15, 0x7c00);
  compare(bfloat.read(), 7, 127, 0x7f80);
  test_narrowing<__half, __half2, false>(10, 15, 0x7c00);
  test_narrowing<__nv_bfloat16, __nv_bfloat162, true>(7, 127, 0x7f80);
}

template <class Pair>
__global__ void maximum_kernel(const uint16_t* bits, uint32_t* maxima, int n) {
  const int i = threadIdx.x / n, j = threadIdx.x % n;
  const uint32_t x = bits[i] | uint32_t(bits[j]) << 16, y = bits[j] | uint32_t(bits[i]) << 16;
  Pair pair_x, pair_y;
  memcpy(&pair_x, &x, 4);
  memcpy(&pair_y, &y, 4);
  const Pair larger = __hmax2(pair_x, pair_y);
  memcpy(maxima + threadIdx.x, &larger, 4);
}

// Of numbers in ascending order, and of a NaN, which is one only with itself.
template <class Pair>
void test_maximum(const std::vector<uint16_t>& numbers) {
  std::vector<uint16_t> bits = numbers;
  bits.insert(bits.begin(), 0x7fff);
  const int n = static_cast<int>(bits.size());
  const Buffer<uint16_t> input(bits);
  const Buffer<uint32_t> output(n * n);
  check_success(launch(maximum_kernel<Pair>, 1, n * n, 0, input.data(), output.data(), n));
  const std::vector<uint32_t> maxima = output.read();
  for (int i = 0; i < n * n; ++i) {
    const uint32_t larger = bits[i / n > i % n ? i / n : i % n];
    check(maxima[i] == (larger | larger << 16), "maximum of 16-bit numbers");
  }
}

void test_maxima() {
  test_maximum<__half2>({0xfc00, 0xfbff, 0xbc00, 0x8001, 0x8000, 0, 1, 0x3c00, 0x7bff, 0x7c00});
  test_maximum<__nv_bfloat162>(
      {0xff80, 0xff7f, 0xbf80, 0x8001, 0x8000, 0, 1, 0x3f80, 0x7f7f, 0x7f80});
}

__global__ void math_kernel(const float* x, float* exponentials, float* logarithms, unsigned* bad) {
  const int i = threadIdx.x;
  exponentials[i] = __expf(x[i]);
  logarithms[i] = __logf(x[i]);
  bool good = __ffs(8) == 4 && __popc(0xf0f0u) == 8 && __clz(1) == 31 && __brev(1u) == 1u << 31;
  good = good && __umulhi(1u << 31, 6) == 3 && min(3, 4) == 3 && max(3u, 4u) == 4u;
  good = good && __float_as_int(1.0f) == 0x3f800000 && __uint_as_float(0x40000000u) == 2.0f;
  good = good && __longlong_as_double(__double_as_longlong(-2.5)) == -2.5;
  good = good && isnan(CUDART_NAN_F) && isinf(-CUDART_INF_F) && max(CUDART_NAN_F, 1.0f) == 1.0f;
  good = good && fmaxf(-CUDART_INF_F, 1.0f) == 1.0f && rintf(2.5f) == 2.0f;
  good = good && ldexpf(3.0f, -2) == 0.75f && fmaf(2.0f, 3.0f, 1.0f) == 7.0f;
  good = good && __frcp_rn(4.0f) == 0.25f && exp2f(-3.0f) == 0.125f && __float2int_rn(2.5f) == 2;
  good = good && fabsf(__fdividef(1.0f, 3.0f) * 3.0f - 1.0f) < 1e-6f && warpSize == 32;
  good = good && __fdividef(1.0f, 2e38f) == 0.0f && __logf(1.0f) == 0.0f && __expf(0.0f) == 1.0f;
  if (!good) atomicAdd(bad, 1u);
}

void test_math() {
  std::vector<float> x(512);
  for (int i = 0; i < 512; ++i) x[i] = static_cast<float>(i + 1) / 32;
  const Buffer<float> input(x), exponentials(512), logarithms(512);
  const Buffer<unsigned> bad(std::vector<unsigned>{0});
  check_success(launch(math_kernel, 1, 512, 0, input.data(), exponentials.data(), logarithms.data(),
                       bad.data()));
  check(bad.read()[0] == 0, "device functions");
  const std::vector<float> e = exponentials.read(), l = logarithms.read();
  for (int i = 0; i < 512; ++i) {
    // The programming guide's bounds: 2 + floor(|1.173 x|) ulp; 2^-21.41 on [0.5, 2], else 3 ulp.
    const double ulps = 2 + std::floor(1.173 * x[i]), exact = std::log(static_cast<double>(x[i]));
    check(std::fabs(e[i] / std::exp(static_cast<double>(x[i])) - 1) <= ulps * 0x1p-23, "__expf");
    const double bound = 0.5 <= x[i] && x[i] <= 2 ? std::exp2(-21.41) : 0x3p-23 * std::fabs(exact);
    check(std::fabs(l[i] - exact) <= bound, "__logf");
  }
}

__global__ void halve_kernel(float* x) { *x *= 0.5f; }

void test_subnormals() {
  const Buffer<float> x(std::vector<float>{0x1p-126f});
  check_success(launch(halve_kernel, 1, 1, 0, x.data()));
  std::printf("   subnormals are %s\n", x.read()[0] > 0 ? "kept" : "flushed");
}

}  // namespace

int main() {
  run_all({
      {"conversions", test_conversions},
      {"maxima", test_maxima},
      {"math", test_math},
      {"subnormals", test_subnormals},
  });
}
