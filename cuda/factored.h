// What both directions of the additive joiner's arcs share.
#pragma once

#include "factored_layout.h"
#include "kernels.h"
#include "product.h"
#include "rows.h"

namespace jax_rnnt::cuda {

// A sum of V products of exponentials below this may have lost some that fall below the normal
// numbers, by more than its rounding.
template <class T>
__device__ __forceinline__ T smallest_exact_sum(int64_t classes) {
  constexpr bool kFloat = sizeof(T) == 4;
  return T(classes) * (kFloat ? T(0x1p-103) : T(0x1p-970));
}

// The class that the softmax leaves out, or -1.
template <class Params>
__device__ __forceinline__ int excluded_class(const Params& p) {
  return p.normalization == Normalization::kHat ? int(p.blank_id) : -1;
}

// The label of a position; the last one has none, and bad ones are no arcs.
template <class Params>
__device__ __forceinline__ int clipped_label(const Params& p, int64_t b, int u) {
  const int label = u < p.cells - 1 ? p.labels[b * (p.cells - 1) + u] : 0;
  return label < 0 ? 0 : label < p.classes ? label : int(p.classes) - 1;
}

// Rows, columns and classes are counted in 32 bits.
template <class In, class Params>
bool countable(const Params& p) {
  return p.frames <= INT32_MAX / 2 && p.cells <= INT32_MAX / 2 && p.classes <= kMostClasses<In>;
}

// A block's tile of rows and columns; neighbouring blocks have the same rows.
struct TilePlace {
  int64_t outer;    // utterance, or part of one, whose rows and columns they are
  int row, column;  // the tile's first ones

  template <class T>
  __device__ __forceinline__ static TilePlace of(int64_t block, int row_tiles, int column_tiles) {
    const int64_t strip = block / column_tiles, outer = strip / row_tiles;
    return {outer, int(strip - outer * row_tiles) * ProductTile<T>::kRows,
            int(block - strip * column_tiles) * ProductTile<T>::kColumns};
  }
};

}  // namespace jax_rnnt::cuda
