// Which arcs of a band complete paths take. Where bands move, cells at their edges cannot be
// reached, or cannot reach the end; whatever stands in those is padding.
#pragma once

#include "banded_layout.h"
#include "kernels.h"
#include "simd.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// Rows of one element a frame, for the frames of one utterance: the cells [begin, end) of the
// frame's band whose arcs are on a complete path, and how far the next band is to the right.
template <class T>
struct Corridor {
  Int<T>* rows;
  int64_t stride;

  Int<T>* blank_begin() const { return rows; }
  Int<T>* blank_end() const { return rows + stride; }
  Int<T>* label_begin() const { return rows + 2 * stride; }
  Int<T>* label_end() const { return rows + 3 * stride; }
  Int<T>* rotation() const { return rows + 4 * stride; }  // modulo S + 1
};

// Label positions [low, high].
struct Interval {
  int64_t low, high;

  JAX_RNNT_INLINE_MEMBER bool empty() const { return low > high; }
};

JAX_RNNT_INLINE int64_t min_of(int64_t x, int64_t y) { return x < y ? x : y; }
JAX_RNNT_INLINE int64_t max_of(int64_t x, int64_t y) { return x > y ? x : y; }

JAX_RNNT_INLINE Interval intersection(Interval x, Interval y) {
  return {max_of(x.low, y.low), min_of(x.high, y.high)};
}

// Fills the corridor of an utterance with frames. False if it has no path. With a final blank
// (which the regular topology has anyway) the last frame has no label arc.
//
// In a frame, the label positions that can be reached from the begin are an interval, and so are
// those from which the end can be reached; both are nonempty, and then exact, if every frame has an
// arc to the next in what they have in common.
template <class T>
bool find_corridor(const Corridor<T>& corridor, const Bounds& bounds, const int32_t* starts,
                   int64_t cells, Topology topology, bool final_blank = false) {
  const bool regular = topology == Topology::kRegular;
  const bool constrained = topology == Topology::kConstrained;
  const int64_t frames = bounds.frame_end - bounds.frame_begin;
  starts += bounds.frame_begin;
  const auto band = [&](int64_t n) { return Interval{starts[n], starts[n] + cells - 1}; };

  // From the begin; kept relative to the band.
  Interval reached{bounds.label_begin, bounds.label_begin};
  for (int64_t n = 0; n < frames; ++n) {
    const Interval here = band(n);
    if (n > 0 && !regular) {
      const int64_t limit = constrained ? band(n - 1).high : reached.high + 1;
      reached.high = min_of(reached.high + 1, limit);
    }
    reached = intersection(reached, here);
    if (reached.empty()) return false;
    if (regular) reached.high = here.high;
    corridor.blank_begin()[n] = Int<T>(reached.low - here.low);
    corridor.blank_end()[n] = Int<T>(reached.high - here.low);
  }

  // From the end.
  Interval reaching{bounds.label_end, bounds.label_end}, next = reaching;
  for (int64_t n = frames - 1; n >= 0; --n) {
    const Interval here = band(n);
    if (regular) {
      reaching.low = here.low;
    } else if (n < frames - 1 || !final_blank) {
      --reaching.low;
    }
    reaching = intersection(reaching, here);
    const Interval nodes = intersection(
        reaching, {here.low + corridor.blank_begin()[n], here.low + corridor.blank_end()[n]});
    const Interval blank = intersection(nodes, next);
    Interval label = regular ? Interval{nodes.low, nodes.high - 1}
                             : intersection(nodes, {next.low - 1, next.high - 1});
    if (constrained) label.high = min_of(label.high, here.high - 1);
    if (blank.empty() && (regular || label.empty())) return false;
    const auto write = [&](Int<T>& begin, Int<T>& end, Interval arcs) {
      begin = arcs.empty() ? 0 : Int<T>(arcs.low - here.low);
      end = arcs.empty() ? 0 : Int<T>(arcs.high - here.low + 1);
    };
    write(corridor.blank_begin()[n], corridor.blank_end()[n], blank);
    write(corridor.label_begin()[n], corridor.label_end()[n], label);
    const int64_t slots = cells + 1;
    const int64_t distance = n + 1 < frames ? (starts[n + 1] - here.low) % slots : 0;
    corridor.rotation()[n] = Int<T>(distance < 0 ? distance + slots : distance);
    next = nodes;
  }
  return true;
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
