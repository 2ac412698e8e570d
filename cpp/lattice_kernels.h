// The transducer recursion, forward and backward, of one utterance at a time.
//
// Fronts. Every topology is walked front by front: a front is an anti-diagonal t + u = n (regular)
// or a frame t = n (modified, constrained). In (n, u) coordinates they are one recursion,
//
//   alpha(n+1, u) = alpha(n, u) blank(n, u)  +  alpha(n, u-1) label(n, u-1),
//
// from node (0, 0) to node (N, U), with N = T + U (regular) or T. All nodes of a front are
// independent, so they are the SIMD lanes, and every complete path crosses each front exactly once.
//
// Numbers. Probabilities are kept as mantissa * 2^exponent, with a float mantissa and an integer
// exponent per node. A step is then two products and one aligned sum: no exp or log in the chain of
// dependent steps, and no rounding that grows with the log-likelihood. Mantissas are brought back
// to [1, 2) and exponents to the front's maximum every kBlock fronts; in between a mantissa stays
// within 2^-16 .. 2^24.
//
// Posteriors. alpha * arc * beta of all arcs that leave one front sum to the likelihood; dividing
// by that front's own sum conserves the posterior mass exactly, whatever the recursions' rounding.
#pragma once

#include "extended.h"
#include "kernels.h"
#include "lattice_layout.h"

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

template <class T>
JAX_RNNT_INLINE VectorRange<T> vectors_of_front(const Trellis<T>& trellis, int64_t n) {
  constexpr int64_t L = kLanes<T>;
  return {trellis.lowest(n) / L * L, (trellis.highest(n) + L) / L * L};
}

// The neighbours of a front's vectors are read by the next front.
template <class T>
JAX_RNNT_INLINE void kill_borders(Row<T> row, VectorRange<T> range) {
  store_row(row, range.begin - kLanes<T>, dead<T>());
  store_row(row, range.end, dead<T>());
}

template <class T>
JAX_RNNT_INLINE void set_single(Row<T> row, int64_t u, VectorRange<T> range) {
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) store_row(row, v, dead<T>());
  kill_borders(row, range);
  row.mantissa[u] = 1;
  row.exponent[u] = 0;
}

template <class T>
void advance(const Trellis<T>& trellis, int64_t n, const T* blank, const T* label, Row<T> from,
             Row<T> to) {
  const VectorRange<T> range = vectors_of_front(trellis, n + 1);
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    const Extended<T> stay = multiply(load_row(from, v), exp_extended<T>(load<Vec<T>>(blank + v)));
    const Extended<T> move =
        multiply(load_row(from, v - 1), exp_extended<T>(load<Vec<T>>(label + v - 1)));
    store_row(to, v, add(stay, move));
  }
  kill_borders(to, range);
}

// One step of beta, from front n + 1 (`from`) to front n (`to`). Replaces the arcs of front n by
// their posteriors times a factor that all arcs of the front share, and returns the sum of these.
// `exponent` is that of alpha's and beta's offsets less the likelihood's.
template <class T>
T retreat(const Trellis<T>& trellis, int64_t n, T* blank, T* label, Row<T> alpha, Int<T> exponent,
          Row<T> from, Row<T> to) {
  const VectorRange<T> range = vectors_of_front(trellis, n);
  const auto posterior = [&](Extended<T> a, Extended<T> rest) __attribute__((always_inline)) {
    // Floors that keep the sums from overflowing; what reaches them is 0 in any case.
    const IntVec<T> floor = IntVec<T>{} + kDead<T>, first = a.exponent + exponent;
    IntVec<T> e = (first < floor ? floor : first) + (rest.exponent < floor ? floor : rest.exponent);
    const IntVec<T> ceiling = IntVec<T>{} + Traits<T>::kExponentBias;
    e = e > ceiling ? ceiling : e;
    return a.mantissa * rest.mantissa * exp2_int<T>(e);
  };
  Vec<T> sum{};
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    const Extended<T> a = load_row(alpha, v);
    const Extended<T> stay = multiply(load_row(from, v), exp_extended<T>(load<Vec<T>>(blank + v)));
    const Extended<T> move =
        multiply(load_row(from, v + 1), exp_extended<T>(load<Vec<T>>(label + v)));
    store_row(to, v, add(stay, move));
    const Vec<T> blank_posterior = posterior(a, stay), label_posterior = posterior(a, move);
    store(blank + v, blank_posterior);
    store(label + v, label_posterior);
    sum += blank_posterior + label_posterior;
  }
  kill_borders(to, range);
  return sum_of_lanes<T>(sum)[0];
}

// One utterance's part of the workspace.
template <class T>
struct Workspace {
  T* memory;
  LatticeLayout layout;

  T* row(int64_t part, int64_t index) const {
    return memory + part + index * layout.stride + kPadding;
  }
  Int<T>* integer_row(int64_t part, int64_t index) const {
    return reinterpret_cast<Int<T>*>(row(part, index));
  }
  double* offsets() const { return reinterpret_cast<double*>(memory + layout.offsets); }
  Row<T> alpha(int64_t n) const {
    const int64_t kept = layout.kept_rows == 2 ? n % 2 : n;
    return {row(layout.alpha_mantissa, kept), integer_row(layout.alpha_exponent, kept)};
  }
  Row<T> beta(int which) const {
    return {row(layout.beta, 2 * which), integer_row(layout.beta, 2 * which + 1)};
  }
  Tile<T> tile() const { return {row(layout.tile, 0), row(layout.tile, kBlock), layout.stride}; }
};

// alpha over all fronts; returns the log-likelihood's mantissa and exponent (mantissa 0: no path).
template <class T>
struct Likelihood {
  T mantissa;
  double exponent;
};

template <class T>
Likelihood<T> run_forward(const Trellis<T>& trellis, const Workspace<T>& w) {
  const Tile<T> tile = w.tile();
  set_single(w.alpha(0), 0, vectors_of_front(trellis, 0));
  double offset = 0;
  for (int64_t n0 = 0; n0 < trellis.fronts; n0 += kBlock) {
    const int64_t n1 = n0 + kBlock < trellis.fronts ? n0 + kBlock : trellis.fronts;
    w.offsets()[n0 / kBlock] = offset;
    fill_tile(trellis, n0, n1, tile);
    for (int64_t n = n0; n < n1; ++n) {
      const int64_t row = (n - n0) * tile.stride;
      advance(trellis, n, tile.blank + row, tile.label + row, w.alpha(n), w.alpha(n + 1));
    }
    offset += double(renormalise(w.alpha(n1), vectors_of_front(trellis, n1)));
  }
  const Row<T> end = w.alpha(trellis.fronts);
  return {end.mantissa[trellis.labels], offset + double(end.exponent[trellis.labels])};
}

template <class T>
void run_backward(const Trellis<T>& trellis, const Workspace<T>& w, double likelihood_exponent) {
  const Tile<T> tile = w.tile();
  Row<T> from = w.beta(0), to = w.beta(1);
  set_single(from, trellis.labels, vectors_of_front(trellis, trellis.fronts));
  double offset = 0;
  for (int64_t n0 = (trellis.fronts - 1) / kBlock * kBlock; n0 >= 0; n0 -= kBlock) {
    const int64_t n1 = n0 + kBlock < trellis.fronts ? n0 + kBlock : trellis.fronts;
    const double exponent = w.offsets()[n0 / kBlock] + offset - likelihood_exponent;
    const double limit = -2 * double(kDead<T>);
    const Int<T> bounded = Int<T>(exponent < limit ? exponent : limit);
    T scale[kBlock];
    fill_tile(trellis, n0, n1, tile);
    for (int64_t n = n1 - 1; n >= n0; --n) {
      const int64_t row = (n - n0) * tile.stride;
      const T sum =
          retreat(trellis, n, tile.blank + row, tile.label + row, w.alpha(n), bounded, from, to);
      scale[n - n0] = sum > 0 ? 1 / sum : T(0);
      const Row<T> swap = from;
      from = to;
      to = swap;
    }
    drain_tile(trellis, n0, n1, tile, scale);
    offset += double(renormalise(from, vectors_of_front(trellis, n0)));
  }
}

template <class T>
void lattice_utterance(const Lattice& p, int64_t b) {
  const Bounds& bounds = p.bounds[b];
  T& log_likelihood = static_cast<T*>(p.log_likelihood)[b];
  const int64_t plane = b * p.frames * p.cells;
  const bool with_posteriors = p.blank_posteriors != nullptr;
  T* blank_out = with_posteriors ? static_cast<T*>(p.blank_posteriors) + plane : nullptr;
  T* label_out = with_posteriors ? static_cast<T*>(p.label_posteriors) + plane : nullptr;
  if (with_posteriors) {
    __builtin_memset(blank_out, 0, p.frames * p.cells * sizeof(T));
    __builtin_memset(label_out, 0, p.frames * p.cells * sizeof(T));
  }
  log_likelihood = T(__builtin_nan(""));
  if (!bounds.valid(p.frames, p.cells - 1)) return;

  const int64_t first = bounds.frame_begin * p.cells + bounds.label_begin;
  Trellis<T> trellis;
  trellis.frames = bounds.frame_end - bounds.frame_begin;
  trellis.labels = bounds.label_end - bounds.label_begin;
  trellis.regular = p.topology == Topology::kRegular;
  trellis.constrained = p.topology == Topology::kConstrained;
  // A regular lattice without frames has no arcs at all.
  trellis.fronts = trellis.frames + (trellis.regular && trellis.frames > 0 ? trellis.labels : 0);
  trellis.last_arc_is_blank = trellis.regular || p.final_blank;
  trellis.first_frame = bounds.frame_begin;
  trellis.frame_end = bounds.frame_end;
  trellis.delay_penalty = p.delay_penalty;
  trellis.plane_stride = p.cells;
  trellis.blank = static_cast<const T*>(p.blank) + plane + first;
  trellis.label = static_cast<const T*>(p.label) + plane + first;
  trellis.blank_out = with_posteriors ? blank_out + first : nullptr;
  trellis.label_out = with_posteriors ? label_out + first : nullptr;

  log_likelihood = T(-__builtin_inf());
  if (trellis.fronts == 0) {
    if (trellis.labels == 0) log_likelihood = 0;
    return;
  }
  if (!trellis.feasible()) return;

  const Workspace<T> workspace{static_cast<T*>(p.workspace) + b * p.workspace_elements,
                               lattice_layout(p.frames, p.cells, trellis.regular, with_posteriors)};
  const Likelihood<T> likelihood = run_forward(trellis, workspace);
  if (likelihood.mantissa == 0) return;
  log_likelihood =
      T(__builtin_log(double(likelihood.mantissa)) + likelihood.exponent * 0.69314718055994530942);
  if (with_posteriors && log_likelihood == log_likelihood) {
    run_backward(trellis, workspace, likelihood.exponent);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
