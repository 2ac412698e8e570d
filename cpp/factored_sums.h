// What the gradients of the additive joiner need to know of an utterance's weights before any block
// of classes: their sums by frame and by label position.
#pragma once

#include "factored_rows.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// What a frame or a label position has weights for, as an element.
constexpr int kUnused = 0, kArcsOnly = 1, kSoftmax = 2;

// A label position whose label is one of a block's classes, at `offset`.
struct LabelOfBlock {
  int32_t position, offset;
};

// One utterance of a call.
template <class T>
struct FactoredUtterance {
  const FactoredBackward& p;
  FactoredBackwardLayout layout;
  int64_t b, cells;
  T* workspace;
  const T *blank, *label, *denominators;  // cell (0, 0)

  FactoredUtterance(const FactoredBackward& p, int64_t b)
      : p(p),
        layout(factored_backward_layout(p.frames, p.cells, p.classes, sizeof(T))),
        b(b),
        cells(p.cells),
        workspace(static_cast<T*>(p.workspace) + b * p.workspace_elements),
        blank(plane(p.blank_weights)),
        label(plane(p.label_weights)),
        denominators(plane(p.denominators)) {}

  const T* plane(const void* data) const {
    return static_cast<const T*>(data) + b * p.frames * p.cells;
  }
  bool hat() const { return p.normalization == Normalization::kHat; }
  int64_t excluded() const { return hat() ? p.blank_id : -1; }
  int64_t blocks_of(int64_t block) const { return block * layout.rows * layout.block_classes; }
  LabelOfBlock* labels_of(int64_t block) const {
    return reinterpret_cast<LabelOfBlock*>(workspace + layout.labels) +
           block * round_up(cells, kPositions);
  }

  // The weights of cells (t, u), (t, u + 1), ...: 0 where the frame has no more cells.
  struct Weights {
    Vec<T> blank, label;
  };
  JAX_RNNT_INLINE_MEMBER Weights weights(int64_t t, int64_t u) const {
    return {some(blank + t * cells, u), some(label + t * cells, u)};
  }
  JAX_RNNT_INLINE_MEMBER Vec<T> some(const T* row, int64_t u) const {
    if (u + kLanes<T> <= cells) return load<Vec<T>>(row + u);
    return load_some(row + u, 0, u < cells ? int(cells - u) : 0, T(0));
  }
  JAX_RNNT_INLINE_MEMBER Vec<T> softmax_weights(const Weights& w) const {
    return hat() ? w.label : w.blank + w.label;
  }
};

// Sums of an utterance's weights by frame and by label position, and which rows have any.
template <class In>
void factored_sums_utterance(const FactoredBackward& p, int64_t b) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const FactoredUtterance<T> utterance(p, b);
  const FactoredBackwardLayout& layout = utterance.layout;
  T* const w = utterance.workspace;
  const int64_t positions = round_up(p.cells, kPositions);
  fill_zeros(w + layout.use_of_position, 3 * positions);
  const In* const am = static_cast<const In*>(p.am) + b * p.frames * p.classes;
  const In* const lm = static_cast<const In*>(p.lm) + b * p.cells * p.classes;
  for (int64_t u = 0; u < positions && utterance.hat(); ++u) {
    w[layout.blank_scores + u] = u < p.cells ? load_scalar(lm + u * p.classes + p.blank_id) : T(0);
  }
  for (int64_t t = 0; t < p.frames; ++t) {
    Vec<T> use_of_frame{}, blank_of_frame{}, softmax_of_frame{};
    const T am_blank = utterance.hat() ? load_scalar(am + t * p.classes + p.blank_id) : T(0);
    for (int64_t u = 0; u < p.cells; u += L) {
      const auto weights = utterance.weights(t, u);
      const IntVec<T> active = weights.blank != T(0) || weights.label != T(0);
      Vec<T> use = active ? broadcast<T>(kArcsOnly) : Vec<T>{};
      const Vec<T> of_softmax = utterance.softmax_weights(weights);
      use = of_softmax != T(0) ? broadcast<T>(kSoftmax) : use;
      Vec<T> of_blank = -weights.blank;
      if (utterance.hat()) {
        Vec<T> z = am_blank + load<Vec<T>>(w + layout.blank_scores + u);
        z = active ? z : Vec<T>{};
        const Vec<T> e = exp_nonpositive<T>(z < T(0) ? z : -z), one = broadcast<T>(1);
        of_blank =
            (weights.label * (z < T(0) ? e : one) - weights.blank * (z < T(0) ? one : e)) / (1 + e);
      }
      use_of_frame = use > use_of_frame ? use : use_of_frame;
      blank_of_frame += of_blank;
      softmax_of_frame += of_softmax;
      const auto of_position = [&](int64_t part) { return w + part + u; };
      T* const most = of_position(layout.use_of_position);
      T* const blanks = of_position(layout.blank_of_position);
      T* const labels = of_position(layout.label_of_position);
      store(most, use > load<Vec<T>>(most) ? use : load<Vec<T>>(most));
      store(blanks, load<Vec<T>>(blanks) + of_blank);
      store(labels, load<Vec<T>>(labels) + weights.label);
    }
    w[layout.use_of_frame + t] = max_of_lanes<T>(use_of_frame)[0];
    w[layout.blank_of_frame + t] = sum_of_lanes<T>(blank_of_frame)[0];
    w[layout.softmax_of_frame + t] = sum_of_lanes<T>(softmax_of_frame)[0];
  }
  if (!p.smoothing.used()) return;
  for (int64_t u = 0; u < p.cells; ++u) {
    static_cast<T*>(p.blank_of_position)[b * p.cells + u] = -w[layout.blank_of_position + u];
    static_cast<T*>(p.label_of_position)[b * p.cells + u] = w[layout.label_of_position + u];
  }
  if (static_cast<const T*>(p.cotangents)[b] == 0) {
    fill_zeros(w + layout.use_of_frame, p.frames);
    fill_zeros(w + layout.use_of_position, p.cells);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
