// The steps of a sweep through one stretch of fronts.
#pragma once

#include "fronts.h"
#include "tiles.h"

namespace jax_rnnt::cuda {

enum class Pass {
  kScore,
  kTowardsMiddle,
  kFromMiddle
};  // kScore: towards the middle, no posteriors

// How the threads of a block share the slots. Where each has one, it prepares the factors of its
// next arcs while it waits for the nodes that it needs now.
enum class Plan {
  kSlots,     // a slot or none to each thread
  kWarp,      // likewise, in blocks of one warp, which hands nodes from lane to lane; as most lanes
              // may have no slot, a tile's arcs become factors all at once
  kStrips,    // slots in turn; arcs become factors some fronts at a time
  kWorkspace  // likewise, with tiles in the workspace instead of shared memory
};

// Arcs as numbers of extended exponent.
template <class T>
struct Factors {
  Extended<T> stay, move;
};

// The arcs by which paths reach one slot.
template <bool kForward, class T>
struct SlotArcs {
  int label_slot;  // where its label arc is counted
  Fronts blank_lives, label_lives;

  __device__ __forceinline__ SlotArcs(const Trellis<T>& trellis, int u)
      : label_slot(kForward ? u - 1 : u),
        blank_lives(trellis.blank_lives(u)),
        label_lives(trellis.label_lives(label_slot)) {}

  template <bool kAsStored>
  __device__ __forceinline__ Factors<T> factors(const Trellis<T>& trellis, const Arcs<T>* arcs,
                                                int n) const {
    T blank = arcs->blank, label = arcs->label;
    if constexpr (!kAsStored) {
      // A constrained label arc is l(t, u) + b(t, u + 1).
      if (trellis.constrained) label += kForward ? blank : arcs[1].blank;
      label += trellis.delay(trellis.frame_of(n, label_slot));
    }
    return {exp_extended(blank, blank_lives.contains(n)),
            exp_extended(label, label_lives.contains(n))};
  }
};

// Factors of the arcs of `count` fronts from n on, the first of whose rows is `arcs`.
template <bool kForward, bool kOneWarp, class T>
__device__ __forceinline__ void fill_factors(const Trellis<T>& trellis, int n, int count,
                                             const Arcs<T>* arcs, int stride, Factors<T>* factors) {
  for (int u = int(threadIdx.x); u < trellis.slots; u += int(blockDim.x)) {
    const SlotArcs<kForward, T> slot(trellis, u);
    for (int k = 0; k < count; ++k) {
      factors[k * stride + u] = slot.template factors<false>(trellis, arcs + k * stride + u, n + k);
    }
  }
}

template <bool kForward, bool kOneWarp, class T>
__device__ __forceinline__ void fill_factors(const Trellis<T, true>& trellis, int, int count,
                                             const Arcs<T>* arcs, int, Factors<T>* factors) {
  constexpr int kAtOnce = 4;  // read before any is written, so that they do not wait for each other
  const int elements = count * trellis.slots, step = team_size<kOneWarp>();
  for (int i = int(threadIdx.x); i < elements; i += kAtOnce * step) {
    Arcs<T> read[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) read[j] = arcs[smaller(i + j * step, elements - 1)];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const Factors<T> both{exp_extended(read[j].blank), exp_extended(read[j].label)};
      if (i + j * step < elements) factors[i + j * step] = both;
    }
  }
}

// A node of the next front, and what its two arcs' posteriors depend on.
template <class T>
struct Reached {
  Extended<T> stay, move, sum;

  __device__ __forceinline__ Reached(Extended<T> own, Extended<T> neighbour,
                                     const Factors<T>& factors)
      : stay(multiply(own, factors.stay)),
        move(multiply(neighbour, factors.move)),
        sum(add(stay, move)) {}

  // Nodes that do not lead to the other end are no competition for those that do: however much
  // likelier they are, those stay in range.
  __device__ __forceinline__ Extended<T> node_with(Extended<T> partner) const {
    return partner.mantissa == T(0) ? dead<T>() : sum;
  }
  __device__ __forceinline__ Arcs<T> posteriors(Extended<T> partner,
                                                const Normaliser<T>& normaliser) const {
    const Extended<T> scaled = normaliser.scaled(partner);
    return {normaliser.posterior(scaled, stay), normaliser.posterior(scaled, move)};
  }
};

// Nodes of two fronts in turn, between dead borders.
template <class T>
struct Rows {
  Extended<T>*from, *to;

  __device__ __forceinline__ void turn() {
    Extended<T>* swap = from;
    from = to;
    to = swap;
  }
};

// What the steps through a stretch of a tile work on.
template <class T>
struct Work {
  int n0, count;  // fronts
  Tile<T> tile;
  Factors<T>* factors;  // of one warp: those of the stretch; else room for some
  int factor_fronts;
  Extended<T>* stored;  // where the nodes of the next front go
  int64_t cells;        // between stored rows
};

template <class T>
__device__ __forceinline__ Extended<T> of_lane(Extended<T> x, int lane) {
  return {__shfl_sync(kAllLanes, x.mantissa, lane), __shfl_sync(kAllLanes, x.exponent, lane)};
}

// kAsStored: what trellis.labels_as_stored() says.
template <bool kForward, Pass kPass, bool kOneWarp, bool kAsStored, class T, bool kWound>
__device__ __forceinline__ void take_steps_of_slots(const Trellis<T, kWound>& trellis,
                                                    const Work<T>& work,
                                                    const Normaliser<T>& normaliser,
                                                    Rows<T>& rows) {
  constexpr int kDirection = kForward ? 1 : -1;
  const bool has_slot = int(threadIdx.x) < trellis.slots;
  const int u = has_slot ? int(threadIdx.x) : trellis.slots - 1;  // others follow the last
  const int neighbour = kForward ? trellis.slot_before(u) : trellis.slot_after(u);
  const int first = kForward ? 0 : work.count - 1, step = kDirection * work.tile.stride;
  const int element = first * work.tile.stride + u;
  Arcs<T>* arcs = work.tile.arcs + element;
  const Extended<T>* partner = work.tile.partner + element;
  const Factors<T>* of_warp = work.factors + element;
  int n = work.n0 + first;
  const auto factors_here = [&] {
    if constexpr (kOneWarp) {
      return *of_warp;
    } else {
      return SlotArcs<kForward, T>(trellis, u).template factors<kAsStored>(trellis, arcs, n);
    }
  };
  Extended<T>* stored = work.stored + u;
  Extended<T> node = rows.from[u];
  Factors<T> ahead{dead<T>(), dead<T>()};
  if (kOneWarp || has_slot) ahead = factors_here();
  Extended<T> beside = rows.from[neighbour];  // of a block
#pragma unroll 2
  for (int j = 0; j < work.count; ++j) {
    const Factors<T> factors = ahead;
    Arcs<T>* const here = arcs;
    n += kDirection;
    // Behind the last row, that one again, of which nothing comes.
    if (j + 1 < work.count) {
      arcs += step;
      of_warp += step;
    }
    ahead = factors_here();
    const Reached<T> next(node, kOneWarp ? of_lane(node, neighbour) : beside, factors);
    node = next.sum;
    Arcs<T> posteriors{};
    if constexpr (kPass == Pass::kFromMiddle) {
      const Extended<T> of_partner = *partner;
      partner += step;
      node = next.node_with(of_partner);
      posteriors = next.posteriors(of_partner, normaliser);
    }
    if constexpr (kPass == Pass::kTowardsMiddle) {
      if (has_slot) *stored = node;
      stored += kDirection * work.cells;
    }
    if constexpr (!kOneWarp) {
      if (has_slot) rows.to[u] = node;
      __syncthreads();
      rows.turn();
      // Ahead of all that does not wait for it. After the last step, others may write there.
      if (j + 1 < work.count) beside = rows.from[neighbour];
    }
    // Behind the barrier: constrained arcs are read by two threads, both before one writes there.
    if constexpr (kPass == Pass::kFromMiddle) {
      if (has_slot) *here = posteriors;
    }
  }
  if constexpr (kOneWarp) {
    if (has_slot) rows.to[u] = node;
    __syncwarp();
    rows.turn();
  }
}

template <bool kForward, Pass kPass, class T, bool kWound>
__device__ __forceinline__ void take_steps_in_strips(const Trellis<T, kWound>& trellis,
                                                     const Work<T>& work,
                                                     const Normaliser<T>& normaliser,
                                                     Rows<T>& rows) {
  const Tile<T>& tile = work.tile;
  Extended<T>* stored = work.stored;
  for (int begin = 0; begin < work.count; begin += work.factor_fronts) {
    const int count = smaller(work.factor_fronts, work.count - begin);
    const int first = kForward ? begin : work.count - begin - count;
    fill_factors<kForward, false>(trellis, work.n0 + first, count, tile.arcs + first * tile.stride,
                                  tile.stride, work.factors);
    __syncthreads();
    for (int j = 0; j < count; ++j) {
      const int k = kForward ? j : count - 1 - j;
      const Factors<T>* factors = work.factors + k * tile.stride;
      const int row = (first + k) * tile.stride;
      for (int u = int(threadIdx.x); u < trellis.slots; u += int(blockDim.x)) {
        const int neighbour = kForward ? trellis.slot_before(u) : trellis.slot_after(u);
        const Reached<T> next(rows.from[u], rows.from[neighbour], factors[u]);
        Extended<T> node = next.sum;
        if constexpr (kPass == Pass::kFromMiddle) {
          const Extended<T> partner = tile.partner[row + u];
          node = next.node_with(partner);
          tile.arcs[row + u] = next.posteriors(partner, normaliser);
        }
        if constexpr (kPass == Pass::kTowardsMiddle) stored[u] = node;
        rows.to[u] = node;
      }
      __syncthreads();
      rows.turn();
      stored += (kForward ? 1 : -1) * work.cells;
    }
  }
}

template <bool kForward, Pass kPass, Plan kPlan, class T, bool kWound>
__device__ __forceinline__ void take_steps(const Trellis<T, kWound>& trellis, const Work<T>& work,
                                           const Normaliser<T>& normaliser, Rows<T>& rows) {
  if constexpr (kPlan == Plan::kWarp) {
    take_steps_of_slots<kForward, kPass, true, true>(trellis, work, normaliser, rows);
  } else if constexpr (kPlan == Plan::kSlots) {
    if (trellis.labels_as_stored()) {
      take_steps_of_slots<kForward, kPass, false, true>(trellis, work, normaliser, rows);
    } else {
      take_steps_of_slots<kForward, kPass, false, false>(trellis, work, normaliser, rows);
    }
  } else {
    take_steps_in_strips<kForward, kPass>(trellis, work, normaliser, rows);
  }
}

}  // namespace jax_rnnt::cuda
