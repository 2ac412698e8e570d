// What is done with the nodes of a whole front, once a stretch: renormalised, and alpha and beta
// brought together for the likelihood, on which the posteriors depend.
#pragma once

#include "extended.h"
#include "team.h"

namespace jax_rnnt::cuda {

template <class T>
inline constexpr Exponent<T> kNoExponent = Exponent<T>(1ull << (sizeof(T) * 8 - 1));

template <bool kOneWarp, class T>
__device__ __forceinline__ Exponent<T> largest_exponent(Exponent<T> of_thread) {
  const Exponent<T> top = reduce_team<kOneWarp>(of_thread, kNoExponent<T>,
                                                [](Exponent<T> x) { return largest_of_warp(x); });
  return top == kNoExponent<T> ? 0 : top;  // a dead row
}

template <bool kOneWarp, class T>
__device__ __forceinline__ void copy_row(Extended<T>* to, const Extended<T>* from, int slots) {
#pragma unroll 1
  for (int u = int(threadIdx.x); u < slots; u += team_size<kOneWarp>()) to[u] = from[u];
}

// Mantissas to [1, 2), exponents relative to the largest of the row, which is returned.
template <bool kOneWarp, class T>
__device__ __forceinline__ Exponent<T> renormalise(Extended<T>* row, int slots) {
  Exponent<T> top = kNoExponent<T>;
#pragma unroll 1
  for (int u = int(threadIdx.x); u < slots; u += team_size<kOneWarp>()) {
    row[u] = normalised(row[u]);
    if (row[u].mantissa != T(0)) top = larger(top, row[u].exponent);
  }
  top = largest_exponent<kOneWarp, T>(top);
#pragma unroll 1
  for (int u = int(threadIdx.x); u < slots; u += team_size<kOneWarp>()) {
    row[u] = relative_to(row[u], top);
  }
  synchronise<kOneWarp>();
  return top;
}

// The largest exponent of alpha * beta on a front, both renormalised.
template <bool kOneWarp, class T>
__device__ __forceinline__ Exponent<T> largest_of_front(const Extended<T>* x, const Extended<T>* y,
                                                        int slots) {
  Exponent<T> top = kNoExponent<T>;
#pragma unroll 1
  for (int u = int(threadIdx.x); u < slots; u += team_size<kOneWarp>()) {
    const Extended<T> product = multiply(x[u], y[u]);
    if (product.mantissa != T(0)) top = larger(top, product.exponent);
  }
  return largest_exponent<kOneWarp, T>(top);
}

// The sum of alpha * beta over the nodes of a front, times 2^-exponent, about which it must be.
template <bool kOneWarp, class T>
__device__ __forceinline__ T sum_of_front(const Extended<T>* x, const Extended<T>* y, int slots,
                                          Exponent<T> exponent) {
  constexpr Exponent<T> kMost = Constants<T>::kExponentBias / 2;  // far more than rounding does
  T sum = 0;
#pragma unroll 1
  for (int u = int(threadIdx.x); u < slots; u += team_size<kOneWarp>()) {
    const Extended<T> product = multiply(x[u], y[u]);
    // The exponent of a zero may lie above the largest of the others.
    sum += product.mantissa * exp2_int<T>(smaller(product.exponent - exponent, kMost));
  }
  return reduce_team<kOneWarp>(sum, T(0), [](T value) {
    return reduce_group<kWarp>(value, [](T a, T b) { return a + b; });
  });
}

// mantissa * 2^exponent: the sum of alpha * beta over the nodes of a front, relative to the offsets
// of both.
template <class T>
struct Likelihood {
  T mantissa;
  Exponent<T> exponent;

  __device__ __forceinline__ T log(int64_t offset) const {
    if (mantissa == T(0)) return -Constants<T>::kInfinity;
    return T(::log(double(mantissa)) + double(offset + int64_t(exponent)) * 0.69314718055994530942);
  }

  // On to a front where the offsets have grown by so much.
  __device__ __forceinline__ void move(int64_t growth) {
    constexpr int64_t kLeast = 2 * int64_t(kDead<T>), kMost = Constants<T>::kExponentBias;
    exponent = Exponent<T>(larger(smaller(int64_t(exponent) - growth, kMost), kLeast));
  }
};

template <bool kOneWarp, class T>
__device__ __forceinline__ Likelihood<T> likelihood_of_front(const Extended<T>* x,
                                                             const Extended<T>* y, int slots) {
  const Exponent<T> top = largest_of_front<kOneWarp>(x, y, slots);
  return {sum_of_front<kOneWarp>(x, y, slots, top), top};
}

// What turns a product alpha * arc * beta into a posterior.
template <class T>
struct Normaliser {
  // What is below this floor, on one side, is 0 with any arc; above it, sums do not overflow.
  static constexpr int64_t kFloor = -(int64_t{1} << 26);
  static constexpr int64_t kMostGrowth = int64_t(~kNoExponent<T>) + kFloor;

  Exponent<T> exponent;
  T scale;

  // `growth`: of the partner's offset, since the front that the likelihood has been taken from.
  __device__ __forceinline__ Normaliser(const Likelihood<T>& likelihood, int64_t growth)
      : exponent(Exponent<T>(
            larger(smaller(growth - int64_t(likelihood.exponent), kMostGrowth), 8 * kFloor))),
        scale(likelihood.mantissa > T(0) ? 1 / likelihood.mantissa : T(0)) {}

  // The partner's part of a product.
  __device__ __forceinline__ Extended<T> scaled(Extended<T> partner) const {
    return {partner.mantissa * scale, larger(partner.exponent + exponent, Exponent<T>(kFloor))};
  }

  __device__ __forceinline__ T posterior(Extended<T> scaled_partner, Extended<T> rest) const {
    const Extended<T> product = multiply(scaled_partner, rest);
    constexpr Exponent<T> kMost = Constants<T>::kExponentBias;
    return product.mantissa * exp2_int<T>(smaller(product.exponent, kMost));
  }
};

}  // namespace jax_rnnt::cuda
