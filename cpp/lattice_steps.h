// One front's step of the recursions over a trellis, on the arcs of a tile.
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

// What the two arcs between a node and one front contribute to it, as shares of their sum.
template <class T>
struct Shares {
  Vec<T> stay, move;
};

// The larger share is what the smaller one leaves: together they are 1 to the last bit, and the
// share of an only arc is 1. Of a dead node, they do not matter.
template <class T>
JAX_RNNT_INLINE Shares<T> shares_of(Extended<T> stay, Extended<T> move, Extended<T> sum) {
  const IntVec<T> top = stay.exponent > move.exponent ? stay.exponent : move.exponent;
  const Vec<T> a = stay.mantissa * exp2_int<T>(stay.exponent - top);
  const Vec<T> b = move.mantissa * exp2_int<T>(move.exponent - top);
  const IntVec<T> stay_less = a < b;
  const Vec<T> smaller = sum.mantissa == T(0) ? Vec<T>{} : (stay_less ? a : b) / sum.mantissa;
  const Vec<T> larger = T(1) - smaller;
  return {stay_less ? smaller : larger, stay_less ? larger : smaller};
}

// Alpha from front n (`from`) to front n + 1 (`to`). With shares, those that arcs of front n have
// in the nodes that they lead to take the arcs' place, both of a node's in its own element.
template <bool kShares, class T>
void advance(const Trellis<T>& trellis, int64_t n, T* blank, T* label, Row<T> from, Row<T> to) {
  const VectorRange<T> range = vectors_of_front(trellis, n + 1);
  // Shares are wanted of all vectors of front n, too. From the last one on, since label arcs are
  // read one element below of where their share is written.
  const int64_t begin = kShares ? vectors_of_front(trellis, n).begin : range.begin;
  for (int64_t v = range.end - kLanes<T>; v >= begin; v -= kLanes<T>) {
    const Extended<T> stay = multiply(load_row(from, v), exp_extended<T>(load<Vec<T>>(blank + v)));
    const Extended<T> move =
        multiply(load_row(from, v - 1), exp_extended<T>(load<Vec<T>>(label + v - 1)));
    const Extended<T> sum = add(stay, move);
    store_row(to, v, sum);
    if constexpr (kShares) {
      const Shares<T> shares = shares_of(stay, move, sum);
      store(blank + v, shares.stay);
      store(label + v, shares.move);
    }
  }
  kill_borders(to, range);
}

// Beta from front n + 1 (`from`) to front n (`to`). With shares, those that arcs of front n have in
// the nodes that they leave take the arcs' place.
template <bool kShares, class T>
void retreat(const Trellis<T>& trellis, int64_t n, T* blank, T* label, Row<T> from, Row<T> to) {
  const VectorRange<T> range = vectors_of_front(trellis, n);
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    const Extended<T> stay = multiply(load_row(from, v), exp_extended<T>(load<Vec<T>>(blank + v)));
    const Extended<T> move =
        multiply(load_row(from, v + 1), exp_extended<T>(load<Vec<T>>(label + v)));
    const Extended<T> sum = add(stay, move);
    store_row(to, v, sum);
    if constexpr (kShares) {
      const Shares<T> shares = shares_of(stay, move, sum);
      store(blank + v, shares.stay);
      store(label + v, shares.move);
    }
  }
  kill_borders(to, range);
}

// Makes the posteriors of a front's nodes add up to one, as those of all nodes that a path can go
// through do.
template <class T>
void normalise_nodes(T* nodes, VectorRange<T> range) {
  Vec<T> sums{};
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) sums += load<Vec<T>>(nodes + v);
  const Vec<T> inverse = T(1) / sum_of_lanes<T>(sums);
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    store(nodes + v, load<Vec<T>>(nodes + v) * inverse);
  }
}

// Divides the posteriors of the nodes of front n + 1 among the arcs that lead to them, by the
// shares that `advance` left; what leaves a node of front n is that node's posterior.
template <class T>
void divide_back(const Trellis<T>& trellis, int64_t n, T* blank, T* label, T* nodes) {
  const VectorRange<T> range = vectors_of_front(trellis, n);
  const int64_t end = vectors_of_front(trellis, n + 1).end;
  Vec<T> above{};
  for (int64_t v = end - kLanes<T>; v >= range.begin; v -= kLanes<T>) {
    const Vec<T> node = load<Vec<T>>(nodes + v);
    const Vec<T> stay = node * load<Vec<T>>(blank + v), reached = node * load<Vec<T>>(label + v);
    // A label arc leads one element up.
    const Vec<T> move = LanesOf<T>::template shifted<kLanes<T> - 1>(above, reached);
    store(blank + v, stay);
    store(label + v, move);
    store(nodes + v, stay + move);
    above = reached;
  }
}

// Divides the posteriors of the nodes of front n among the arcs that leave them, by the shares that
// `retreat` left; what comes to a node of front n + 1 is that node's posterior.
template <class T>
void divide_forth(const Trellis<T>& trellis, int64_t n, T* blank, T* label, T* nodes) {
  const VectorRange<T> range = vectors_of_front(trellis, n);
  Vec<T> below{};
  for (int64_t v = range.begin; v < range.end; v += kLanes<T>) {
    const Vec<T> node = load<Vec<T>>(nodes + v);
    const Vec<T> stay = node * load<Vec<T>>(blank + v), move = node * load<Vec<T>>(label + v);
    store(blank + v, stay);
    store(label + v, move);
    store(nodes + v, stay + LanesOf<T>::template shifted<1>(move, below));
    below = move;
  }
  store(nodes + range.end, LanesOf<T>::template shifted<1>(Vec<T>{}, below));
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
