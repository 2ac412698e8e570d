// Arcs of the additive joiner. The softmax denominators are matrix products of exponentials,
//
//   sum_v exp(am[t, v] - am_top[t]) exp(lm[u, v] - lm_top[u]),
//
// by blocks of frames, label positions and classes. Where both rows peak at different classes, all
// products may be too small for floating point: such cells are computed again, exactly.
//
// The denominators of smoothed arcs' encoder by itself are products of the same exponentials with
// those of the average.
#pragma once

#include "arcs_forward.h"
#include "factored_rows.h"
#include "matrix_product.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

template <class In>
ScoreRows<In> am_of(const FactoredForward& p) {
  const int64_t excluded = p.normalization == Normalization::kHat ? p.blank_id : -1;
  return {p.am, p.batch * p.frames, p.classes, excluded};
}

template <class In>
ScoreRows<In> lm_of(const FactoredForward& p) {
  const int64_t excluded = p.normalization == Normalization::kHat ? p.blank_id : -1;
  return {p.lm, p.batch * p.cells, p.classes, excluded};
}

// Rows of the average, which are logarithms as they are.
template <class In>
ScoreRows<Accumulator<In>> averages_of(const FactoredForward& p) {
  return {p.smoothing.average, p.batch, p.classes, -1};
}

template <class In>
void fill_average(const FactoredForward& p, int64_t b, Accumulator<In>* out) {
  using T = Accumulator<In>;
  const ScoreRows<T> averages = averages_of<In>(p);
  const T* const row = averages.row(b);
  for (int64_t v = 0; v < p.classes; v += kLanes<T>) {
    store(out + v, exp_nonpositive<T>(averages.at(row, v)));
  }
}

// What the frames need of kPositions label positions.
template <class In>
void factored_positions_block(const FactoredForward& p, int64_t item) {
  using T = Accumulator<In>;
  constexpr int L = kLanes<T>;
  const FactoredForwardLayout layout = factored_forward_layout(p.cells, p.classes);
  const int64_t blocks = layout.positions / kPositions, b = item / blocks;
  const int64_t first = item % blocks * kPositions;
  const Bounds& bounds = p.bounds[b];
  const bool valid = bounds.valid(p.frames, p.cells - 1);
  const ScoreRows<In> lm = lm_of<In>(p);
  const int32_t* labels = p.labels + b * (p.cells - 1);
  T* const workspace = static_cast<T*>(p.workspace) + b * p.workspace_elements;
  T* const top_out = static_cast<T*>(p.lm_top) + b * p.cells;
  if (p.smoothing.used() && first == 0) fill_average<In>(p, b, workspace + layout.average);
  const bool relative = p.normalization != Normalization::kNone;
  const In* rows[kPositions];
  T tops[kPositions];
  for (int64_t r = 0; r < kPositions; ++r) {
    const int64_t u = first + r;
    const bool inside = valid && bounds.label_begin <= u && u <= bounds.label_end;
    rows[r] = inside ? lm.row(b * p.cells + u) : nullptr;
    tops[r] = inside && relative ? lm.top(rows[r]) : T(0);
    const bool dead = !inside || tops[r] == T(-__builtin_inf());
    if (dead) tops[r] = 0;
    if (u < p.cells) top_out[u] = tops[r];
    workspace[layout.dead + u] = dead;
    T blank = 0, label = 0;
    if (inside) {
      blank = load_scalar(rows[r] + p.blank_id);
      if (p.normalization == Normalization::kSoftmax) blank -= tops[r];
      label = load_scalar(rows[r] + clipped_label(labels, p.cells - 1, u, p.classes)) - tops[r];
    }
    workspace[layout.blank + u] = blank;
    workspace[layout.label + u] = label;
    if (dead) rows[r] = nullptr;
  }
  if (!relative) return;
  for (int64_t group = 0; group < kPositions; group += L) {
    T* const out = workspace + layout.exponentials + first + group;
    for (int64_t v = 0; v < p.classes; v += L) {
      Vec<T> square[L];
      for (int r = 0; r < L; ++r) {
        const In* row = rows[group + r];
        square[r] = row == nullptr ? Vec<T>{} : exp_nonpositive<T>(lm.at(row, v) - tops[group + r]);
      }
      transpose<T>(square);
      const int count = p.classes - v < L ? int(p.classes - v) : L;
      for (int r = 0; r < count; ++r) store(out + (v + r) * layout.positions, square[r]);
    }
  }
}

// log sum_v exp(am[v] - am_top + lm[v] - lm_top), by its own largest term.
template <class In, class Other>
__attribute__((noinline)) Accumulator<In> log_sum_of_products(const ScoreRows<In>& am, const In* x,
                                                              Accumulator<In> am_top,
                                                              const ScoreRows<Other>& lm,
                                                              const Other* y,
                                                              Accumulator<In> lm_top) {
  using T = Accumulator<In>;
  const auto term = [&](int64_t i) __attribute__((always_inline)) {
    return (am.at(x, i) - am_top) + (lm.at(y, i) - lm_top);
  };
  Vec<T> tops = broadcast<T>(Traits<T>::kLowest), sums{};
  for (int64_t i = 0; i < am.classes; i += kLanes<T>) tops = term(i) > tops ? term(i) : tops;
  const Vec<T> top = max_of_lanes<T>(tops);
  for (int64_t i = 0; i < am.classes; i += kLanes<T>) sums += exp_nonpositive<T>(term(i) - top);
  return (top + log_positive<T>(sum_of_lanes<T>(sums)))[0];
}

// The frames that a block has of an utterance's.
template <class In>
struct FramesOfBlock {
  using T = Accumulator<In>;
  static constexpr int64_t kClasses = kClassesOfBlock<T>, kWidth = kPositionsOfBlock;

  struct Frame {
    const In* scores;
    T top;
    bool dead;
    int64_t first_cell;
    T encoder_log;
  };

  const FactoredForward& p;
  const ScoreRows<In> am, lm;
  const FactoredForwardLayout layout;
  const int64_t b;
  const T* const positions;  // the utterance's workspace
  const CellRange visited;   // of each frame
  Frame frames[kFramesOfBlock] = {};
  int64_t count = 0;

  void add(int64_t row) {
    const bool relative = p.normalization != Normalization::kNone;
    const In* scores = am.row(row);
    T top = relative ? am.top(scores) : T(0);
    const bool dead = top == T(-__builtin_inf());
    if (dead) top = 0;
    static_cast<T*>(p.am_top)[row] = top;
    frames[count++] = {scores, top, dead, row * p.cells, T(0)};
  }

  JAX_RNNT_INLINE_MEMBER Vec<T> products_with_average(const T* exponentials, int64_t v,
                                                      int64_t classes) const {
    const T* const of_average = positions + layout.average + v;
    Vec<T> sums{};
    for (int64_t i = 0; i < classes; i += kLanes<T>) {
      sums += load<Vec<T>>(exponentials + i) * load<Vec<T>>(of_average + i);
    }
    return sums;
  }

  // sums (count, kWidth) of products, for some label positions from `first` on; also those with the
  // average, one vector a frame, unless it is null.
  void multiply(int64_t first, int64_t columns, T* sums, Vec<T>* with_average) const {
    alignas(64) T exponentials[kFramesOfBlock * kClasses];
    const int64_t rows = round_up(count, kTileRows);
    fill_zeros(sums, rows * kWidth);
    fill_zeros(exponentials + count * kClasses, (rows - count) * kClasses);
    for (int64_t v = 0; v < p.classes; v += kClasses) {
      const int64_t classes = p.classes - v < kClasses ? p.classes - v : kClasses;
      for (int64_t r = 0; r < count; ++r) {
        T* const out = exponentials + r * kClasses;
        if (frames[r].dead) {
          fill_zeros(out, kClasses);
        } else {
          am.exponentials(frames[r].scores, frames[r].top, v, classes, out);
        }
        if (with_average != nullptr) with_average[r] += products_with_average(out, v, classes);
      }
      const T* of_positions = positions + layout.exponentials + v * layout.positions + first;
      add_product<T>({exponentials, kClasses, 1}, {of_positions, layout.positions}, rows, columns,
                     classes, sums, kWidth);
    }
  }

  void find_encoder_logs(const Vec<T>* sums) {
    const ScoreRows<T> averages = averages_of<In>(p);
    for (int64_t r = 0; r < count; ++r) {
      Frame& frame = frames[r];
      const T sum = sum_of_lanes<T>(sums[r])[0];
      frame.encoder_log = log_positive<T>(broadcast<T>(sum))[0];
      if (!frame.dead && sum < smallest_exact_sum<T>(p.classes)) {
        frame.encoder_log =
            log_sum_of_products(am, frame.scores, frame.top, averages, averages.row(b), T(0));
      }
      static_cast<T*>(p.smoothing.encoder_logs)[frame.first_cell / p.cells] = frame.encoder_log;
    }
  }

  // Smoothed arcs from those of the joiner and scores of `am` relative to the frame's largest.
  JAX_RNNT_INLINE_MEMBER Vec<T> smoothed(const Frame& frame, int64_t u, Vec<T> joint,
                                         Vec<T> am_scores, const void* position_scores) const {
    if (!p.smoothing.used()) return joint;
    const T* const row = static_cast<const T*>(position_scores) + b * p.cells + u;
    const LaneRange there =
        lanes_between<T>(u, 0, p.cells);  // none in columns that fill a block up
    const Vec<T> scores = load_some(row, there.begin, there.end, T(0));
    const Vec<T> minus_inf = broadcast<T>(T(-__builtin_inf()));
    const Vec<T> alone = T(p.smoothing.am_share) * (am_scores - frame.encoder_log) + scores;
    // A class that the average forbids stays so where it forbids all; NaN stays, too.
    const IntVec<T> forbidden = joint == minus_inf || (scores == minus_inf && joint == joint);
    return forbidden ? minus_inf : T(p.smoothing.joint_share) * joint + alone;
  }

  // Logarithms of sums of products of a frame with the label positions u, u + 1, ...
  JAX_RNNT_INLINE_MEMBER Vec<T> denominators(const Frame& frame, int64_t u, Vec<T> sums) const {
    Vec<T> logs = log_positive<T>(sums);
    const T smallest = smallest_exact_sum<T>(p.classes);
    const Vec<T> dead = load<Vec<T>>(positions + layout.dead + u);
    const IntVec<T> inexact = sums < smallest && dead == T(0);
    if (frame.dead || !any<T>(inexact)) return logs;
    for (int i = 0; i < kLanes<T>; ++i) {
      if (inexact[i] == 0) continue;
      const int64_t row = b * p.cells + u + i;
      logs[i] = log_sum_of_products(am, frame.scores, frame.top, lm, lm.row(row),
                                    static_cast<const T*>(p.lm_top)[row]);
    }
    return logs;
  }

  // Arcs of a frame, for some label positions from `first` on, from their sums of products.
  void write(const Frame& frame, int64_t first, int64_t columns, const int32_t* labels,
             const T* sums) const {
    constexpr int L = kLanes<T>;
    const T minus_inf = T(-__builtin_inf());
    T* const blank_out = static_cast<T*>(p.blank) + frame.first_cell;
    T* const label_out = static_cast<T*>(p.label) + frame.first_cell;
    T* const denominators_out = static_cast<T*>(p.denominators) + frame.first_cell;
    const bool softmax = p.normalization == Normalization::kSoftmax;
    const T am_blank = load_scalar(frame.scores + p.blank_id) - (softmax ? frame.top : T(0));
    for (int64_t i = 0; i < columns; i += L) {
      const int64_t u = first + i;
      Vec<T> logs{};
      if (p.normalization != Normalization::kNone) {
        logs = denominators(frame, u, load<Vec<T>>(sums + i));
      }
      // A class that is forbidden to a softmax stays so also where all are.
      const auto log_ratio = [&](Vec<T> x, Vec<T> y) __attribute__((always_inline)) {
        if (p.normalization == Normalization::kNone) return x + y;
        const IntVec<T> forbidden = (x == minus_inf || y == minus_inf) && logs == logs;
        return forbidden ? broadcast<T>(minus_inf) : (x + y) - logs;
      };
      In at_label[L];
      for (int k = 0; k < L; ++k) at_label[k] = frame.scores[labels[i + k]];
      const Vec<T> lm_blank = load<Vec<T>>(positions + layout.blank + u);
      const Vec<T> lm_label = load<Vec<T>>(positions + layout.label + u);
      const Vec<T> am_label = load_lanes(at_label) - frame.top;
      Vec<T> label = log_ratio(am_label, lm_label);
      Vec<T> blank;
      if (p.normalization == Normalization::kHat) {
        const LogSigmoids<T> sigmoids = log_sigmoids<T>(am_blank + lm_blank);
        blank = sigmoids.of_z;
        label += sigmoids.of_minus_z;
      } else {
        blank = log_ratio(broadcast<T>(am_blank), lm_blank);
      }
      blank = smoothed(frame, u, blank, broadcast<T>(am_blank), p.blank_scores);
      label = smoothed(frame, u, label, am_label, p.label_scores);
      const LaneRange cells = lanes_between<T>(u, visited.begin, visited.end);
      const LaneRange with_label = lanes_between<T>(u, visited.begin, visited.end - 1);
      store_some(blank_out + u, cells.begin, cells.end, blank);
      store_some(denominators_out + u, cells.begin, cells.end, logs);
      store_some(label_out + u, with_label.begin, with_label.end, label);
    }
  }

  void run() {
    alignas(64) T sums[kFramesOfBlock * kWidth];
    Vec<T> with_average[kFramesOfBlock] = {};
    bool average_to_come = p.smoothing.used();
    int32_t labels[kWidth];
    const int32_t* const all_labels = p.labels + b * (p.cells - 1);
    for (int64_t first = visited.begin / kWidth * kWidth; first < visited.end; first += kWidth) {
      const int64_t rest = round_up(visited.end - first, kPositions);
      const int64_t columns = rest < kWidth ? rest : kWidth;
      for (int64_t i = 0; i < columns; ++i) {
        labels[i] = int32_t(clipped_label(all_labels, p.cells - 1, first + i, p.classes));
      }
      if (p.normalization != Normalization::kNone) {
        multiply(first, columns, sums, average_to_come ? with_average : nullptr);
      }
      if (average_to_come) find_encoder_logs(with_average);
      average_to_come = false;
      for (int64_t r = 0; r < count; ++r) {
        write(frames[r], first, columns, labels, sums + r * kWidth);
      }
    }
  }
};

template <class In>
void factored_frames_block(const FactoredForward& p, int64_t item) {
  using T = Accumulator<In>;
  const int64_t blocks = (p.frames + kFramesOfBlock - 1) / kFramesOfBlock, b = item / blocks;
  const int64_t begin = item % blocks * kFramesOfBlock;
  const int64_t end = begin + kFramesOfBlock < p.frames ? begin + kFramesOfBlock : p.frames;
  const Bounds& bounds = p.bounds[b];
  const bool valid = bounds.valid(p.frames, p.cells - 1);
  FramesOfBlock<In> block{
      .p = p,
      .am = am_of<In>(p),
      .lm = lm_of<In>(p),
      .layout = factored_forward_layout(p.cells, p.classes),
      .b = b,
      .positions = static_cast<const T*>(p.workspace) + b * p.workspace_elements,
      .visited = {valid ? bounds.label_begin : 0, valid ? int64_t{bounds.label_end} + 1 : 0},
  };
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = b * p.frames + t, cell = row * p.cells;
    static_cast<T*>(p.am_top)[row] = 0;
    if (p.smoothing.used()) static_cast<T*>(p.smoothing.encoder_logs)[row] = 0;
    if (!valid || t < bounds.frame_begin || t >= bounds.frame_end) {
      fill_padding<In>(p, cell, cell + p.cells);
      continue;
    }
    fill_padding<In>(p, cell, cell + block.visited.begin);
    fill_padding<In>(p, cell + block.visited.end - 1, cell + p.cells);
    block.add(row);
  }
  block.run();
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
