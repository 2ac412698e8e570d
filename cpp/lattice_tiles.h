// One utterance's trellis, and its arcs copied from planes, row by row of cells, to tiles, front by
// front, as the recursion reads them; posteriors back.
#pragma once

#include "kernels.h"
#include "lattice_layout.h"
#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// One utterance's trellis in relative (n, u) coordinates, and where its arcs lie in the planes.
template <class T>
struct Trellis {
  int64_t frames, labels, fronts;  // T, U, N
  bool regular, constrained;
  bool last_arc_is_blank;
  int64_t first_frame;
  double frame_end;
  double delay_penalty;
  int64_t plane_stride;      // W of the plane
  const T *blank, *label;    // of cell (0, 0)
  T *blank_out, *label_out;  // likewise

  // Nodes of front n that a complete path can visit.
  int64_t lowest(int64_t n) const {
    const int64_t u = n == fronts ? labels : labels - (fronts - n) + last_arc_is_blank;
    return u > 0 ? u : 0;
  }
  int64_t highest(int64_t n) const { return n < labels ? n : labels; }
  bool feasible() const { return lowest(0) == 0; }
  // Where alpha and beta meet: a multiple of kBlock that is less than `fronts`.
  int64_t middle() const { return (fronts + kBlock - 1) / kBlock / 2 * kBlock; }
};

// A tile holds kBlock fronts of arcs (later of posteriors), front-major.
template <class T>
struct Tile {
  T *blank, *label;  // element (front n0, u = 0)
  int64_t stride;
};

template <class T>
JAX_RNNT_INLINE T delay_of_frame(const Trellis<T>& trellis, int64_t t) {
  return T(trellis.delay_penalty * ((trellis.frame_end - 1) / 2 - double(trellis.first_frame + t)));
}

// A regular lattice's cells of kLanes frames and fronts: cell (t, u), t = last_frame - i and
// u = column + i + j, is element (tile_row + j, u) of the tile. As a square of registers, it is
// turned from L vectors of the plane to L vectors of the tile; element by element this copying
// would take longer than the recursion itself.
struct Square {
  int64_t last_frame, column, tile_row;
};

// Calls whole(square) or partial(square) for squares that hold all cells of kBlock fronts from n0
// on, and two vectors at least on either side of each front's, of which the recursion reads one. A
// whole one has nothing but cells with both arcs.
template <class T, class Whole, class Partial>
JAX_RNNT_INLINE void for_each_square(const Trellis<T>& trellis, int64_t n0, Whole whole,
                                     Partial partial) {
  constexpr int64_t L = kLanes<T>;
  const int64_t last = n0 + kBlock - 1, beyond = last - (trellis.frames - 1 + 3 * L);
  const int64_t lowest_column_ends = n0 - trellis.labels - L, before = -2 * L - 1;
  const int64_t end = lowest_column_ends > before ? lowest_column_ends : before;
  for (int64_t t = beyond > 0 ? last - (beyond + L - 1) / L * L : last; t > end; t -= L) {
    for (int64_t k = 0; k < kBlock; k += L) {
      const Square square{t, n0 + k - t, k};
      const int64_t lowest = square.column, highest = lowest + 2 * (L - 1);
      if (highest < 0 || lowest > trellis.labels) continue;
      if (lowest >= 0 && highest < trellis.labels && t - L + 1 >= 0 && t < trellis.frames - 1) {
        whole(square);
      } else {
        partial(square);
      }
    }
  }
}

template <class T>
void fill_regular(const Trellis<T>& trellis, int64_t n0, const Tile<T>& tile) {
  constexpr int L = kLanes<T>;
  const T minus_inf = T(-__builtin_inf());
  const Vec<T> dead = broadcast<T>(minus_inf);
  // What the recursion reads on either side of a front's cells.
  for (int64_t row = 0; row < kBlock; ++row) {
    const int64_t left = row * tile.stride - L, right = row * tile.stride + trellis.labels + 1;
    store(tile.blank + left, dead);
    store(tile.label + left, dead);
    store(tile.blank + right, dead);
    store(tile.label + right, dead);
  }
  const auto turn = [&](const Square& square, Vec<T>(&blank)[L],
                        Vec<T>(&label)[L]) __attribute__((always_inline)) {
    transpose<T>(blank);
    transpose<T>(label);
    for (int j = 0; j < L; ++j) {
      const int64_t u = square.column + j, element = (square.tile_row + j) * tile.stride + u;
      if (u > trellis.labels) break;
      store(tile.blank + element, blank[j]);
      store(tile.label + element, label[j]);
    }
  };
  for_each_square<T>(
      trellis, n0,
      [&](const Square& square) __attribute__((always_inline)) {
        Vec<T> blank[L], label[L];
        for (int i = 0; i < L; ++i) {
          const int64_t t = square.last_frame - i;
          const int64_t cell = t * trellis.plane_stride + square.column + i;
          blank[i] = load<Vec<T>>(trellis.blank + cell);
          label[i] = load<Vec<T>>(trellis.label + cell) + delay_of_frame(trellis, t);
        }
        turn(square, blank, label);
      },
      [&](const Square& square) __attribute__((always_inline)) {
        Vec<T> blank[L], label[L];
        for (int i = 0; i < L; ++i) {
          const int64_t t = square.last_frame - i, u = square.column + i;
          blank[i] = label[i] = dead;
          // Where no page is mapped, reading nothing takes as long as an interrupt.
          if (t < 0 || t >= trellis.frames) continue;
          const int64_t cell = t * trellis.plane_stride + u;
          // A last blank arc that does not end the path is on no path.
          const int64_t first = t == trellis.frames - 1 ? trellis.labels : 0;
          const LaneRange with_blank = lanes_between<T>(u, first, trellis.labels + 1);
          const LaneRange with_label = lanes_between<T>(u, 0, trellis.labels);
          blank[i] = load_some(trellis.blank + cell, with_blank.begin, with_blank.end, minus_inf);
          label[i] = load_some(trellis.label + cell, with_label.begin, with_label.end, minus_inf) +
                     delay_of_frame(trellis, t);
        }
        turn(square, blank, label);
      });
}

// Modified and constrained: a front is a frame.
template <class T>
void fill_frames(const Trellis<T>& trellis, int64_t n0, int64_t n1, const Tile<T>& tile) {
  constexpr int L = kLanes<T>;
  const T minus_inf = T(-__builtin_inf());
  for (int64_t n = n0; n < n1; ++n) {
    const T* blank = trellis.blank + n * trellis.plane_stride;
    const T* label = trellis.label + n * trellis.plane_stride;
    const T delay = delay_of_frame(trellis, n);
    const int64_t row = (n - n0) * tile.stride;
    const int64_t begin = trellis.lowest(n), end = trellis.highest(n) + 1;
    const int64_t label_end = end < trellis.labels ? end : trellis.labels;
    // A blank arc is dead where too few fronts are left for the labels that remain.
    const int64_t lowest_next = trellis.lowest(n + 1);
    const int64_t blank_begin = lowest_next > begin ? lowest_next : begin;
    for (int64_t u = -L; u <= trellis.labels + L; u += L) {
      const LaneRange with_blank = lanes_between<T>(u, blank_begin, end);
      const LaneRange with_label = lanes_between<T>(u, begin, label_end);
      Vec<T> move = load_some(label + u, with_label.begin, with_label.end, minus_inf) + delay;
      if (trellis.constrained) {
        move += load_some(blank + u + 1, with_label.begin, with_label.end, minus_inf);
      }
      store(tile.blank + row + u,
            load_some(blank + u, with_blank.begin, with_blank.end, minus_inf));
      store(tile.label + row + u, move);
    }
  }
}

// Copies the arcs of the fronts [n0, n1) into the tile; arcs on no complete path become -inf.
template <class T>
void fill_tile(const Trellis<T>& trellis, int64_t n0, int64_t n1, const Tile<T>& tile) {
  if (trellis.regular) {
    fill_regular(trellis, n0, tile);
  } else {
    fill_frames(trellis, n0, n1, tile);
  }
}

template <class T>
void drain_regular(const Trellis<T>& trellis, int64_t n0, const Tile<T>& tile) {
  constexpr int L = kLanes<T>;
  const auto turn = [&](const Square& square, Vec<T>(&blank)[L],
                        Vec<T>(&label)[L]) __attribute__((always_inline)) {
    for (int j = 0; j < L; ++j) {
      const int64_t element = (square.tile_row + j) * tile.stride + square.column + j;
      blank[j] = load<Vec<T>>(tile.blank + element);
      label[j] = load<Vec<T>>(tile.label + element);
    }
    transpose<T>(blank);
    transpose<T>(label);
  };
  for_each_square<T>(
      trellis, n0,
      [&](const Square& square) __attribute__((always_inline)) {
        Vec<T> blank[L], label[L];
        turn(square, blank, label);
        for (int i = 0; i < L; ++i) {
          const int64_t cell = (square.last_frame - i) * trellis.plane_stride + square.column + i;
          store(trellis.blank_out + cell, blank[i]);
          store(trellis.label_out + cell, label[i]);
        }
      },
      [&](const Square& square) __attribute__((always_inline)) {
        Vec<T> blank[L], label[L];
        turn(square, blank, label);
        for (int i = 0; i < L; ++i) {
          const int64_t t = square.last_frame - i, u = square.column + i;
          if (t < 0 || t >= trellis.frames) continue;
          const int64_t cell = t * trellis.plane_stride + u;
          const LaneRange lanes = lanes_between<T>(u, 0, trellis.labels + 1);
          store_some(trellis.blank_out + cell, lanes.begin, lanes.end, blank[i]);
          store_some(trellis.label_out + cell, lanes.begin, lanes.end, label[i]);
        }
      });
}

template <class T>
void drain_frames(const Trellis<T>& trellis, int64_t n0, int64_t n1, const Tile<T>& tile) {
  constexpr int L = kLanes<T>;
  for (int64_t n = n0; n < n1; ++n) {
    T* blank = trellis.blank_out + n * trellis.plane_stride;
    T* label = trellis.label_out + n * trellis.plane_stride;
    const int64_t row = (n - n0) * tile.stride;
    const int64_t begin = trellis.lowest(n), end = trellis.highest(n) + 1;
    for (int64_t u = 0; u <= trellis.labels; u += L) {
      const LaneRange cells = lanes_between<T>(u, 0, trellis.labels + 1);
      const LaneRange lanes = lanes_between<T>(u, begin, end);
      const Vec<T> stay = load_some(tile.blank + row + u, lanes.begin, lanes.end, T(0));
      const Vec<T> move = load_some(tile.label + row + u, lanes.begin, lanes.end, T(0));
      store_some(blank + u, cells.begin, cells.end, stay);
      store_some(label + u, cells.begin, cells.end, move);
    }
    if (trellis.constrained) {
      // A constrained label arc is l(t, u) + b(t, u + 1): it is an occurrence of both.
      const int64_t label_end = end < trellis.labels ? end : trellis.labels;
      for (int64_t u = begin; u < label_end; ++u) blank[u + 1] += label[u];
    }
  }
}

// Writes the tile, now posteriors, to the output planes.
template <class T>
void drain_tile(const Trellis<T>& trellis, int64_t n0, int64_t n1, const Tile<T>& tile) {
  if (trellis.regular) {
    drain_regular(trellis, n0, tile);
  } else {
    drain_frames(trellis, n0, n1, tile);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
