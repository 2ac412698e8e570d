// The transducer recursion over bands of cells, forward and backward, for as many utterances at
// once as a vector has lanes.
//
// A band is too narrow to fill vectors with its cells, and the cells of a frame of a regular
// lattice depend on one another; utterances are independent. A vector holds one cell of each, bands
// move independently (`rotate`), and the lanes of utterances that have ended are dead.
//
// Slots. Slot s of frame n is the node of label position start(n) + s. There are S + 1: a label arc
// to the next frame may leave the band at its upper end, if the next band is higher.
//
// Numbers are as in lattice_kernels.h: mantissa * 2^exponent, with a frame's exponents relative to
// its largest. Every complete path crosses from each frame to the next exactly once, by blank if
// the lattice is regular; dividing by the sum over these arcs conserves the posterior mass.
#pragma once

#include "banded_group.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Mantissas to [1, 2), exponents relative to the largest of each lane, which is returned (0 where
// all are dead).
template <class T>
JAX_RNNT_INLINE IntVec<T> make_relative(Row<T> row, int64_t slots) {
  constexpr int L = kLanes<T>;
  const IntVec<T> none = IntVec<T>{} + (Int<T>{1} << (sizeof(T) * 8 - 1));
  IntVec<T> top = none;
  for (int64_t s = 0; s < slots; ++s) {
    const Extended<T> x = normalised(load_row(row, s * L));
    const IntVec<T> candidate = x.mantissa == T(0) ? none : x.exponent;
    top = candidate > top ? candidate : top;
    store_row(row, s * L, x);
  }
  top = top == none ? IntVec<T>{} : top;
  for (int64_t s = 0; s < slots; ++s) {
    Extended<T> x = load_row(row, s * L);
    x.exponent -= top;
    store_row(row, s * L, in_range(x));
  }
  return top;
}

// Slot s + distance of each lane (modulo the number of slots) at s, by powers of two. `row` and
// `spare` change places as they need to. Nodes in the bands of both frames come to their slots; no
// live arc leads to a node that does not, wherever it comes to.
template <class T>
JAX_RNNT_INLINE void rotate(Row<T>& row, Row<T>& spare, int64_t slots, IntVec<T> distance) {
  constexpr int L = kLanes<T>;
  const Int<T> any = reduce_lanes<T>(
      distance, [](IntVec<T> a, IntVec<T> b) __attribute__((always_inline)) { return a | b; })[0];
  for (Int<T> step = 1; step <= any; step *= 2) {
    if ((any & step) == 0) continue;
    const IntVec<T> moves = (distance & step) != 0;
    for (int64_t s = 0; s < slots; ++s) {
      const int64_t other = s + step < slots ? s + step : s + step - slots;
      const Extended<T> stay = load_row(row, s * L), move = load_row(row, other * L);
      store_row<T>(spare, s * L,
                   {moves ? move.mantissa : stay.mantissa, moves ? move.exponent : stay.exponent});
    }
    const Row<T> swap = row;
    row = spare;
    spare = swap;
  }
}

template <class T>
struct Likelihoods {
  Vec<T> mantissa{};  // 0: no path
  double exponent[kLanes<T>] = {};
};

// alpha of frame n + 1, in the slots of frame n, from alpha of frame n without its own label arcs.
template <class T, bool kRegular>
JAX_RNNT_INLINE void advance_band(const BandedGroup<T>& g, const BandedFrame<T>& frame, Row<T> row,
                                  Row<T> alpha, bool keep) {
  constexpr int L = kLanes<T>;
  Extended<T> moved = dead<T>();  // by the label arc of the cell below
  for (int64_t s = 0; s < g.cells; ++s) {
    Extended<T> x = load_row(row, s * L);
    const Vec<T> above = s + 1 < g.cells ? frame.blank_log_prob(s + 1) : Vec<T>{};
    const Extended<T> blank = frame.blank_arc(s), label = frame.label_arc(s, above);
    if constexpr (kRegular) x = normalised(add(x, moved));
    if (keep) store_row(alpha, s * g.utterances, x);
    Extended<T> stay = multiply(x, blank);
    if constexpr (!kRegular) stay = normalised(add(stay, moved));
    store_row(row, s * L, stay);
    moved = multiply(x, label);
  }
  store_row(row, g.cells * L, kRegular ? dead<T>() : moved);
}

template <class T, bool kRegular>
Likelihoods<T> run_forward_band(const BandedGroup<T>& g, bool keep) {
  constexpr int L = kLanes<T>;
  Row<T> row = g.slots_of(0), spare = g.slots_of(1);
  for (int64_t s = 0; s < g.slots; ++s) {
    const IntVec<T> begin = g.first_cell == Int<T>(s);
    store_row<T>(row, s * L,
                 {begin ? broadcast<T>(1) : Vec<T>{}, begin ? IntVec<T>{} : dead<T>().exponent});
  }
  Likelihoods<T> likelihoods;
  for (int64_t n = 0; n < g.frames; ++n) {
    if (n % kBandedBlock == 0) fill_tiles(g, n);
    const BandedFrame<T> frame(g, n);
    advance_band<T, kRegular>(g, frame, row, g.alpha(n), keep);
    const IntVec<T> shift = make_relative(row, g.slots);
    if (keep) store(g.alpha_shift(n), shift);
    for (int k = 0; k < L; ++k) likelihoods.exponent[k] += double(shift[k]);
    // At an end only its node is alive, with exponent 0. Dead rows change nothing any more.
    Vec<T> sum{};
    for (int64_t s = 0; s < g.slots; ++s) sum += load_row(row, s * L).mantissa;
    likelihoods.mantissa = g.frame_count == Int<T>(n + 1) ? sum : likelihoods.mantissa;
    rotate(row, spare, g.slots, frame.rotation);
  }
  return likelihoods;
}

// beta of frame n from that of frame n + 1, in the slots of frame n. Replaces the arcs of the frame
// by their posteriors.
template <class T, bool kRegular>
JAX_RNNT_INLINE void retreat_band(const BandedGroup<T>& g, const BandedFrame<T>& frame, Row<T> row,
                                  Row<T> alpha, IntVec<T> exponent) {
  constexpr int L = kLanes<T>;
  Extended<T> upper = kRegular ? dead<T>() : load_row(row, g.cells * L);
  store_row(row, g.cells * L, dead<T>());
  Vec<T> above{}, crossing{};
  for (int64_t s = g.cells - 1; s >= 0; --s) {
    const Extended<T> a = load_row(alpha, s * g.utterances), y = load_row(row, s * L);
    const Extended<T> stay = multiply(y, frame.blank_arc(s));
    const Extended<T> move = multiply(upper, frame.label_arc(s, above));
    above = frame.blank_log_prob(s);
    const Extended<T> beta = normalised(add(stay, move));
    store_row(row, s * L, beta);
    upper = kRegular ? beta : y;
    const Vec<T> blank = posterior(a, stay, exponent), label = posterior(a, move, exponent);
    store(frame.blank + s * L, blank);
    store(frame.label + s * L, label);
    crossing += kRegular ? blank : blank + label;
  }
  const Vec<T> scale = crossing > T(0) ? T(1) / crossing : Vec<T>{};
  Vec<T> below{};
  for (int64_t s = 0; s < g.cells; ++s) {
    const Vec<T> label = load<Vec<T>>(frame.label + s * L) * scale;
    Vec<T> blank = load<Vec<T>>(frame.blank + s * L) * scale;
    // A constrained label arc is l(t, u) + b(t, u + 1): it is an occurrence of both.
    if (g.constrained) blank += below;
    store(frame.blank + s * L, blank);
    store(frame.label + s * L, label);
    below = label;
  }
}

template <class T, bool kRegular>
void run_backward_band(const BandedGroup<T>& g) {
  constexpr int L = kLanes<T>;
  Row<T> row = g.slots_of(0), spare = g.slots_of(1);
  for (int64_t s = 0; s < g.slots; ++s) store_row(row, s * L, dead<T>());
  IntVec<T> exponent{};  // of alpha's and beta's offsets, less the likelihood's
  for (int64_t n0 = (g.frames - 1) / kBandedBlock * kBandedBlock; n0 >= 0; n0 -= kBandedBlock) {
    fill_tiles(g, n0);
    for (int64_t n = min_of(n0 + kBandedBlock, g.frames) - 1; n >= n0; --n) {
      const BandedFrame<T> frame(g, n);
      const IntVec<T> back = Int<T>(g.slots) - frame.rotation;
      rotate(row, spare, g.slots, back == Int<T>(g.slots) ? IntVec<T>{} : back);
      const IntVec<T> last = g.frame_count == Int<T>(n + 1);
      for (int64_t s = 0; s < g.slots; ++s) {
        const IntVec<T> end = last & (g.end_cell == Int<T>(s));
        const Extended<T> x = load_row(row, s * L);
        store_row<T>(row, s * L,
                     {end ? broadcast<T>(1) : x.mantissa, end ? IntVec<T>{} : x.exponent});
      }
      exponent = (last ? IntVec<T>{} : exponent) - load<IntVec<T>>(g.alpha_shift(n));
      retreat_band<T, kRegular>(g, frame, row, g.alpha(n), exponent);
      exponent += make_relative(row, g.slots);
    }
    drain_tiles(g, n0);
  }
}

// Fills one lane; returns the log-likelihood where it needs no recursion, or 1.
template <class T>
T prepare_lane(const BandedLattice& p, int64_t b, BandedGroup<T>& g, int lane) {
  const Bounds& bounds = p.bounds[b];
  const int64_t plane = b * p.frames * p.cells;
  const bool with_posteriors = p.blank_posteriors != nullptr;
  T* blank_out = with_posteriors ? static_cast<T*>(p.blank_posteriors) + plane : nullptr;
  T* label_out = with_posteriors ? static_cast<T*>(p.label_posteriors) + plane : nullptr;
  if (with_posteriors) {
    __builtin_memset(blank_out, 0, p.frames * p.cells * sizeof(T));
    __builtin_memset(label_out, 0, p.frames * p.cells * sizeof(T));
  }
  if (!bounds.valid(p.frames, INT32_MAX)) return T(__builtin_nan(""));
  const int64_t frames = bounds.frame_end - bounds.frame_begin;
  if (frames == 0) return bounds.label_begin == bounds.label_end ? T(0) : T(-__builtin_inf());
  const int32_t* starts = p.starts + b * p.frames;
  const Corridor<T> corridor{
      g.integers_at(g.layout.corridor_rows) + lane * kCorridorRows * g.frame_stride,
      g.frame_stride};
  if (!find_corridor(corridor, bounds, starts, p.cells, p.topology)) return T(-__builtin_inf());

  const int64_t first = bounds.frame_begin * p.cells;
  g.lane[lane] = {frames,
                  static_cast<const T*>(p.blank) + plane + first,
                  static_cast<const T*>(p.label) + plane + first,
                  with_posteriors ? blank_out + first : nullptr,
                  with_posteriors ? label_out + first : nullptr,
                  corridor};
  g.frame_count[lane] = Int<T>(frames);
  g.first_cell[lane] = Int<T>(int64_t(bounds.label_begin) - starts[bounds.frame_begin]);
  g.end_cell[lane] = Int<T>(int64_t(bounds.label_end) - starts[bounds.frame_end - 1]);
  g.middle[lane] = T((bounds.frame_end - 1) / 2.0 - bounds.frame_begin);
  g.frames = max_of(g.frames, frames);
  return 1;
}

template <class T, bool kRegular>
void run_band(BandedGroup<T>& g, bool with_posteriors, T* log_likelihood) {
  const Likelihoods<T> likelihoods = run_forward_band<T, kRegular>(g, with_posteriors);
  for (int k = 0; k < g.utterances; ++k) {
    if (g.lane[k].frames == 0) continue;
    const double mantissa = double(likelihoods.mantissa[k]);
    log_likelihood[k] =
        mantissa == 0
            ? T(-__builtin_inf())
            : T(__builtin_log(mantissa) + likelihoods.exponent[k] * 0.69314718055994530942);
    // Posteriors of no path, or of bad input, stay 0.
    if (!__builtin_isfinite(log_likelihood[k])) g.lane[k].frames = g.frame_count[k] = 0;
  }
  if (with_posteriors) run_backward_band<T, kRegular>(g);
}

// Utterances [begin, begin + lanes) of the batch, as far as there are.
template <class T>
void banded_lattice_group(const BandedLattice& p, int64_t begin) {
  const int64_t utterances = min_of(p.batch - begin, kLanes<T>);
  BandedGroup<T> g{};
  g.cells = p.cells;
  g.slots = p.cells + 1;
  g.frame_stride = p.frames;
  g.utterances = utterances;
  g.regular = p.topology == Topology::kRegular;
  g.constrained = p.topology == Topology::kConstrained;
  g.delay_penalty = T(p.delay_penalty);
  g.layout = banded_layout(utterances, p.frames, p.cells, p.blank_posteriors != nullptr);
  g.memory = static_cast<T*>(p.workspace) + begin * p.workspace_elements;
  T* log_likelihood = static_cast<T*>(p.log_likelihood) + begin;
  for (int k = 0; k < utterances; ++k) {
    log_likelihood[k] = prepare_lane(p, begin + k, g, k);
  }
  if (g.frames == 0) return;
  if (g.regular) {
    run_band<T, true>(g, p.blank_posteriors != nullptr, log_likelihood);
  } else {
    run_band<T, false>(g, p.blank_posteriors != nullptr, log_likelihood);
  }
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
