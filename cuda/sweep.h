// A sweep of one block over the fronts of one utterance: alpha forward or beta backward.
//
// Both sweeps first go to the middle front and store the nodes they pass. There the likelihood is
// known, and both go on, each over the fronts whose nodes the other one has stored, giving
// posteriors as it goes. So there are half as many dependent steps as in two sweeps one after the
// other, half as many stored nodes, and no third pass.
//
// A posterior is alpha * arc * beta over the sum of alpha * beta of a whole front, taken anew at
// every tile, whose few fronts' rounding is all that can disturb the posterior mass.
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

// Where the sweeps meet, a multiple of a tile's fronts; in tiles.
__device__ __forceinline__ int middle_tile(int fronts, int tile_fronts) {
  return fronts / 2 / tile_fronts;
}

// Returns false, having done nothing, where the loss turns out not to be finite.
template <bool kForward, Pass kPass, Plan kPlan, class T, bool kWound>
__device__ __forceinline__ bool sweep(const Trellis<T, kWound>& trellis, const SweepLayout& layout,
                                      const Store<T>& store, T* memory, T* log_likelihood) {
  constexpr bool kOneWarp = kPlan == Plan::kWarp, kShared = kPlan != Plan::kWorkspace;
  constexpr bool kTowards = kPass != Pass::kFromMiddle;
  const int capacity = layout.fronts, fronts = trellis.fronts, slots = trellis.slots;
  const int tiles = (fronts + capacity - 1) / capacity, middle = middle_tile(fronts, capacity);
  const int first_tile = kTowards == kForward ? 0 : middle;
  const int end_tile = kTowards == kForward ? middle : tiles;
  const int count_tiles = end_tile - first_tile;
  const Winding winding(slots);
  const auto tile_index = [&](int i) { return kForward ? first_tile + i : end_tile - 1 - i; };
  const auto fronts_of_tile = [&](int index) {
    return smaller(capacity, fronts - index * capacity);
  };
  const auto start = [&](int i) {
    const int index = tile_index(i), n0 = index * capacity, count = fronts_of_tile(index);
    const Tile<T> tile = tile_at(memory, layout, i % 2);
    start_arcs<kForward, kShared>(trellis, n0, count, capacity, tile, winding);
    if constexpr (!kTowards) {
      start_partner<kShared>(kForward ? store.beta(n0 + 1) : store.alpha(n0), store.cells, slots,
                             count, tile);
    }
  };
  // The partner's nodes at a tile's end, which are those at the next one's beginning.
  const auto last_partner = [&](const Tile<T>& tile, int count) {
    return tile.partner + (kForward ? count - 1 : 0) * tile.stride;
  };

  Extended<T>* const borders = reinterpret_cast<Extended<T>*>(memory + layout.rows);
  Rows<T> rows{borders + 1, borders + 1 + layout.row_elements / 2};
  int64_t* const offsets = kForward ? store.alpha_offsets : store.beta_offsets;
  constexpr int kBehind = kForward ? 1 : 0;  // index of the offset behind a tile, less the tile's
  const int64_t* const partner_offsets = kForward ? store.beta_offsets : store.alpha_offsets;
  int64_t offset = 0, partner_offset = 0, next_partner_offset = 0;
  Likelihood<T> likelihood{};
  if (threadIdx.x == 0) {
    for (Extended<T>* row : {rows.from, rows.to}) row[-1] = row[slots] = dead<T>();
  }
  if constexpr (kTowards) {
    const int n = kForward ? 0 : fronts;
    const int single = kForward ? trellis.first_node : trellis.last_node;
    for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
      rows.from[u] = u == single ? Extended<T>{T(1), 0} : dead<T>();
    }
    copy_row(kForward ? store.alpha(n) : store.beta(n), rows.from, slots);
    if (threadIdx.x == 0) offsets[kForward ? 0 : tiles] = 0;
  } else {
    const int n = middle * capacity;
    copy_row(rows.from, kForward ? store.alpha(n) : store.beta(n), slots);
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
  if (!kTowards && count_tiles > 0) next_partner_offset = partner_offsets[tile_index(0) + kBehind];
  for (int i = 0; i < count_tiles; ++i) {
    // From the offset of the partner's nodes in the likelihood to that of its nodes in this tile.
    const int64_t partner_change = next_partner_offset - partner_offset;
    partner_offset = next_partner_offset;
    if (i + 1 < count_tiles) {
      start(i + 1);
      if (!kTowards) next_partner_offset = partner_offsets[tile_index(i + 1) + kBehind];
    }
    __pipeline_commit();
    __pipeline_wait_prior(1);
    synchronise<kOneWarp>();
    const int index = tile_index(i), n0 = index * capacity, count = fronts_of_tile(index);
    const int next = kForward ? n0 + count : n0;
    const Work<T> work{n0,
                       count,
                       tile_at(memory, layout, i % 2),
                       reinterpret_cast<Factors<T>*>(memory + layout.factors),
                       layout.factor_fronts,
                       kForward ? store.alpha(n0 + 1) : store.beta(n0 + count - 1),
                       store.cells};
    take_steps<kForward, kPass, kPlan>(trellis, work, Normaliser<T>(likelihood, partner_change),
                                       rows);
    const Exponent<T> top = renormalise<kOneWarp>(rows.from, slots);
    offset += int64_t(top);
    if constexpr (kTowards) {
      if (kPass == Pass::kTowardsMiddle || i + 1 == count_tiles) {
        copy_row(kForward ? store.alpha(next) : store.beta(next), rows.from, slots);
      }
      if (threadIdx.x == 0) offsets[index + kBehind] = offset;
    } else {
      likelihood.move(int64_t(top) + partner_change);
      likelihood.mantissa = sum_of_front<kOneWarp>(rows.from, last_partner(work.tile, count), slots,
                                                   likelihood.exponent);
      drain_tile<kForward>(trellis, n0, count, capacity, work.tile, winding);
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
                                               T* workspace, int64_t cells, int tile_fronts,
                                               T* log_likelihood) {
  T result = trellis.trivial_log_likelihood;
  if (trellis.has_paths()) {
    const Store<T> store = store_in(workspace, workspace_layout, cells, false);
    const int middle = middle_tile(trellis.fronts, tile_fronts);
    result = likelihood_of_front<false>(store.alpha(0), store.beta(0), trellis.slots)
                 .log(store.alpha_offsets[middle] + store.beta_offsets[middle]);
  }
  if (threadIdx.x == 0) *log_likelihood = result;
}

}  // namespace jax_rnnt::cuda
