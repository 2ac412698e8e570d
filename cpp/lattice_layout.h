// Where the lattice kernel keeps what, in one utterance's workspace. Counted in elements of float
// or double; exponents are integers of the same size.
#pragma once

#include <cstdint>

namespace jax_rnnt {

constexpr int64_t kBlock = 16;    // fronts between two renormalisations, and in a tile
constexpr int64_t kPadding = 16;  // dead elements on either side of a row, no less than a vector

struct LatticeLayout {
  int64_t stride;     // of rows: padding, one element per cell rounded up, padding
  int64_t kept_rows;  // alpha's fronts: all of them, or two in turn when there is no backward pass
  int64_t offsets;    // alpha's exponent offset of each block, as doubles
  int64_t alpha_mantissa, alpha_exponent;
  int64_t beta;  // four rows: mantissa and exponent, twice
  int64_t tile;  // kBlock rows of blank arcs, then as many of label arcs
  int64_t total;
};

// Static: each instruction set compiles its own copy.
static inline LatticeLayout lattice_layout(int64_t frames, int64_t cells, bool regular,
                                           bool with_posteriors) {
  const int64_t fronts = regular ? frames + cells - 1 : frames;
  LatticeLayout layout{};
  layout.stride = (cells + kPadding - 1) / kPadding * kPadding + 2 * kPadding;
  layout.kept_rows = with_posteriors ? fronts + 1 : 2;
  layout.offsets = 0;
  const int64_t offset_elements = 2 * (fronts / kBlock + 1);
  layout.alpha_mantissa = (offset_elements + kPadding - 1) / kPadding * kPadding;
  layout.alpha_exponent = layout.alpha_mantissa + layout.kept_rows * layout.stride;
  layout.beta = layout.alpha_exponent + layout.kept_rows * layout.stride;
  layout.tile = layout.beta + 4 * layout.stride;
  layout.total = layout.tile + 2 * kBlock * layout.stride;
  return layout;
}

}  // namespace jax_rnnt
