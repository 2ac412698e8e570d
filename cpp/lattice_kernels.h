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
// Halves. alpha runs from the first front to the middle one and beta from the last one, each
// without the other: by two threads at once, where there are few utterances. In the middle, alpha *
// beta are the posteriors of the nodes, in proportion.
//
// Posteriors. From the middle on to either end, a node's posterior is divided among its arcs to the
// next front by the shares that these had in the node's alpha, or beta, and makes those of the
// nodes there. That is alpha * arc * beta over the likelihood, with no more rounding than in these,
// and without beta in the first half or alpha in the second. Since shares, and the posteriors of a
// front's nodes, add up to one, the posterior mass is conserved, whatever the recursions' rounding.
//
// One thread takes the same steps as two, and nothing in them depends on another utterance: the
// results are the same, to the last bit.
#pragma once

#include "lattice_steps.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// One half of a lattice, which begins (first) or ends (second) at the middle front.
enum class Half : int { kFirst = 0, kSecond = 1 };

// One utterance's part of the workspace, with the scratch memory of one half.
template <class T>
struct Workspace {
  T* memory;
  LatticeLayout layout;
  int64_t middle, scratch;

  T* line(int64_t part, int64_t index) const {
    return memory + part + index * layout.stride + kPadding;
  }
  Row<T> row(int64_t part, int64_t index) const {
    return {line(part, 2 * index), reinterpret_cast<Int<T>*>(line(part, 2 * index + 1))};
  }
  double& offset(Half half) const {
    return reinterpret_cast<double*>(memory + layout.offsets)[int(half)];
  }
  Row<T> meeting(Half half) const { return row(layout.meeting, int(half)); }
  Row<T> in_turn(int64_t n) const { return row(scratch, n % 2); }
  T* nodes() const { return line(scratch, 4); }
  Tile<T> tile() const { return {line(scratch, 5), line(scratch, 5 + kBlock), layout.stride}; }
  // The outer end of the block of fronts [n0, n0 + kBlock).
  Row<T> outer(int64_t n0) const { return row(layout.kept, n0 / kBlock); }
};

template <class T>
JAX_RNNT_INLINE int64_t end_of_block(const Trellis<T>& trellis, int64_t n0) {
  return n0 + kBlock < trellis.fronts ? n0 + kBlock : trellis.fronts;
}

// alpha from front 0 to the middle.
template <class T>
void run_alpha(const Trellis<T>& trellis, const Workspace<T>& w) {
  const Tile<T> tile = w.tile();
  const auto row = [&](int64_t n) {
    if (n == w.middle) return w.meeting(Half::kFirst);
    return w.layout.with_posteriors && n % kBlock == 0 ? w.outer(n) : w.in_turn(n);
  };
  set_single(row(0), 0, vectors_of_front(trellis, 0));
  double offset = 0;
  for (int64_t n0 = 0; n0 < w.middle; n0 += kBlock) {
    fill_tile(trellis, n0, n0 + kBlock, tile);
    for (int64_t n = n0; n < n0 + kBlock; ++n) {
      const int64_t at = (n - n0) * tile.stride;
      advance<false>(trellis, n, tile.blank + at, tile.label + at, row(n), row(n + 1));
    }
    const int64_t n1 = n0 + kBlock;
    offset += double(renormalise(row(n1), vectors_of_front(trellis, n1)));
  }
  w.offset(Half::kFirst) = offset;
}

// beta from the last front to the middle.
template <class T>
void run_beta(const Trellis<T>& trellis, const Workspace<T>& w) {
  const Tile<T> tile = w.tile();
  const auto row = [&](int64_t n) {
    if (n == w.middle) return w.meeting(Half::kSecond);
    const bool outer = n % kBlock == 0 || n == trellis.fronts;
    return w.layout.with_posteriors && outer ? w.outer(n - 1) : w.in_turn(n);
  };
  set_single(row(trellis.fronts), trellis.labels, vectors_of_front(trellis, trellis.fronts));
  double offset = 0;
  for (int64_t n0 = (trellis.fronts - 1) / kBlock * kBlock; n0 >= w.middle; n0 -= kBlock) {
    const int64_t n1 = end_of_block(trellis, n0);
    fill_tile(trellis, n0, n1, tile);
    for (int64_t n = n1 - 1; n >= n0; --n) {
      const int64_t at = (n - n0) * tile.stride;
      retreat<false>(trellis, n, tile.blank + at, tile.label + at, row(n + 1), row(n));
    }
    offset += double(renormalise(row(n0), vectors_of_front(trellis, n0)));
  }
  w.offset(Half::kSecond) = offset;
}

// The log-likelihood from alpha and beta in the middle: -inf if there is no path, NaN if anything
// is bad. With posteriors and if it is neither, also those of the nodes there, in proportion.
template <class T>
T meet(const Trellis<T>& trellis, const Workspace<T>& w) {
  const VectorRange<T> range = vectors_of_front(trellis, w.middle);
  const Row<T> alpha = w.meeting(Half::kFirst), beta = w.meeting(Half::kSecond);
  const IntVec<T> none = IntVec<T>{} + 2 * kDead<T>;
  const auto product = [&](int64_t v) __attribute__((always_inline)) {
    return multiply(load_row(alpha, v), load_row(beta, v));
  };
  IntVec<T> highest = none;
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    const Extended<T> node = product(v);
    const IntVec<T> candidate = node.mantissa == T(0) ? none : node.exponent;
    highest = candidate > highest ? candidate : highest;
  }
  const IntVec<T> top = max_of_lanes<T>(highest);
  const auto relative = [&](int64_t v) __attribute__((always_inline)) {
    const Extended<T> node = product(v);
    return node.mantissa * exp2_int<T>(node.exponent > top ? IntVec<T>{} : node.exponent - top);
  };
  Vec<T> sums{};
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) sums += relative(v);
  const T sum = sum_of_lanes<T>(sums)[0];
  if (sum == 0) return T(-__builtin_inf());
  const double exponent = double(top[0]) + w.offset(Half::kFirst) + w.offset(Half::kSecond);
  const T log_likelihood = T(__builtin_log(double(sum)) + exponent * 0.69314718055994530942);
  if (w.layout.with_posteriors && log_likelihood == log_likelihood) {
    T* const nodes = w.nodes();
    __builtin_memset(nodes - kPadding, 0, w.layout.stride * sizeof(T));
    for (int64_t v = range.begin; v < range.end; v += kLanes<T>) store(nodes + v, relative(v));
  }
  return log_likelihood;
}

// From the posteriors of the middle's nodes to those of the first half's arcs.
template <class T>
void run_back(const Trellis<T>& trellis, const Workspace<T>& w) {
  const Tile<T> tile = w.tile();
  for (int64_t n0 = w.middle - kBlock; n0 >= 0; n0 -= kBlock) {
    const int64_t n1 = n0 + kBlock;
    fill_tile(trellis, n0, n1, tile);
    for (int64_t n = n0; n < n1; ++n) {
      const int64_t at = (n - n0) * tile.stride;
      advance<true>(trellis, n, tile.blank + at, tile.label + at,
                    n == n0 ? w.outer(n0) : w.in_turn(n), w.in_turn(n + 1));
    }
    normalise_nodes(w.nodes(), vectors_of_front(trellis, n1));
    for (int64_t n = n1 - 1; n >= n0; --n) {
      const int64_t at = (n - n0) * tile.stride;
      divide_back(trellis, n, tile.blank + at, tile.label + at, w.nodes());
    }
    drain_tile(trellis, n0, n1, tile);
  }
}

// From the posteriors of the middle's nodes to those of the second half's arcs.
template <class T>
void run_forth(const Trellis<T>& trellis, const Workspace<T>& w) {
  const Tile<T> tile = w.tile();
  for (int64_t n0 = w.middle; n0 < trellis.fronts; n0 += kBlock) {
    const int64_t n1 = end_of_block(trellis, n0);
    fill_tile(trellis, n0, n1, tile);
    for (int64_t n = n1 - 1; n >= n0; --n) {
      const int64_t at = (n - n0) * tile.stride;
      retreat<true>(trellis, n, tile.blank + at, tile.label + at,
                    n + 1 == n1 ? w.outer(n0) : w.in_turn(n + 1), w.in_turn(n));
    }
    normalise_nodes(w.nodes(), vectors_of_front(trellis, n0));
    for (int64_t n = n0; n < n1; ++n) {
      const int64_t at = (n - n0) * tile.stride;
      divide_forth(trellis, n, tile.blank + at, tile.label + at, w.nodes());
    }
    drain_tile(trellis, n0, n1, tile);
  }
}

// The elements of the planes that utterance b has to write: its plane, or the rows up to those of
// the next one.
struct CellsToWrite {
  int64_t begin, end;
};

JAX_RNNT_INLINE CellsToWrite cells_to_write(const Lattice& p, int64_t b) {
  const PackedRows& packed = p.packed;
  if (!packed.used) return {b * p.frames * p.cells, (b + 1) * p.frames * p.cells};
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
  const bool packed = p.packed.used;
  return lattice_layout(packed ? bounds.frame_end : p.frames, packed ? p.stride(bounds) : p.cells,
                        p.topology == Topology::kRegular, with_posteriors);
}

// Writes zeros to what utterance b has of an output plane, except for the cells within its bounds
// if `around`.
template <class T>
void clear(const Lattice& p, int64_t b, void* plane, bool around) {
  const auto zero = [&](int64_t begin, int64_t end) {
    if (begin < end) {
      __builtin_memset(static_cast<T*>(plane) + begin, 0, (end - begin) * sizeof(T));
    }
  };
  const CellsToWrite cells = cells_to_write(p, b);
  if (!around) return zero(cells.begin, cells.end);
  const Bounds& bounds = p.bounds[b];
  const int64_t stride = p.stride(bounds), width = bounds.label_end - bounds.label_begin + 1;
  int64_t end = cells.begin;  // of what is within the bounds so far
  for (int64_t t = bounds.frame_begin; t < bounds.frame_end; ++t) {
    const int64_t begin = p.first_cell(b) + t * stride + bounds.label_begin;
    zero(end, begin);
    end = begin + width;
  }
  zero(end, cells.end);
}

template <class T>
JAX_RNNT_INLINE Trellis<T> trellis_of(const Lattice& p, int64_t b) {
  const Bounds& bounds = p.bounds[b];
  const int64_t stride = p.stride(bounds);
  const int64_t first = p.first_cell(b) + bounds.frame_begin * stride + bounds.label_begin;
  const bool with_posteriors = p.blank_posteriors != nullptr;
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
  trellis.blank_out = with_posteriors ? static_cast<T*>(p.blank_posteriors) + first : nullptr;
  trellis.label_out = with_posteriors ? static_cast<T*>(p.label_posteriors) + first : nullptr;
  return trellis;
}

// Whether utterance b has arcs on complete paths; if not, `log_likelihood` says why.
template <class T>
bool has_paths(const Lattice& p, int64_t b, T& log_likelihood) {
  log_likelihood = T(__builtin_nan(""));
  if (!p.valid(b)) return false;
  const Trellis<T> trellis = trellis_of<T>(p, b);
  const bool empty = trellis.fronts == 0;
  log_likelihood = empty && trellis.labels == 0 ? T(0) : T(-__builtin_inf());
  return !empty && trellis.feasible();
}

// With the first or second part of the scratch memory.
template <class T>
void step_of_utterance(const Lattice& p, int64_t b, LatticeStep step, int64_t scratch) {
  const bool with_posteriors = p.blank_posteriors != nullptr;
  const bool inward = step == LatticeStep::kFirstInward || step == LatticeStep::kSecondInward;
  const bool first = step == LatticeStep::kFirstInward || step == LatticeStep::kFirstOutward;
  bool written = false;
  T log_likelihood;
  if (has_paths(p, b, log_likelihood)) {
    const Trellis<T> trellis = trellis_of<T>(p, b);
    const LatticeLayout layout = layout_of(p, p.bounds[b], with_posteriors);
    const Workspace<T> w{static_cast<T*>(p.workspace) + p.first_workspace_element(b), layout,
                         trellis.middle(),
                         layout.scratch + scratch * LatticeLayout::kScratchRows * layout.stride};
    if (inward) return first ? run_alpha(trellis, w) : run_beta(trellis, w);
    log_likelihood = meet(trellis, w);
    written = with_posteriors && __builtin_isfinite(log_likelihood);
    if (written) first ? run_back(trellis, w) : run_forth(trellis, w);
  }
  if (inward) return;
  if (first) static_cast<T*>(p.log_likelihood)[b] = log_likelihood;
  if (with_posteriors) clear<T>(p, b, first ? p.blank_posteriors : p.label_posteriors, written);
}

// By one of two threads, each of which has scratch memory of its own.
template <class T>
void step_of_utterance(const Lattice& p, int64_t b, LatticeStep step) {
  const bool first = step == LatticeStep::kFirstInward || step == LatticeStep::kFirstOutward;
  step_of_utterance<T>(p, b, step, first ? 0 : 1);
}

// All steps by one thread, which turns back where it has just been.
template <class T>
void lattice_utterance(const Lattice& p, int64_t b) {
  step_of_utterance<T>(p, b, LatticeStep::kFirstInward, 0);
  step_of_utterance<T>(p, b, LatticeStep::kSecondInward, 0);
  step_of_utterance<T>(p, b, LatticeStep::kSecondOutward, 0);
  step_of_utterance<T>(p, b, LatticeStep::kFirstOutward, 0);
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
