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
#include "lattice_tiles.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

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
    int64_t kept = n;
    if (layout.kept == KeptAlpha::kTwo) kept = n % 2;
    if (layout.kept == KeptAlpha::kBlocks) kept = n % kBlock ? n % kBlock : kBlock + n / kBlock;
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
    T scale[kBlock] = {};
    fill_tile(trellis, n0, n1, tile);
    if (w.layout.kept == KeptAlpha::kBlocks && n1 < trellis.fronts) {
      for (int64_t n = n0; n < n1 - 1; ++n) {
        const int64_t row = (n - n0) * tile.stride;
        advance(trellis, n, tile.blank + row, tile.label + row, w.alpha(n), w.alpha(n + 1));
      }
    }
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

// The elements of the planes that utterance b has to write: its plane, or the rows up to those of
// the next one.
struct CellsToWrite {
  int64_t begin, end;
};

JAX_RNNT_INLINE CellsToWrite cells_to_write(const Lattice& p, int64_t b) {
  const PackedRows& packed = p.packed;
  if (packed.offsets == nullptr) return {b * p.frames * p.cells, (b + 1) * p.frames * p.cells};
  const int64_t item = packed.plane(b), first = item * packed.utterances;
  const auto row = [&](int64_t of) {
    if (of == first) return int64_t{0};
    const int64_t offset = of < first + packed.utterances ? packed.offsets[of] : packed.rows;
    return offset < 0 ? 0 : offset < packed.rows ? offset : packed.rows;
  };
  return {item * packed.rows + row(b), item * packed.rows + row(b + 1)};
}

JAX_RNNT_INLINE LatticeLayout layout_of(const Lattice& p, const Bounds& bounds,
                                        bool with_posteriors) {
  const bool packed = p.packed.offsets != nullptr;
  return lattice_layout(packed ? bounds.frame_end : p.frames, packed ? p.stride(bounds) : p.cells,
                        p.topology == Topology::kRegular,
                        with_posteriors ? KeptAlpha::kBlocks : KeptAlpha::kTwo);
}

template <class T>
void lattice_utterance(const Lattice& p, int64_t b) {
  const Bounds& bounds = p.bounds[b];
  T& log_likelihood = static_cast<T*>(p.log_likelihood)[b];
  T* const blank_out = static_cast<T*>(p.blank_posteriors);
  T* const label_out = static_cast<T*>(p.label_posteriors);
  const bool with_posteriors = blank_out != nullptr;
  if (with_posteriors) {
    const CellsToWrite cells = cells_to_write(p, b);
    if (cells.begin < cells.end) {
      __builtin_memset(blank_out + cells.begin, 0, (cells.end - cells.begin) * sizeof(T));
      __builtin_memset(label_out + cells.begin, 0, (cells.end - cells.begin) * sizeof(T));
    }
  }
  log_likelihood = T(__builtin_nan(""));
  if (!p.valid(b)) return;

  const int64_t stride = p.stride(bounds);
  const int64_t first = p.first_cell(b) + bounds.frame_begin * stride + bounds.label_begin;
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
  trellis.plane_stride = stride;
  trellis.blank = static_cast<const T*>(p.blank) + first;
  trellis.label = static_cast<const T*>(p.label) + first;
  trellis.blank_out = with_posteriors ? blank_out + first : nullptr;
  trellis.label_out = with_posteriors ? label_out + first : nullptr;

  log_likelihood = T(-__builtin_inf());
  if (trellis.fronts == 0) {
    if (trellis.labels == 0) log_likelihood = 0;
    return;
  }
  if (!trellis.feasible()) return;

  const Workspace<T> workspace{static_cast<T*>(p.workspace) + p.first_workspace_element(b),
                               layout_of(p, bounds, with_posteriors)};
  const Likelihood<T> likelihood = run_forward(trellis, workspace);
  if (likelihood.mantissa == 0) return;
  log_likelihood =
      T(__builtin_log(double(likelihood.mantissa)) + likelihood.exponent * 0.69314718055994530942);
  if (with_posteriors && log_likelihood == log_likelihood) {
    run_backward(trellis, workspace, likelihood.exponent);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
