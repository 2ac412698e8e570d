// Where the best-path kernel keeps what, in an utterance's workspace. Counted in elements of float
// or double; integers have the same size.
#pragma once

#include <cstdint>

namespace jax_rnnt {

struct BestPathLayout {
  int64_t corridor;  // rows of one element a frame
  int64_t rows;      // kBestPathRows rows of slots, with a border
  int64_t row_stride;
  int64_t by_label;  // one byte for each slot of each frame
  int64_t total;
};

constexpr int64_t kBestPathRows = 4;
constexpr int64_t kBestPathMaxLanes = 16;  // no vector has more

// Static: each instruction set compiles its own copy.
static inline int64_t best_path_row_stride(int64_t cells) { return cells + 2 + kBestPathMaxLanes; }

static inline BestPathLayout best_path_layout(int64_t frames, int64_t cells, int64_t corridor_rows,
                                              int64_t element_bytes) {
  BestPathLayout layout{};
  layout.corridor = 0;
  layout.rows = corridor_rows * frames;
  layout.row_stride = best_path_row_stride(cells);
  layout.by_label = layout.rows + kBestPathRows * layout.row_stride;
  layout.total = layout.by_label + (frames * (cells + 1) + element_bytes - 1) / element_bytes;
  return layout;
}

}  // namespace jax_rnnt
