// A sweep of one block over the fronts of one utterance: alpha forward or beta backward.
//
// Both sweeps first go to the middle front and store the nodes they pass. There the likelihood is
// known, and both go on, each over the fronts whose nodes the other one has stored, giving
// posteriors as it goes. So there are half as many dependent steps as in two sweeps one after the
// other, half as many stored nodes, and no third pass.
//
// A posterior is alpha * arc * beta over the sum of alpha * beta of a whole front, taken anew at
// every stretch, whose few fronts' rounding is all that can disturb the posterior mass.
#pragma once

#include "steps.h"

namespace jax_rnnt::cuda {

// What a sweep leaves in the workspace for the other one.
template <class T>
struct Store {
  int64_t *alpha_offsets, *beta_offsets;
  Extended<T>* rows;
  int64_t cells;
  bool all_rows;

  __device__ __forceinline__ Extended<T>* alpha(int n) const {
    return rows + (all_rows ? n : 0) * cells;
  }
  __device__ __forceinline__ Extended<T>* beta(int n) const {
    return rows + (all_rows ? n + 1 : 1) * cells;
  }
};

template <class T>
__device__ __forceinline__ Store<T> store_in(T* workspace, const WorkspaceLayout& layout,
                                             int64_t cells, bool all_rows) {
  int64_t* offsets = reinterpret_cast<int64_t*>(workspace + layout.offsets);
  return {offsets, offsets + layout.num_offsets,
          reinterpret_cast<Extended<T>*>(workspace + layout.rows), cells, all_rows};
}

// Where the sweeps meet, in stretches.
__device__ __forceinline__ int middle_stretch(int fronts, int stretch_fronts) {
  return fronts / 2 / stretch_fronts;
}

// The stretches [first, end) of fronts that a sweep takes, in tiles of some of them.
template <bool kForward>
struct Course {
  int first, end, in_tile;  // stretches
  int stretch, fronts;      // fronts: of a stretch, and all

  __device__ __forceinline__ int count_tiles() const {
    return (end - first + in_tile - 1) / in_tile;
  }
  __device__ __forceinline__ int first_of_tile(int i) const {
    return kForward ? first + i * in_tile : larger(end - (i + 1) * in_tile, first);
  }
  __device__ __forceinline__ int end_of_tile(int i) const {
    return kForward ? smaller(first + (i + 1) * in_tile, end) : end - i * in_tile;
  }
  // The fronts up to a stretch.
  __device__ __forceinline__ int front(int index) const { return smaller(index * stretch, fronts); }
};

// Returns false, having done nothing, where the loss turns out not to be finite.
template <bool kForward, Pass kPass, Plan kPlan, class T, bool kWound>
__device__ __forceinline__ bool sweep(const Trellis<T, kWound>& trellis, const SweepLayout& layout,
                                      const Store<T>& store, T* memory, T* log_likelihood) {
  constexpr bool kOneWarp = kPlan == Plan::kWarp, kShared = kPlan != Plan::kWorkspace;
  constexpr bool kTowards = kPass != Pass::kFromMiddle;
  const int fronts = trellis.fronts, slots = trellis.slots, stretch = layout.stretch_fronts;
  const int stretches = (fronts + stretch - 1) / stretch, middle = middle_stretch(fronts, stretch);
  const Course<kForward> course{kTowards == kForward ? 0 : middle,
                                kTowards == kForward ? middle : stretches, layout.fronts / stretch,
                                stretch, fronts};
  const int count_tiles = course.count_tiles();
  const Winding<kOneWarp> winding(slots);
  const auto start = [&](int i) {
    const int n0 = course.front(course.first_of_tile(i));
    const int count = course.front(course.end_of_tile(i)) - n0;
    const Tile<T> tile = tile_at(memory, layout, i % 2);
    start_arcs<kForward, kShared>(trellis, n0, count, layout.fronts, tile, winding);
    if constexpr (!kTowards) {
      start_partner<kWound, kShared>(kForward ? store.beta(n0 + 1) : store.alpha(n0), store.cells,
                                     slots, count, tile, winding);
    }
  };

  Extended<T>* const borders = reinterpret_cast<Extended<T>*>(memory + layout.rows);
  Rows<T> rows{borders + 1, borders + 1 + layout.row_elements / 2};
  int64_t* const offsets = kForward ? store.alpha_offsets : store.beta_offsets;
  constexpr int kBehind = kForward ? 1 : 0;  // index of the offset behind a stretch, less its own
  const int64_t* const partner_offsets = kForward ? store.beta_offsets : store.alpha_offsets;
  int64_t offset = 0, partner_offset = 0, next_partner_offset = 0;
  Likelihood<T> likelihood{};
  if (threadIdx.x == 0) {
    for (Extended<T>* row : {rows.from, rows.to}) row[-1] = row[slots] = dead<T>();
  }
  if constexpr (kTowards) {
    const int n = kForward ? 0 : fronts;
    const int single = kForward ? trellis.first_node : trellis.last_node;
#pragma unroll 1
    for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
      rows.from[u] = u == single ? Extended<T>{T(1), 0} : dead<T>();
    }
    copy_row<kOneWarp>(kForward ? store.alpha(n) : store.beta(n), rows.from, slots);
    if (threadIdx.x == 0) offsets[kForward ? 0 : stretches] = 0;
  } else {
    const int n = middle * stretch;
    copy_row<kOneWarp>(rows.from, kForward ? store.alpha(n) : store.beta(n), slots);
    likelihood =
        likelihood_of_front<kOneWarp>(rows.from, kForward ? store.beta(n) : store.alpha(n), slots);
    const T log_likelihood_here =
        likelihood.log(store.alpha_offsets[middle] + store.beta_offsets[middle]);
    if (kForward && threadIdx.x == 0) *log_likelihood = log_likelihood_here;
    if (!(likelihood.mantissa > T(0)) || !(log_likelihood_here < Constants<T>::kInfinity)) {
      return false;
    }
    partner_offset = partner_offsets[middle];
  }

  if (count_tiles > 0) start(0);
  __pipeline_commit();
  int index = kForward ? course.first : course.end - 1;
  if (!kTowards && count_tiles > 0) next_partner_offset = partner_offsets[index + kBehind];
  for (int i = 0; i < count_tiles; ++i) {
    if (i + 1 < count_tiles) start(i + 1);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    synchronise<kOneWarp>();
    const Tile<T> tile = tile_at(memory, layout, i % 2);
    Factors<T>* const factors = reinterpret_cast<Factors<T>*>(memory + layout.factors);
    const int first = course.first_of_tile(i), n0 = course.front(first);
    const int count = course.front(course.end_of_tile(i)) - n0;
    if constexpr (kOneWarp) {
      fill_factors<kForward, kOneWarp>(trellis, n0, count, tile.arcs, tile.stride, factors);
      synchronise<kOneWarp>();
    }
    for (int j = course.end_of_tile(i) - first; j > 0; --j) {
      const int begin = course.front(index), end = course.front(index + 1);
      const Work<T> work{begin,
                         end - begin,
                         tile.from(begin - n0),
                         kOneWarp ? factors + (begin - n0) * tile.stride : factors,
                         layout.factor_fronts,
                         kForward ? store.alpha(begin + 1) : store.beta(end - 1),
                         store.cells};
      // From the offset of the partner's nodes in the likelihood to that of its nodes here.
      const int64_t partner_change = next_partner_offset - partner_offset;
      partner_offset = next_partner_offset;
      const int next = kForward ? index + 1 : index - 1;
      if (!kTowards && course.first <= next && next < course.end) {
        next_partner_offset = partner_offsets[next + kBehind];
      }
      take_steps<kForward, kPass, kPlan>(trellis, work, Normaliser<T>(likelihood, partner_change),
                                         rows);
      const Exponent<T> top = renormalise<kOneWarp>(rows.from, slots);
      offset += int64_t(top);
      if constexpr (kTowards) {
        if (kPass == Pass::kTowardsMiddle || next < course.first || next >= course.end) {
          copy_row<kOneWarp>(kForward ? store.alpha(end) : store.beta(begin), rows.from, slots);
        }
        if (threadIdx.x == 0) offsets[index + kBehind] = offset;
      } else {
        likelihood.move(int64_t(top) + partner_change);
        // The partner's nodes at this end of the stretch.
        const Extended<T>* partner =
            work.tile.partner + (kForward ? work.count - 1 : 0) * tile.stride;
        likelihood.mantissa =
            sum_of_front<kOneWarp>(rows.from, partner, slots, likelihood.exponent);
      }
      index = next;
    }
    if constexpr (!kTowards) {
      drain_tile<kForward>(trellis, n0, count, layout.fronts, tile, winding);
      synchronise<kOneWarp>();  // before the next tile but one is copied here
    }
  }
  return true;
}

// Both sweeps of an utterance, in the two blocks that it has. Returns as `sweep`.
template <Pass kPass, Plan kPlan, class T, bool kWound>
__device__ __forceinline__ bool sweep_of_block(const Trellis<T, kWound>& trellis,
                                               const SweepLayout& layout,
                                               const WorkspaceLayout& workspace_layout,
                                               T* workspace, int64_t cells, bool forward,
                                               T* log_likelihood) {
  if (!trellis.has_paths()) {
    if (kPass == Pass::kFromMiddle && forward && threadIdx.x == 0) {
      *log_likelihood = trellis.trivial_log_likelihood;
    }
    return false;
  }
  const Store<T> store = store_in(workspace, workspace_layout, cells, kPass != Pass::kScore);
  T* memory = reinterpret_cast<T*>(shared_memory());
  if constexpr (kPlan == Plan::kWorkspace) {
    memory = workspace + workspace_layout.tiles + (forward ? 0 : workspace_layout.tile_elements);
  }
  return forward ? sweep<true, kPass, kPlan>(trellis, layout, store, memory, log_likelihood)
                 : sweep<false, kPass, kPlan>(trellis, layout, store, memory, log_likelihood);
}

// The log-likelihood where only it is wanted: from the nodes on which the sweeps met.
template <class T, bool kWound>
__device__ __forceinline__ void score_of_block(const Trellis<T, kWound>& trellis,
                                               const WorkspaceLayout& workspace_layout,
                                               T* workspace, int64_t cells, int stretch_fronts,
                                               T* log_likelihood) {
  T result = trellis.trivial_log_likelihood;
  if (trellis.has_paths()) {
    const Store<T> store = store_in(workspace, workspace_layout, cells, false);
    const int middle = middle_stretch(trellis.fronts, stretch_fronts);
    result = likelihood_of_front<false>(store.alpha(0), store.beta(0), trellis.slots)
                 .log(store.alpha_offsets[middle] + store.beta_offsets[middle]);
  }
  if (threadIdx.x == 0) *log_likelihood = result;
}

}  // namespace jax_rnnt::cuda
