// Where the lattice kernels keep what: one utterance's workspace, and a block's shared memory.
#pragma once

#include "../cpp/kernels.h"

namespace jax_rnnt::cuda {

// Nodes are renormalised after a stretch of fronts. A tile of fronts is staged at a time: as many
// as fit into shared memory, up to a stretch, or some of them where one warp sweeps a narrow band.
inline constexpr int kMostStretchFronts = 16;
inline constexpr int kMostTileFronts = 64;
inline constexpr int kFewestTileFronts = 2;
// Where arcs become factors ahead of their use, those of as many fronts of a wide trellis at once;
// of a narrow one, of a whole tile.
inline constexpr int kFactorFronts = 4;
inline constexpr int kNarrowCells = 64;
// Every device has as much shared memory for a block. Utterances whose smallest tiles need more
// keep them in the workspace where the device has no more.
inline constexpr int64_t kLeastSharedBytes = 48 << 10;
inline constexpr int64_t kStaticSharedBytes = 2048;  // of the reductions

// Counted in elements of float or double. A number of extended exponent takes two, an offset (64
// bits) two of either.
struct WorkspaceLayout {
  int64_t offsets;      // alpha's by stretch, then beta's
  int64_t num_offsets;  // of each
  int64_t rows;         // alpha of the fronts up to the middle, then beta of those from there
  int64_t tiles;        // of both directions, where shared memory may be too small; else empty
  int64_t tile_elements;
  int64_t total;
};

// Memory of one direction's sweep, in elements of float or double.
struct SweepLayout {
  int fronts;  // of a tile
  int stretch_fronts;
  int factor_fronts;  // whose factors there is room for
  int64_t stride;     // of a tile's rows, and of the factors'
  int64_t rows;       // two rows of nodes in turn, each with a dead border on both sides
  int64_t row_elements;
  int64_t tiles;  // two tiles in turn: pairs of arcs, the other direction's nodes
  int64_t tile_elements;
  int64_t factors;  // pairs of factors
  int64_t total;
};

JAX_RNNT_HOST_DEVICE inline constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// What is wound is copied as it lies. From rows of frames to rows of fronts, copies go along the
// tile's diagonals: with an even stride they spread over the banks. Label arcs may lie one slot
// further than their cells.
JAX_RNNT_HOST_DEVICE inline SweepLayout sweep_layout(int64_t cells, int fronts,
                                                     bool with_posteriors, bool with_factors,
                                                     bool wound) {
  SweepLayout layout{};
  layout.fronts = fronts;
  layout.stretch_fronts = fronts < kMostStretchFronts ? fronts : kMostStretchFronts;
  const bool all_at_once = cells <= kNarrowCells || fronts < kFactorFronts;
  layout.factor_fronts = with_factors ? all_at_once ? fronts : kFactorFronts : 0;
  layout.stride = wound ? cells : round_up(cells + 1, 2);
  layout.row_elements = 2 * round_up(cells + 2, 2);
  layout.rows = 0;
  layout.tiles = 2 * layout.row_elements;
  layout.tile_elements = layout.stride * fronts * (with_posteriors ? 4 : 2);
  layout.factors = layout.tiles + 2 * layout.tile_elements;
  layout.total = layout.factors + layout.stride * layout.factor_fronts * 4;
  return layout;
}

JAX_RNNT_HOST_DEVICE inline int64_t stored_rows(int64_t fronts, bool with_posteriors) {
  return with_posteriors ? fronts + 2 : 2;
}

// Of an utterance with as many cells a frame, or up to `widest`: the tiles are those of the latter.
JAX_RNNT_HOST_DEVICE inline WorkspaceLayout workspace_layout(int64_t frames, int64_t cells,
                                                             bool regular, bool with_posteriors,
                                                             int64_t element_bytes,
                                                             int64_t widest) {
  const int64_t fronts = regular ? frames + cells - 1 : frames;
  WorkspaceLayout layout{};
  layout.offsets = 0;
  layout.num_offsets = round_up(fronts / kFewestTileFronts + 3, 2);
  layout.rows = 2 * 2 * layout.num_offsets;
  layout.tiles = layout.rows + round_up(2 * cells * stored_rows(fronts, with_posteriors), 4);
  const auto tiles_of = [&](int of_fronts) {
    return sweep_layout(widest, of_fronts, with_posteriors, true, false).total;
  };
  if (tiles_of(kFewestTileFronts) * element_bytes + kStaticSharedBytes > kLeastSharedBytes) {
    layout.tile_elements = round_up(tiles_of(kMostStretchFronts), 4);
  }
  layout.total = layout.tiles + 2 * layout.tile_elements;
  return layout;
}

// Enough for every utterance of T frames and W <= cells, by T * W rows and by itself: F <= T + W
// fronts have 4 (F / 2 + 4) elements of offsets and 2 W (F + 2) of nodes.
inline PackedWorkspace packed_workspace(int64_t cells, bool with_posteriors,
                                        int64_t element_bytes) {
  const int64_t tiles =
      2 * workspace_layout(1, cells, true, with_posteriors, element_bytes, cells).tile_elements;
  const int64_t offsets = 2 * cells + 16, nodes = 4 * cells + 3;
  if (!with_posteriors) return {2, round_up(offsets + nodes + tiles, 4)};
  return {4, round_up(offsets + nodes + 2 * cells * cells + tiles, 4)};
}

}  // namespace jax_rnnt::cuda
