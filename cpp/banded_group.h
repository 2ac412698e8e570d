// Utterances in the lanes of vectors: their bands' arcs come in as rows of lanes, block of frames
// by block of frames, and go out as posteriors.
#pragma once

#include "banded_corridor.h"
#include "banded_layout.h"
#include "extended.h"
#include "kernels.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// One utterance, from its first frame on.
template <class T>
struct BandedLane {
  int64_t frames;  // 0 when there is nothing to do, then nothing else counts
  const T *blank, *label;
  T *blank_out, *label_out;
  Corridor<T> corridor;
};

template <class T>
struct BandedGroup {
  int64_t cells, slots;
  int64_t utterances, frames;  // the first lanes; frames of the longest
  int64_t frame_stride;        // of corridors
  bool regular, constrained;
  T delay_penalty;
  BandedLane<T> lane[kLanes<T>];
  IntVec<T> frame_count, first_cell, end_cell;  // slots of the first frame's begin, the last's end
  Vec<T> middle;                                // (frame_end - 1) / 2 - frame_begin
  BandedLayout layout;
  T* memory;

  T* at(int64_t part) const { return memory + part; }
  Int<T>* integers_at(int64_t part) const { return reinterpret_cast<Int<T>*>(memory + part); }
  Row<T> alpha(int64_t n) const {
    const int64_t offset = n * cells * utterances;
    return {at(layout.alpha_mantissa) + offset, integers_at(layout.alpha_exponent) + offset};
  }
  Int<T>* alpha_shift(int64_t n) const { return integers_at(layout.alpha_shift) + n * utterances; }
  Row<T> slots_of(int which) const {
    T* row = at(layout.slots) + 2 * which * slots * kLanes<T>;
    return {row, reinterpret_cast<Int<T>*>(row + slots * kLanes<T>)};
  }
};

// Copies `count` elements of each lane's array, from `first` on, into rows of lanes; 0 beyond what
// is available.
template <class T>
void to_lanes(const T* const (&source)[kLanes<T>], int64_t first,
              const int64_t (&available)[kLanes<T>], int64_t count, T* rows) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < count; i += L) {
    Vec<T> square[L];
    for (int k = 0; k < L; ++k) {
      const int64_t rest = available[k] - i;
      if (rest >= L) {
        square[k] = load<Vec<T>>(source[k] + first + i);
      } else {
        T few[L] = {};
        for (int64_t j = 0; j < rest; ++j) few[j] = source[k][first + i + j];
        square[k] = load<Vec<T>>(few);
      }
    }
    transpose<T>(square);
    for (int k = 0; k < L; ++k) store(rows + (i + k) * L, square[k]);
  }
}

// The inverse; writes what is available.
template <class T>
void from_lanes(const T* rows, int64_t count, T* const (&target)[kLanes<T>], int64_t first,
                const int64_t (&available)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < count; i += L) {
    Vec<T> square[L];
    for (int k = 0; k < L; ++k) square[k] = load<Vec<T>>(rows + (i + k) * L);
    transpose<T>(square);
    for (int k = 0; k < L; ++k) {
      const int64_t rest = available[k] - i;
      if (rest >= L) {
        store(target[k] + first + i, square[k]);
      } else {
        for (int64_t j = 0; j < rest; ++j) target[k][first + i + j] = square[k][int(j)];
      }
    }
  }
}

// Elements that each lane has in the frames [n0, n0 + kBandedBlock), `width` a frame.
template <class T>
JAX_RNNT_INLINE void available_in_block(const BandedGroup<T>& g, int64_t n0, int64_t width,
                                        int64_t (&available)[kLanes<T>]) {
  for (int k = 0; k < kLanes<T>; ++k) {
    available[k] = max_of(0, min_of(g.lane[k].frames - n0, kBandedBlock)) * width;
  }
}

// Arcs and corridors of the frames [n0, n0 + kBandedBlock). Those of ended lanes are dead: zeros
// are empty ranges of cells.
template <class T>
void fill_tiles(const BandedGroup<T>& g, int64_t n0) {
  constexpr int L = kLanes<T>;
  const int64_t count = kBandedBlock * g.cells;
  int64_t available[L];
  const T* source[L];
  available_in_block(g, n0, g.cells, available);
  for (int k = 0; k < L; ++k) source[k] = g.lane[k].blank;
  to_lanes<T>(source, n0 * g.cells, available, count, g.at(g.layout.blank_tile));
  for (int k = 0; k < L; ++k) source[k] = g.lane[k].label;
  to_lanes<T>(source, n0 * g.cells, available, count, g.at(g.layout.label_tile));
  available_in_block(g, n0, 1, available);
  for (int64_t row = 0; row < kCorridorRows; ++row) {
    for (int k = 0; k < L; ++k) {
      source[k] = reinterpret_cast<const T*>(g.lane[k].corridor.rows);
    }
    T* tile = g.at(g.layout.corridor_tile) + row * kBandedBlock * L;
    to_lanes<T>(source, row * g.frame_stride + n0, available, kBandedBlock, tile);
  }
}

// Writes the tiles, now posteriors, to the planes.
template <class T>
void drain_tiles(const BandedGroup<T>& g, int64_t n0) {
  constexpr int L = kLanes<T>;
  const int64_t count = kBandedBlock * g.cells;
  int64_t available[L];
  T* target[L];
  available_in_block(g, n0, g.cells, available);
  for (int k = 0; k < L; ++k) target[k] = g.lane[k].blank_out;
  from_lanes<T>(g.at(g.layout.blank_tile), count, target, n0 * g.cells, available);
  for (int k = 0; k < L; ++k) target[k] = g.lane[k].label_out;
  from_lanes<T>(g.at(g.layout.label_tile), count, target, n0 * g.cells, available);
}

// One frame of the tiles.
template <class T>
struct BandedFrame {
  static constexpr int L = kLanes<T>;
  T *blank, *label;  // a row of lanes for each cell
  IntVec<T> blank_begin, blank_end, label_begin, label_end, rotation;
  Vec<T> delay;
  bool constrained;

  JAX_RNNT_INLINE_MEMBER BandedFrame(const BandedGroup<T>& g, int64_t n) {
    const int64_t k = n % kBandedBlock;
    blank = g.at(g.layout.blank_tile) + k * g.cells * L;
    label = g.at(g.layout.label_tile) + k * g.cells * L;
    const Int<T>* corridor = g.integers_at(g.layout.corridor_tile) + k * L;
    const auto row = [&](int which) __attribute__((always_inline)) {
      return load<IntVec<T>>(corridor + which * kBandedBlock * L);
    };
    blank_begin = row(0), blank_end = row(1), label_begin = row(2), label_end = row(3);
    rotation = row(4);
    delay = g.delay_penalty * (g.middle - T(n));
    constrained = g.constrained;
  }

  JAX_RNNT_INLINE_MEMBER Vec<T> blank_log_prob(int64_t s) const {
    return load<Vec<T>>(blank + s * L);
  }
  JAX_RNNT_INLINE_MEMBER Extended<T> blank_arc(int64_t s) const {
    return exp_in_range(blank_log_prob(s), s, blank_begin, blank_end);
  }
  // `above` is the log-probability of the blank arc of cell s + 1, if there is one.
  JAX_RNNT_INLINE_MEMBER Extended<T> label_arc(int64_t s, Vec<T> above) const {
    Vec<T> x = load<Vec<T>>(label + s * L) + delay;
    if (constrained) x += above;
    return exp_in_range(x, s, label_begin, label_end);
  }

 private:
  static JAX_RNNT_INLINE_MEMBER Extended<T> exp_in_range(Vec<T> x, int64_t s, IntVec<T> begin,
                                                         IntVec<T> end) {
    const IntVec<T> inside = (begin <= Int<T>(s)) & (Int<T>(s) < end);
    return exp_extended<T>(inside ? x : broadcast<T>(T(-__builtin_inf())));
  }
};

}  // namespace jax_rnnt::JAX_RNNT_TARGET
