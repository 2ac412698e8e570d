// Products of small matrices that are in the caches.
#pragma once

#include "factored_layout.h"
#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Element (m, k) is data[m * row + k * step].
template <class T>
struct LeftFactor {
  const T* data;
  int64_t row, step;
};

// Element (k, n) is data[k * step + n].
template <class T>
struct RightFactor {
  const T* data;
  int64_t step;
};

// sums[m * stride + n] += left (m, k) right (k, n) for kTileRows rows and some vectors of columns,
// as many sums as there are registers.
template <class T, int kVectors>
JAX_RNNT_INLINE void add_product_of_tile(LeftFactor<T> left, RightFactor<T> right, int64_t steps,
                                         T* sums, int64_t stride) {
  constexpr int L = kLanes<T>;
  Vec<T> tile[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) tile[m][n] = load<Vec<T>>(sums + m * stride + n * L);
  }
  for (int64_t k = 0; k < steps; ++k) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      columns[n] = load<Vec<T>>(right.data + k * right.step + n * L);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kTileRows; ++m) {
      const Vec<T> row = broadcast<T>(left.data[m * left.row + k * left.step]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) tile[m][n] += row * columns[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) store(sums + m * stride + n * L, tile[m][n]);
  }
}

// sums (rows, columns) += left (rows, steps) right (steps, columns). What is there of the last tile
// of rows, and of the last vector of columns, is read and written, too.
template <class T>
__attribute__((noinline)) void add_product(LeftFactor<T> left, RightFactor<T> right, int64_t rows,
                                           int64_t columns, int64_t steps, T* sums,
                                           int64_t stride) {
  constexpr int L = kLanes<T>;
  constexpr int kVectors = JAX_RNNT_VECTOR_BYTES >= 64 ? 4 : 2;  // 32 registers, or 16
  for (int64_t n = 0; n < columns; n += kVectors * L) {
    const int64_t vectors = (columns - n + L - 1) / L;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const LeftFactor<T> a{left.data + m * left.row, left.row, left.step};
      const RightFactor<T> b{right.data + n, right.step};
      T* const c = sums + m * stride + n;
      if (vectors >= kVectors) {
        add_product_of_tile<T, kVectors>(a, b, steps, c, stride);
      } else if (vectors == 1) {
        add_product_of_tile<T, 1>(a, b, steps, c, stride);
      } else if (vectors == 2) {
        add_product_of_tile<T, 2>(a, b, steps, c, stride);
      } else {
        add_product_of_tile<T, 3>(a, b, steps, c, stride);
      }
    }
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
