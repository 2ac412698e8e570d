// Where the kernel of arcs with durations keeps what, in the workspace of an utterance. Counted in
// elements of float or double; integers have the same size.
#pragma once

#include "kernels.h"

namespace jax_rnnt {

// Rows of as many numbers, mantissas and then exponents, as a frame has cells.
struct DurationLayout {
  int64_t stride;         // of the mantissas of a row
  int64_t alphas, betas;  // of all frames and the end; of as many as a duration reaches
  int64_t beta_rows;
  int64_t blank, label, durations;  // arcs of a frame, and its durations
  int64_t still;                    // label arcs of duration 0
  int64_t total;
};

// Static: each instruction set compiles its own copy.
static inline DurationLayout duration_layout(int64_t frames, int64_t cells,
                                             const Durations& durations) {
  constexpr int64_t kMostLanes = 16;
  DurationLayout layout{};
  // A vector at the last cell, or one above it, ends within the row.
  layout.stride = (cells + kMostLanes) / kMostLanes * kMostLanes + kMostLanes;
  layout.beta_rows = durations.longest() + 1;
  int64_t end = 0;
  const auto place = [&](int64_t rows) {
    const int64_t begin = end;
    end += rows * 2 * layout.stride;
    return begin;
  };
  layout.alphas = place(frames + 1);
  layout.betas = place(layout.beta_rows);
  layout.blank = place(1);
  layout.label = place(1);
  layout.durations = place(durations.number);
  layout.still = place(1);
  layout.total = end;
  return layout;
}

}  // namespace jax_rnnt
