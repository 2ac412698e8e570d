// Where the lattice kernel keeps what, in one utterance's workspace. Counted in elements of float
// or double; exponents are integers of the same size.
#pragma once

#include "kernels.h"

namespace jax_rnnt {

constexpr int64_t kBlock = 16;    // fronts between two renormalisations, and in a tile
constexpr int64_t kPadding = 16;  // dead elements on either side of a row, no less than a vector

// Rows of one utterance, each of mantissas and exponents: `meeting` has those of alpha and beta at
// the middle front; with posteriors, `kept` has those at the outer end of each block, of alpha
// before the middle and of beta after it. The inner ones are computed again: in less time than it
// takes to read them from beyond the caches. `scratch` is what a thread works with, two of which
// may share an utterance.
struct LatticeLayout {
  int64_t stride;  // of rows: padding, one element per cell rounded up, padding
  bool with_posteriors;
  int64_t offsets;  // two doubles: the exponent offsets of alpha and beta in the middle
  int64_t meeting, kept, scratch, total;

  static constexpr int64_t kScratchRows = 5 + 2 * kBlock;  // two in turn; nodes; a tile
};

// Static: each instruction set compiles its own copy.
static inline LatticeLayout lattice_layout(int64_t frames, int64_t cells, bool regular,
                                           bool with_posteriors) {
  const int64_t fronts = regular ? frames + cells - 1 : frames;
  LatticeLayout layout{};
  layout.stride = (cells + kPadding - 1) / kPadding * kPadding + 2 * kPadding;
  layout.with_posteriors = with_posteriors;
  layout.offsets = 0;
  layout.meeting = kPadding;
  layout.kept = layout.meeting + 2 * 2 * layout.stride;
  const int64_t blocks = (fronts + kBlock - 1) / kBlock;
  layout.scratch = layout.kept + (with_posteriors ? blocks : 0) * 2 * layout.stride;
  layout.total = layout.scratch + 2 * LatticeLayout::kScratchRows * layout.stride;
  return layout;
}

// Enough for every utterance of T frames and W <= cells, by T * W rows and by itself. An utterance
// with few cells a frame has long rows for them, and one with few frames has many fronts. For
// F <= T + W fronts and rows of s <= W + 47 elements, that is no more than
//
//   2 s (F / 16 + 1) + 78 s + 16  <=  F s / 8 + 80 s + 16,
//
// where F s <= (T + W) (W + 47) <= 48 T W + W (W + 47).
static inline PackedWorkspace packed_lattice_workspace(int64_t cells, bool with_posteriors) {
  const int64_t widest = cells + 47;
  const auto aligned = [](int64_t x) { return (x + 15) / 16 * 16; };  // offsets are doubles
  if (!with_posteriors) return {0, aligned(78 * widest + 16)};
  return {6, aligned(80 * widest + 16 + cells * widest / 8 + 1)};
}

}  // namespace jax_rnnt
