// Where the additive joiner's kernels keep what, in one utterance's workspace. Counted in elements
// of float or double.
#pragma once

#include "kernels.h"

namespace jax_rnnt {

// Label positions that are prepared at a time, no fewer than a vector's lanes.
constexpr int64_t kPositions = 16;
// Rows whose sums of products, for some columns, are in registers at a time.
constexpr int64_t kTileRows = 6;
// Sizes of the blocks of matrices that are multiplied in the first caches; all of them are also
// rows of some product, and all but that of the frames columns of one.
constexpr int64_t kFramesOfBlock = 8 * kTileRows;
constexpr int64_t kPositionsOfBlock = 144;
constexpr int64_t kClassBytesOfBlock = 1024;

static inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

struct FactoredForwardLayout {
  int64_t positions;           // of a row: U + 1, rounded up
  int64_t blank, label, dead;  // rows of `positions`: relative scores; 1 for a row without classes
  int64_t exponentials;        // (V, positions)
  int64_t average;             // (V,), rounded up: exponentials, too
  int64_t total;
};

static inline FactoredForwardLayout factored_forward_layout(int64_t cells, int64_t classes) {
  FactoredForwardLayout layout{};
  layout.positions = round_up(cells, kPositions);
  layout.label = layout.positions;
  layout.dead = 2 * layout.positions;
  layout.exponentials = 3 * layout.positions;
  layout.average = layout.exponentials + classes * layout.positions;
  layout.total = layout.average + round_up(classes, kPositions);
  return layout;
}

// Classes come in blocks, each of which one thread takes for a whole utterance.
struct FactoredBackwardLayout {
  int64_t block_classes;  // of all blocks but the last
  int64_t blocks;
  int64_t rows;  // of label positions: U + 1, rounded up
  // (T,) or (rows,): what is used of the row; sums of the arcs' weights.
  int64_t use_of_frame, blank_of_frame, softmax_of_frame;
  int64_t use_of_position, blank_of_position, label_of_position;
  int64_t blank_scores;          // (rows,), of lm
  int64_t labels;                // (blocks, rows) pairs of 32-bit integers: LabelOfBlock
  int64_t exponentials, counts;  // (blocks, rows, block_classes)
  int64_t total;
};

static inline FactoredBackwardLayout factored_backward_layout(int64_t frames, int64_t cells,
                                                              int64_t classes,
                                                              int64_t element_bytes) {
  const int64_t most = kClassBytesOfBlock / element_bytes;
  FactoredBackwardLayout layout{};
  layout.blocks = (classes + most - 1) / most;
  layout.block_classes = round_up((classes + layout.blocks - 1) / layout.blocks, kPositions);
  layout.blocks = (classes + layout.block_classes - 1) / layout.block_classes;
  layout.rows = round_up(cells, kTileRows);
  const int64_t of_frames = round_up(frames, kPositions);
  const int64_t of_positions = round_up(cells, kPositions);
  layout.blank_of_frame = of_frames;
  layout.softmax_of_frame = 2 * of_frames;
  layout.use_of_position = 3 * of_frames;
  layout.blank_of_position = layout.use_of_position + of_positions;
  layout.label_of_position = layout.blank_of_position + of_positions;
  layout.blank_scores = layout.label_of_position + of_positions;
  layout.labels = layout.blank_scores + of_positions;
  layout.exponentials = layout.labels + layout.blocks * 2 * of_positions;
  const int64_t of_classes = layout.blocks * layout.rows * layout.block_classes;
  layout.counts = layout.exponentials + of_classes;
  layout.total = layout.counts + of_classes;
  return layout;
}

}  // namespace jax_rnnt
