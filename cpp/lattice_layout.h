// Where the lattice kernel keeps what, in one utterance's workspace. Counted in elements of float
// or double; exponents are integers of the same size.
#pragma once

#include "kernels.h"

namespace jax_rnnt {

constexpr int64_t kBlock = 16;    // fronts between two renormalisations, and in a tile
constexpr int64_t kPadding = 16;  // dead elements on either side of a row, no less than a vector

// Alpha's fronts: two in turn, when there is no backward pass; or the first one of each block, and
// those of one block, which the backward pass computes again: in less time than it takes to read
// all of them from beyond the caches.
enum class KeptAlpha { kTwo, kBlocks };

struct LatticeLayout {
  int64_t stride;  // of rows: padding, one element per cell rounded up, padding
  KeptAlpha kept;
  int64_t kept_rows;  // of alpha
  int64_t offsets;    // alpha's exponent offset of each block, as doubles
  int64_t alpha_mantissa, alpha_exponent;
  int64_t beta;  // four rows: mantissa and exponent, twice
  int64_t tile;  // kBlock rows of blank arcs, then as many of label arcs
  int64_t total;
};

// Static: each instruction set compiles its own copy.
static inline LatticeLayout lattice_layout(int64_t frames, int64_t cells, bool regular,
                                           KeptAlpha kept) {
  const int64_t fronts = regular ? frames + cells - 1 : frames;
  LatticeLayout layout{};
  layout.stride = (cells + kPadding - 1) / kPadding * kPadding + 2 * kPadding;
  layout.kept = kept;
  layout.kept_rows = kept == KeptAlpha::kTwo ? 2 : kBlock + fronts / kBlock + 1;
  layout.offsets = 0;
  const int64_t offset_elements = 2 * (fronts / kBlock + 1);
  layout.alpha_mantissa = (offset_elements + kPadding - 1) / kPadding * kPadding;
  layout.alpha_exponent = layout.alpha_mantissa + layout.kept_rows * layout.stride;
  layout.beta = layout.alpha_exponent + layout.kept_rows * layout.stride;
  layout.tile = layout.beta + 4 * layout.stride;
  layout.total = layout.tile + 2 * kBlock * layout.stride;
  return layout;
}

// Enough for every utterance of T frames and W <= cells, by T * W rows and by itself. An utterance
// with few cells a frame has long rows for them, and one with few frames has many fronts. For
// F <= T + W fronts and rows of s <= W + 47 elements, that is no more than
//
//   2 s (F / 16 + 17) + 36 s + F / 8 + 17  <=  (F / 8) (s + 1) + 70 s + 17,
//
// where F (s + 1) <= (T + W) (W + 48) <= 49 T W + W (W + 48).
static inline PackedWorkspace packed_lattice_workspace(int64_t cells, bool with_posteriors) {
  const int64_t widest = cells + 47;
  const int64_t fixed = 70 * widest + 17 + cells / 8 + 1;
  const auto aligned = [](int64_t x) { return (x + 15) / 16 * 16; };  // offsets are doubles
  if (!with_posteriors) return {2, aligned(fixed)};
  return {8, aligned(fixed + cells * (cells + 48) / 8 + 1)};
}

}  // namespace jax_rnnt
