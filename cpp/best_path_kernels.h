// The best path through a band of arcs, of one utterance at a time; whole lattices are bands as
// wide as all label positions.
//
// Frame by frame, each with a row of slots: slot s is label position starts[t] + s, and in a band
// one more than there are cells, since a label arc to the next frame may lead above it. A byte for
// each slot says by which arc its node was reached, for the way back.
#pragma once

#include "banded_corridor.h"
#include "best_path_layout.h"
#include "extended.h"
#include "kernels.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

template <class T>
struct BestPathUtterance {
  int64_t frames, cells, slots_per_frame;
  bool regular, constrained, final_blank;
  T delay_penalty, middle;           // the label arcs of frame n get penalty * (middle - n)
  const T *blank, *label;            // of the first frame
  const int32_t* starts;             // likewise; null: all 0, in a whole lattice
  int64_t first_label, last_label;   // positions where paths begin and end
  Corridor<T> corridor;              // of a band
  T *arrived, *stay, *move, *after;  // rows; stay and move are the arcs that lead to each slot
  uint8_t* by_label;

  uint8_t* by_label_at(int64_t n) const { return by_label + n * slots_per_frame; }
  int64_t start(int64_t n) const { return starts == nullptr ? 0 : starts[n]; }

  // Cells of frame n whose blank arcs, and whose label arcs, are on complete paths.
  Interval blanks(int64_t n) const {
    if (starts == nullptr) return intersection(nodes(n), nodes(n + 1));
    return {corridor.blank_begin()[n], corridor.blank_end()[n] - 1};
  }
  Interval labels(int64_t n) const {
    if (starts != nullptr) return {corridor.label_begin()[n], corridor.label_end()[n] - 1};
    const Interval here = nodes(n), next = nodes(n + 1);
    if (regular) return {here.low, here.high - 1};
    return intersection(here, {next.low - 1, next.high - 1});
  }
  // Slots that these arcs lead from or to.
  Interval slots(int64_t n) const {
    const Interval on_blank = blanks(n), on_label = labels(n);
    if (on_label.empty()) return on_blank;
    if (on_blank.empty()) return {on_label.low, on_label.high + 1};
    return {min_of(on_blank.low, on_label.low), max_of(on_blank.high, on_label.high + 1)};
  }

  // Whether a whole lattice has a complete path.
  bool feasible() const {
    return regular || last_label - first_label <= frames - int64_t(final_blank);
  }

 private:
  // Label positions on complete paths of a whole lattice.
  Interval nodes(int64_t n) const {
    if (n == frames) return {last_label, last_label};
    if (regular) return {first_label, last_label};
    return {max_of(first_label, last_label - (frames - n) + int64_t(final_blank)),
            min_of(last_label, first_label + n)};
  }
};

template <class T>
JAX_RNNT_INLINE void fill_minus_inf(T* row, Interval slots) {
  for (int64_t s = slots.low; s <= slots.high; ++s) row[s] = T(-__builtin_inf());
}

// Forbidden arcs become -inf; NaN and excessive ones set the flag.
template <class T>
JAX_RNNT_INLINE T usable_arc(T x, Int<T>& bad) {
  bad |= !(x <= T(kExcessive));
  return x < T(kForbidden) ? T(-__builtin_inf()) : x;
}

// The arcs of frame n on complete paths; true if one of them is bad.
template <class T>
bool load_arcs(const BestPathUtterance<T>& u, int64_t n, Interval slots) {
  const T* __restrict blank = u.blank + n * u.cells;
  const T* __restrict label = u.label + n * u.cells;
  T* __restrict stay = u.stay;
  T* __restrict move = u.move + 1;  // of cell s: it leads to the slot above
  const T delay = u.delay_penalty * (u.middle - T(n));
  Int<T> bad = 0;
  fill_minus_inf(u.stay, slots);
  fill_minus_inf(u.move, slots);
  const Interval blanks = u.blanks(n), labels = u.labels(n);
  for (int64_t s = blanks.low; s <= blanks.high; ++s) stay[s] = usable_arc(blank[s], bad);
  int64_t s = labels.low;
  if (u.constrained) {
    for (; s <= labels.high; ++s) move[s] = usable_arc(T(label[s] + delay + blank[s + 1]), bad);
  } else {
    for (; s <= labels.high; ++s) move[s] = usable_arc(T(label[s] + delay), bad);
  }
  return bad != 0;
}

// The labels of one vector of slots. Lane i stands for the last Step slots up to its own, twice as
// many after each round: the best score to come to it from one of them, and that of the moves to it
// from the slot below them.
template <class T, int Step = 1>
JAX_RNNT_INLINE void scan_lanes(Vec<T>& best, Vec<T>& moves) {
  if constexpr (Step < kLanes<T>) {
    const Vec<T> none = broadcast<T>(T(-__builtin_inf()));
    const Vec<T> from_below = LanesOf<T>::template shifted<Step>(best, none) + moves;
    best = from_below > best ? from_below : best;
    moves += LanesOf<T>::template shifted<Step>(moves, Vec<T>{});
    scan_lanes<T, 2 * Step>(best, moves);
  }
}

// node(s) = max(arrived(s), node(s - 1) + move(s)), a vector at a time: slot by slot each would
// wait for the one before. What it reads and writes above the last slot does not count.
template <class T>
JAX_RNNT_INLINE void scan_labels(const T* arrived, const T* move, Interval slots, T* node) {
  constexpr int L = kLanes<T>;
  Vec<T> below = broadcast<T>(T(-__builtin_inf()));
  for (int64_t s = slots.low; s <= slots.high; s += L) {
    Vec<T> best = load<Vec<T>>(arrived + s), moves = load<Vec<T>>(move + s);
    scan_lanes<T>(best, moves);
    const Vec<T> from_below = below + moves;
    best = from_below > best ? from_below : best;
    store(node + s, best);
    below = broadcast<T>(best[L - 1]);
  }
}

// The scores of a frame's nodes, in `arrived`, to those of the next frame, in `after`. A label arc
// is taken where it is strictly better: of equally good paths, the one whose labels come first.
template <class T>
void advance_best_path(const BestPathUtterance<T>& u, Interval slots,
                       uint8_t* __restrict by_label) {
  const T* __restrict arrived = u.arrived, * __restrict stay = u.stay, * __restrict move = u.move;
  T* __restrict after = u.after;
  if (u.regular) {
    scan_labels(arrived, move, slots, after);
    for (int64_t s = slots.low; s <= slots.high; ++s) {
      by_label[s] = after[s] > arrived[s];
      after[s] += stay[s];
    }
    return;
  }
  for (int64_t s = slots.low; s <= slots.high; ++s) {
    const T stayed = arrived[s] + stay[s], moved = arrived[s - 1] + move[s];
    by_label[s] = moved > stayed;
    after[s] = moved > stayed ? moved : stayed;
  }
}

// The best score, NaN for bad arcs.
template <class T>
T best_score(const BestPathUtterance<T>& u) {
  bool bad = false;
  const int64_t first = u.first_label - u.start(0);
  Interval previous{first, first};
  u.after[first] = 0;
  for (int64_t n = 0; n < u.frames; ++n) {
    const Interval slots = u.slots(n);
    const int64_t distance = n > 0 ? u.start(n) - u.start(n - 1) : 0;
    const Interval kept = intersection(slots, {previous.low - distance, previous.high - distance});
    fill_minus_inf(u.arrived, {slots.low - 1, slots.high});
    for (int64_t s = kept.low; s <= kept.high; ++s) u.arrived[s] = u.after[s + distance];
    bad |= load_arcs(u, n, slots);
    advance_best_path(u, slots, u.by_label_at(n));
    previous = slots;
  }
  return bad ? T(__builtin_nan("")) : u.after[u.last_label - u.start(u.frames - 1)];
}

// Writes the frame of each label, from the last to the first; `label_frames` is that of label 0.
template <class T>
void trace_back(const BestPathUtterance<T>& u, int64_t first_frame, int32_t* label_frames) {
  int64_t position = u.last_label;
  for (int64_t n = u.frames - 1; n >= 0; --n) {
    const uint8_t* by_label = u.by_label_at(n);
    while (by_label[position - u.start(n)]) {
      label_frames[--position] = int32_t(first_frame + n);
      if (!u.regular) break;
    }
  }
}

template <class T>
void best_path_utterance(const BestPath& p, int64_t b) {
  const BandedLattice& band = p.band;
  const Bounds& bounds = band.bounds[b];
  T& score = static_cast<T*>(band.log_likelihood)[b];
  int32_t* label_frames = p.label_frames + b * band.labels;
  for (int64_t i = 0; i < band.labels; ++i) label_frames[i] = -1;
  score = T(__builtin_nan(""));
  if (!p.valid(b)) return;

  T* memory = p.workspace<T>(b);
  T* rows = memory + 1;
  BestPathUtterance<T> u;
  u.frames = bounds.frame_end - bounds.frame_begin;
  u.cells = p.cells(bounds);
  if (p.packed.used) {
    u.slots_per_frame = u.cells;
    u.starts = nullptr;
    u.by_label = p.row_bytes<T>(b);
  } else {
    const BestPathLayout layout =
        best_path_layout(band.frames, band.cells, kCorridorRows, sizeof(T));
    rows += layout.rows;
    u.slots_per_frame = u.cells + 1;
    u.starts = band.starts + b * band.frames + bounds.frame_begin;
    u.corridor = {reinterpret_cast<Int<T>*>(memory + layout.corridor), band.frames};
    u.by_label = reinterpret_cast<uint8_t*>(memory + layout.by_label);
  }
  const int64_t row_stride = best_path_row_stride(band.cells);
  const int64_t first = p.first_cell(b) + bounds.frame_begin * u.cells;
  u.final_blank = p.final_blank;
  u.regular = band.topology == Topology::kRegular;
  u.constrained = band.topology == Topology::kConstrained;
  u.delay_penalty = T(band.delay_penalty);
  u.middle = T((bounds.frame_end - 1) / 2.0 - bounds.frame_begin);
  u.blank = static_cast<const T*>(band.blank) + first;
  u.label = static_cast<const T*>(band.label) + first;
  u.first_label = bounds.label_begin;
  u.last_label = bounds.label_end;
  u.arrived = rows;
  u.stay = rows + row_stride;
  u.move = rows + 2 * row_stride;
  u.after = rows + 3 * row_stride;

  score = T(-__builtin_inf());
  if (u.frames == 0) {
    if (u.first_label == u.last_label) score = 0;
    return;
  }
  if (p.packed.used) {
    if (!u.feasible()) return;
  } else {
    const int32_t* starts = band.starts + b * band.frames;
    if (!find_corridor(u.corridor, bounds, starts, u.cells, band.topology, p.final_blank)) return;
  }
  score = best_score(u);
  if (score > T(-__builtin_inf())) trace_back(u, bounds.frame_begin, label_frames);
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
