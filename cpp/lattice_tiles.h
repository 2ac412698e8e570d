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
};

// A tile holds kBlock fronts of arcs (later of posteriors), front-major.
template <class T>
struct Tile {
  T *blank, *label;  // element (front n0, u = 0)
  int64_t stride;
};

// Rows of a plane, of which the fronts [n0, n1) take up whole pieces: one label cell of each front.
// A regular lattice turns L of them at a time, as squares of registers, into L vectors of the tile;
// element by element this copying would take longer than the recursion itself.
struct RowRange {
  int64_t begin, end;
};

template <class T>
JAX_RNNT_INLINE RowRange whole_rows(const Trellis<T>& trellis, int64_t n0, int64_t n1) {
  const int64_t begin = n1 > trellis.labels ? n1 - trellis.labels : 0;
  const int64_t last_frame = trellis.frames - 1;  // its blank arcs are special
  const int64_t end = n0 + 1 < last_frame ? n0 + 1 : last_frame;
  if (!trellis.regular || n1 - n0 != kBlock || end <= begin) return {0, 0};
  return {begin, begin + (end - begin) / kLanes<T> * kLanes<T>};
}

// Calls body(row, column, tile_row, tile_column) for every square of lanes in the whole rows:
// element (row - i, column + i + j) of the plane is element (tile_row + j, tile_column + i + j) of
// the tile.
template <class T, class Body>
JAX_RNNT_INLINE void for_each_square(RowRange rows, int64_t n0, Body body) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t t = rows.begin; t < rows.end; t += L) {
    for (int64_t k = 0; k < kBlock; k += L) {
      const int64_t last = t + L - 1;
      body(last, n0 + k - last, k);
    }
  }
}

// Calls body(front, t, u_begin, u_end) for the pieces of all other plane rows that hold cells of
// the fronts [n0, n1): u_end - u_begin cells of row t, the first of them on front `front`.
template <class T, class Body>
JAX_RNNT_INLINE void for_each_piece(const Trellis<T>& trellis, int64_t n0, int64_t n1,
                                    RowRange skipped, Body body) {
  if (!trellis.regular) {
    for (int64_t n = n0; n < n1; ++n) body(n, n, trellis.lowest(n), trellis.highest(n) + 1);
    return;
  }
  const int64_t first = n0 > trellis.labels ? n0 - trellis.labels : 0;
  const int64_t last = n1 < trellis.frames ? n1 : trellis.frames;
  for (int64_t t = first; t < last; ++t) {
    if (skipped.begin <= t && t < skipped.end) t = skipped.end;
    if (t >= last) break;
    const int64_t begin = n0 > t ? n0 - t : 0;
    const int64_t end = n1 - t < trellis.labels + 1 ? n1 - t : trellis.labels + 1;
    body(t + begin, t, begin, end);
  }
}

template <class T>
JAX_RNNT_INLINE T delay_of_frame(const Trellis<T>& trellis, int64_t t) {
  return T(trellis.delay_penalty * ((trellis.frame_end - 1) / 2 - double(trellis.first_frame + t)));
}

// Copies the arcs of the fronts [n0, n1) into the tile; arcs on no complete path become -inf.
template <class T>
void fill_tile(const Trellis<T>& trellis, int64_t n0, int64_t n1, const Tile<T>& tile) {
  constexpr int L = kLanes<T>;
  const T minus_inf = T(-__builtin_inf());
  for (int64_t i = -kPadding; i < (n1 - n0) * tile.stride - kPadding; ++i) {
    tile.blank[i] = tile.label[i] = minus_inf;
  }
  const RowRange whole = whole_rows(trellis, n0, n1);
  for_each_square<T>(whole, n0, [&](int64_t row, int64_t column, int64_t front) {
    Vec<T> blank[L], label[L];
    for (int i = 0; i < L; ++i) {
      const int64_t cell = (row - i) * trellis.plane_stride + column + i;
      blank[i] = load<Vec<T>>(trellis.blank + cell);
      label[i] = load<Vec<T>>(trellis.label + cell) + delay_of_frame(trellis, row - i);
    }
    transpose<T>(blank);
    transpose<T>(label);
    for (int j = 0; j < L; ++j) {
      const int64_t element = (front + j) * tile.stride + column + j;
      store(tile.blank + element, blank[j]);
      store(tile.label + element, label[j]);
    }
  });
  const int64_t step = tile.stride * trellis.regular + 1;  // from cell (t, u) to (t, u + 1)
  for_each_piece(trellis, n0, n1, whole, [&](int64_t front, int64_t t, int64_t begin, int64_t end) {
    const T* blank = trellis.blank + t * trellis.plane_stride;
    const T* label = trellis.label + t * trellis.plane_stride;
    T* blank_tile = tile.blank + (front - n0) * tile.stride + begin;
    T* label_tile = tile.label + (front - n0) * tile.stride + begin;
    const T delay = delay_of_frame(trellis, t);
    // A blank arc is dead where too few fronts are left for the labels that remain.
    const int64_t lowest_next = !trellis.regular          ? trellis.lowest(front + 1)
                                : t == trellis.frames - 1 ? trellis.labels
                                                          : 0;
    const int64_t blank_begin = lowest_next > begin ? lowest_next : begin;
    const int64_t label_end = end < trellis.labels ? end : trellis.labels;
    for (int64_t u = blank_begin; u < end; ++u) blank_tile[(u - begin) * step] = blank[u];
    for (int64_t u = begin; u < label_end; ++u) label_tile[(u - begin) * step] = label[u] + delay;
    if (trellis.constrained) {
      for (int64_t u = begin; u < label_end; ++u) label_tile[(u - begin) * step] += blank[u + 1];
    }
  });
}

// Writes the tile, now posteriors, to the output planes, each front times its scale.
template <class T>
void drain_tile(const Trellis<T>& trellis, int64_t n0, int64_t n1, const Tile<T>& tile,
                const T* scale) {
  constexpr int L = kLanes<T>;
  const RowRange whole = whole_rows(trellis, n0, n1);
  for_each_square<T>(whole, n0, [&](int64_t row, int64_t column, int64_t front) {
    Vec<T> blank[L], label[L];
    for (int j = 0; j < L; ++j) {
      const int64_t element = (front + j) * tile.stride + column + j;
      blank[j] = load<Vec<T>>(tile.blank + element) * scale[front + j];
      label[j] = load<Vec<T>>(tile.label + element) * scale[front + j];
    }
    transpose<T>(blank);
    transpose<T>(label);
    for (int i = 0; i < L; ++i) {
      const int64_t cell = (row - i) * trellis.plane_stride + column + i;
      store(trellis.blank_out + cell, blank[i]);
      store(trellis.label_out + cell, label[i]);
    }
  });
  const int64_t step = tile.stride * trellis.regular + 1;
  for_each_piece(trellis, n0, n1, whole, [&](int64_t front, int64_t t, int64_t begin, int64_t end) {
    T* blank = trellis.blank_out + t * trellis.plane_stride;
    T* label = trellis.label_out + t * trellis.plane_stride;
    const T* blank_tile = tile.blank + (front - n0) * tile.stride + begin;
    const T* label_tile = tile.label + (front - n0) * tile.stride + begin;
    const T* s = scale + (front - n0);
    for (int64_t u = begin; u < end; ++u) {
      const T front_scale = s[trellis.regular ? u - begin : 0];
      blank[u] = blank_tile[(u - begin) * step] * front_scale;
      label[u] = label_tile[(u - begin) * step] * front_scale;
    }
    if (trellis.constrained) {
      // A constrained label arc is l(t, u) + b(t, u + 1): it is an occurrence of both.
      const int64_t label_end = end < trellis.labels ? end : trellis.labels;
      for (int64_t u = begin; u < label_end; ++u) blank[u + 1] += label[u];
    }
  });
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
