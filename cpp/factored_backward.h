// Gradients of the additive joiner's halves, from those of its arcs. With w[t, u] the weight that a
// cell's softmax has,
//
//   factor[t, u] = w[t, u] exp(-denominator[t, u]),
//   counts by am[t, v] = exp(am[t, v] - top) sum_u factor[t, u] exp(lm[u, v] - top),
//
// and likewise by lm, summed over t: two matrix products, by blocks of frames, label positions and
// classes. Smoothed, the sum over u has one more term, with the weight of the frame and the average
// in the place of lm[u].
#pragma once

#include "factored_sums.h"
#include "matrix_product.h"
#include "stream_writer.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// The gradients by a block of an utterance's classes.
template <class In>
struct GradientOfClasses {
  using T = Accumulator<In>;
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kWidth = kPositionsOfBlock, kStride = kClassesOfBlock<T>;

  const FactoredBackward& p;
  const FactoredUtterance<T> utterance;
  const FactoredBackwardLayout& layout;
  const ScoreRows<In> am, lm;
  const int64_t first, classes;  // of the utterance's classes
  const int64_t stride;          // from row to row of a block
  T *const exponentials, *const counts;
  const T cotangent, log_smallest;
  const bool relative, stream;
  const T joint_share, am_share;
  // Of the average: exponentials of these classes, and its counts, divided by them where they are
  // exact.
  alignas(64) T average[kStride], average_factors[kStride], average_counts[kStride];
  LabelOfBlock* const labels;
  int64_t num_labels = 0;
  bool any_inexact = false;

  GradientOfClasses(const FactoredBackward& p, int64_t b, int64_t block)
      : p(p),
        utterance(p, b),
        layout(utterance.layout),
        am(p.am, p.batch * p.frames, p.classes, utterance.excluded()),
        lm(p.lm, p.batch * p.cells, p.classes, utterance.excluded()),
        first(block * layout.block_classes),
        classes(p.classes - first < layout.block_classes ? p.classes - first
                                                         : layout.block_classes),
        stride(layout.block_classes),
        exponentials(utterance.workspace + layout.exponentials + utterance.blocks_of(block)),
        counts(utterance.workspace + layout.counts + utterance.blocks_of(block)),
        cotangent(static_cast<const T*>(p.cotangents)[b]),
        log_smallest(log_positive<T>(broadcast<T>(smallest_exact_sum<T>(p.classes)))[0]),
        relative(p.normalization != Normalization::kNone),
        stream(p.batch * p.frames * p.classes * int64_t(sizeof(In)) > kMostCached),
        joint_share(T(p.smoothing.joint_share)),
        am_share(T(p.smoothing.am_share)),
        labels(utterance.labels_of(block)) {}

  T use(int64_t part, int64_t row) const { return utterance.workspace[part + row]; }
  const In* am_row(int64_t t) const { return am.row(utterance.b * p.frames + t); }
  const In* lm_row(int64_t u) const { return lm.row(utterance.b * p.cells + u); }
  T am_top(int64_t t) const { return static_cast<const T*>(p.am_top)[utterance.b * p.frames + t]; }
  T lm_top(int64_t u) const { return static_cast<const T*>(p.lm_top)[utterance.b * p.cells + u]; }
  int64_t label_of(int64_t u) const {
    return clipped_label(p.labels + utterance.b * (p.cells - 1), p.cells - 1, u, p.classes);
  }

  // The average's elements for this block's classes, i, i + 1, ...
  JAX_RNNT_INLINE_MEMBER Vec<T> average_at(int64_t i) const {
    const ScoreRows<T> averages(p.smoothing.average, p.batch, p.classes, -1);
    return averages.at(averages.row(utterance.b), first + i);
  }

  void run() {
    for (int64_t i = 0; i < classes && p.smoothing.used(); i += L) {
      store(average + i, exp_nonpositive<T>(average_at(i)));
      store(average_factors + i, Vec<T>{});
      store(average_counts + i, Vec<T>{});
    }
    const int64_t of_block = layout.rows * stride;
    fill_zeros(counts, of_block);
    if (relative) fill_zeros(exponentials, of_block);
    for (int64_t u = 0; u < p.cells; ++u) {
      const int64_t label = label_of(u) - first;
      if (0 <= label && label < classes) labels[num_labels++] = {int32_t(u), int32_t(label)};
      if (relative && use(layout.use_of_position, u) == kSoftmax) {
        lm.exponentials(lm_row(u), lm_top(u), first, classes, exponentials + u * stride);
      }
    }
    for (int64_t t = 0; t < p.frames; t += kFramesOfBlock) {
      write_frames(t, p.frames - t < kFramesOfBlock ? p.frames - t : kFramesOfBlock);
    }
    for (int64_t u = 0; u < p.cells; ++u) {
      if (p.smoothing.used()) {
        write_position(u, static_cast<T*>(p.lm_gradient));
      } else {
        write_position(u, static_cast<In*>(p.lm_gradient));
      }
    }
    if (p.smoothing.used()) write_average();
    finish_streaming();
  }

  // Factors of frames t, t + 1, ... (rows) and of label positions from `begin` on (columns), with 0
  // for inexact cells. Returns whether there are any.
  bool fill_factors(int64_t t, int64_t frames, int64_t begin, int64_t columns, T* factors) const {
    IntVec<T> inexact{};
    for (int64_t r = 0; r < frames; ++r) {
      T* const out = factors + r * kWidth;
      if (use(layout.use_of_frame, t + r) != kSoftmax) {
        fill_zeros(out, columns);
        continue;
      }
      for (int64_t i = 0; i < columns; i += L) {
        const int64_t u = begin + i;
        const Vec<T> weights = utterance.softmax_weights(utterance.weights(t + r, u));
        const Vec<T> logs = utterance.some(utterance.denominators + (t + r) * p.cells, u);
        const IntVec<T> used = weights != T(0), exact = logs >= log_smallest;
        inexact |= used && !exact;
        store(out + i,
              used && exact ? joint_share * weights * exp_nonpositive<T>(-logs) : Vec<T>{});
      }
    }
    return any<T>(inexact);
  }

  // Adds the products of some frames with all label positions to `sums`, and to the counts of
  // these. Returns whether there are inexact cells.
  bool multiply(int64_t t, int64_t frames, const T* scores, T* sums) const {
    alignas(64) T factors[kFramesOfBlock * kWidth];
    const int64_t rows = round_up(frames, kTileRows);
    bool any_inexact = false;
    for (int64_t u = 0; u < p.cells; u += kWidth) {
      const int64_t positions = p.cells - u < kWidth ? p.cells - u : kWidth;
      const int64_t columns = round_up(positions, kPositions);
      any_inexact |= fill_factors(t, frames, u, columns, factors);
      for (int64_t r = frames; r < rows; ++r) fill_zeros(factors + r * kWidth, columns);
      add_product<T>({factors, kWidth, 1}, {exponentials + u * stride, stride}, rows, classes,
                     positions, sums, kStride);
      add_product<T>({factors, 1, kWidth}, {scores, kStride}, positions, classes, frames,
                     counts + u * stride, stride);
    }
    return any_inexact;
  }

  // out[v] += the counts of one cell, if it is inexact.
  void add_inexact_cell(int64_t t, int64_t u, T* out) const {
    const int64_t cell = t * p.cells + u;
    const T label = utterance.label[cell], log = utterance.denominators[cell];
    const T weight = joint_share * (utterance.hat() ? label : label + utterance.blank[cell]);
    if (weight == 0 || log >= log_smallest) return;
    const In *x = am_row(t), *y = lm_row(u);
    for (int64_t i = 0; i < classes; i += L) {
      const int64_t v = first + i;
      const Vec<T> terms = (am.at(x, v) - am_top(t)) + (lm.at(y, v) - lm_top(u));
      store(out + i, load<Vec<T>>(out + i) + weight * exp_nonpositive<T>(terms - log));
    }
  }

  // Of the encoder's term with the average in frame t.
  T encoder_weight(int64_t t) const {
    return use(layout.use_of_frame, t) == kSoftmax ? am_share * use(layout.softmax_of_frame, t)
                                                   : T(0);
  }
  T encoder_log(int64_t t) const {
    return static_cast<const T*>(p.smoothing.encoder_logs)[utterance.b * p.frames + t];
  }

  // Adds that term to the sums of a frame, unless it is inexact.
  void add_encoder(int64_t t, const T* scores, T* sums) {
    const T weight = encoder_weight(t), log = encoder_log(t);
    if (weight == 0 || !(log >= log_smallest)) return;
    const T factor = weight * exp_nonpositive<T>(broadcast<T>(-log))[0];
    for (int64_t i = 0; i < classes; i += L) {
      store(sums + i, load<Vec<T>>(sums + i) + factor * load<Vec<T>>(average + i));
      store(average_factors + i,
            load<Vec<T>>(average_factors + i) + factor * load<Vec<T>>(scores + i));
    }
  }

  // Adds it to the counts of the frame and of the average, if it is inexact.
  void add_inexact_encoder(int64_t t, T* row) {
    const T weight = encoder_weight(t), log = encoder_log(t);
    if (weight == 0 || log >= log_smallest) return;
    for (int64_t i = 0; i < classes; i += L) {
      const Vec<T> terms = (am.at(am_row(t), first + i) - am_top(t)) + average_at(i);
      const Vec<T> counts = weight * exp_nonpositive<T>(terms - log);
      store(row + i, load<Vec<T>>(row + i) + counts);
      store(average_counts + i, load<Vec<T>>(average_counts + i) + counts);
    }
  }

  void write_average() const {
    T* const out = static_cast<T*>(p.average_gradient) + utterance.b * p.classes + first;
    for (int64_t i = 0; i < classes; ++i) {
      const T counts = average_factors[i] * average[i] + average_counts[i];
      out[i] = cotangent == 0 ? T(0) : cotangent * counts;
    }
  }

  // The block's part of a row's gradient from its counts, which it may overwrite.
  template <class Out>
  void write_row(T* row, T blank, Out* out) const {
    constexpr int64_t kLine = kCacheLine / int64_t(sizeof(Out));
    const int64_t at_blank = p.blank_id - first;
    if (0 <= at_blank && at_blank < classes) row[at_blank] += blank;
    if (!stream) {
      int64_t i = 0;
      for (; i + L <= classes; i += L) store_lanes(out + i, load<Vec<T>>(row + i) * cotangent);
      for (; i < classes; ++i) store_scalar(out + i, row[i] * cotangent);
      return;
    }
    // Rows begin anywhere in a cache line; these elements, too.
    alignas(kCacheLine) Out lines[kStride + 2 * kLine];
    const int64_t offset = int64_t(reinterpret_cast<uintptr_t>(out) % kCacheLine / sizeof(Out));
    Out* const staged = lines + offset;
    for (int64_t i = 0; i < classes; i += L) {
      store_lanes(staged + i, load<Vec<T>>(row + i) * cotangent);
    }
    const int64_t head = (kLine - offset) % kLine, begin = head < classes ? head : classes;
    const int64_t end = begin + (classes - begin) / kLine * kLine;
    __builtin_memcpy(out, staged, begin * sizeof(Out));
    stream_lines(out + begin, staged + begin, (end - begin) * sizeof(Out));
    __builtin_memcpy(out + end, staged + end, (classes - end) * sizeof(Out));
  }

  void write_frames(int64_t t, int64_t frames) {
    alignas(64) T scores[kFramesOfBlock * kStride];  // exponentials
    alignas(64) T sums[kFramesOfBlock * kStride];
    const auto use_of = [&](int64_t r) { return use(layout.use_of_frame, t + r); };
    bool any_used = false;
    for (int64_t r = 0; r < frames; ++r) {
      T* const out = scores + r * kStride;
      if (relative && use_of(r) == kSoftmax) {
        any_used = true;
        am.exponentials(am_row(t + r), am_top(t + r), first, classes, out);
      } else {
        fill_zeros(out, stride);
      }
    }
    fill_zeros(sums, round_up(frames, kTileRows) * kStride);
    const bool inexact_here = any_used && multiply(t, frames, scores, sums);
    any_inexact |= inexact_here;
    const bool smoothed = any_used && p.smoothing.used();
    for (int64_t r = 0; r < frames && smoothed; ++r) {
      add_encoder(t + r, scores + r * kStride, sums + r * kStride);
    }
    for (int64_t r = 0; r < frames; ++r) {
      In* const out = static_cast<In*>(p.am_gradient) + (am_row(t + r) - am.data) + first;
      if (use_of(r) == kUnused) {
        fill_zeros(out, classes);
        continue;
      }
      T* const row = sums + r * kStride;
      const T* const factors = scores + r * kStride;
      for (int64_t i = 0; i < classes; i += L) {
        store(row + i, load<Vec<T>>(row + i) * load<Vec<T>>(factors + i));
      }
      for (int64_t u = 0; u < p.cells && inexact_here; ++u) add_inexact_cell(t + r, u, row);
      if (smoothed) add_inexact_encoder(t + r, row);
      const T arcs_share = joint_share + am_share;
      const T* const label_weights = utterance.label + (t + r) * p.cells;
      for (int64_t k = 0; k < num_labels; ++k) {
        row[labels[k].offset] -= arcs_share * label_weights[labels[k].position];
      }
      write_row(row, arcs_share * use(layout.blank_of_frame, t + r), out);
    }
  }

  template <class Out>
  void write_position(int64_t u, Out* gradient) const {
    Out* const out = gradient + (lm_row(u) - lm.data) + first;
    if (use(layout.use_of_position, u) == kUnused) return fill_zeros(out, classes);
    T* const row = counts + u * stride;
    const T* const scores = exponentials + u * stride;
    for (int64_t i = 0; i < classes && relative; i += L) {
      store(row + i, load<Vec<T>>(row + i) * load<Vec<T>>(scores + i));
    }
    for (int64_t t = 0; t < p.frames && any_inexact; ++t) add_inexact_cell(t, u, row);
    const int64_t label = label_of(u) - first;
    if (0 <= label && label < classes) {
      row[label] -= joint_share * use(layout.label_of_position, u);
    }
    write_row(row, joint_share * use(layout.blank_of_position, u), out);
  }
};

template <class In>
void factored_classes_block(const FactoredBackward& p, int64_t item) {
  const int64_t blocks =
      factored_backward_layout(p.frames, p.cells, p.classes, sizeof(Accumulator<In>)).blocks;
  GradientOfClasses<In>(p, item / blocks, item % blocks).run();
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
