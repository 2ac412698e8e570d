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

#include "tiles.h"

namespace jax_rnnt::cuda {

enum class Pass {
  kScore,
  kTowardsMiddle,
  kFromMiddle
};  // kScore: towards the middle, no posteriors

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

template <class T, class Combine>
__device__ __forceinline__ T reduce_block(T value, T identity, Combine combine) {
  __shared__ T of_warp[kWarp];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  value = reduce_group<kWarp>(value, combine);
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  value = lane < int(blockDim.x) / kWarp ? of_warp[lane] : identity;
  value = reduce_group<kWarp>(value, combine);
  __syncthreads();  // before the next reduction writes
  return value;
}

template <class T>
inline constexpr Exponent<T> kNoExponent = Exponent<T>(1ull << (sizeof(T) * 8 - 1));

template <class T>
__device__ __forceinline__ Exponent<T> largest_exponent(Exponent<T> of_thread) {
  const Exponent<T> top = reduce_block(of_thread, kNoExponent<T>,
                                       [](Exponent<T> x, Exponent<T> y) { return larger(x, y); });
  return top == kNoExponent<T> ? 0 : top;  // a dead row
}

// Mantissas to [1, 2), exponents relative to the largest of the row, which is returned.
template <class T>
__device__ __forceinline__ Exponent<T> renormalise(Extended<T>* row, int slots) {
  Exponent<T> top = kNoExponent<T>;
  for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
    row[u] = normalised(row[u]);
    if (row[u].mantissa != T(0)) top = larger(top, row[u].exponent);
  }
  top = largest_exponent<T>(top);
  for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
    row[u] = relative_to(row[u], top);
  }
  __syncthreads();
  return top;
}

// The sum of alpha * beta over the nodes of a front, both renormalised.
template <class T>
__device__ __forceinline__ Extended<T> sum_of_front(const Extended<T>* x, const Extended<T>* y,
                                                    int slots) {
  Exponent<T> top = kNoExponent<T>;
  for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
    const Extended<T> product = multiply(x[u], y[u]);
    if (product.mantissa != T(0)) top = larger(top, product.exponent);
  }
  top = largest_exponent<T>(top);
  T sum = 0;
  for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
    const Extended<T> product = multiply(x[u], y[u]);
    // The exponent of a zero may lie above the largest of the others.
    sum += product.mantissa * exp2_int<T>(smaller(product.exponent - top, Exponent<T>(0)));
  }
  return {reduce_block(sum, T(0), [](T a, T b) { return a + b; }), top};
}

template <class T>
__device__ __forceinline__ T log_likelihood_of(Extended<T> sum, int64_t offset) {
  if (sum.mantissa == T(0)) return -Constants<T>::kInfinity;
  return T(log(double(sum.mantissa)) +
           double(offset + int64_t(sum.exponent)) * 0.69314718055994530942);
}

// What turns a product alpha * arc * beta into a posterior.
template <class T>
struct Normaliser {
  int64_t exponent;
  T scale;

  __device__ __forceinline__ Normaliser(Extended<T> sum, int64_t offset)
      : exponent(offset - int64_t(sum.exponent)),
        scale(sum.mantissa > T(0) ? 1 / sum.mantissa : T(0)) {}

  __device__ __forceinline__ T posterior(Extended<T> partner, Extended<T> rest) const {
    // A double's exponents have 64 bits already: what is below this floor is 0 in any case.
    constexpr int64_t kFloor = sizeof(T) == 8 ? int64_t(kDead<T>) : INT64_MIN / 4;
    const int64_t e = larger(int64_t(partner.exponent) + exponent, kFloor) +
                      larger(int64_t(rest.exponent), kFloor);
    constexpr int64_t kMost = Constants<T>::kExponentBias;
    return partner.mantissa * rest.mantissa *
           exp2_int<T>(Exponent<T>(larger(smaller(e, kMost), -kMost))) * scale;
  }
};

// One step: the nodes of the next front (`to`) from those of this one.
template <bool kForward, Pass kPass, class T, bool kWound>
__device__ __forceinline__ void step(const Trellis<T, kWound>& trellis, int n, const Tile<T>& tile,
                                     int k, const Extended<T>* from, Extended<T>* to,
                                     Extended<T>* stored, const Normaliser<T>& normaliser) {
  T* blank = tile.blank + k * tile.stride;
  T* label = tile.label + k * tile.stride;
  const Extended<T>* partner = tile.partner + k * tile.stride;
  for (int u = int(threadIdx.x); u < trellis.slots; u += int(blockDim.x)) {
    // Forward, node u is reached by the label arc of the slot before; backward, by its own.
    const int label_u = kForward ? trellis.slot_before(u) : u;
    const bool has_label = !kForward || label_u >= 0;
    Extended<T> stay = dead<T>(), move = dead<T>();
    if (trellis.blank_lives(n, u)) stay = multiply(from[u], exp_extended(blank[u]));
    if (has_label && trellis.label_lives(n, label_u)) {
      const T log_prob = label[label_u] + trellis.delay(trellis.frame_of(n, label_u));
      move = multiply(from[kForward ? label_u : trellis.slot_after(u)], exp_extended(log_prob));
    }
    Extended<T> sum = add(stay, move);
    // Nodes that do not lead to the other end are no competition for those that do: however much
    // likelier they are, those stay in range.
    if (kPass == Pass::kFromMiddle && partner[u].mantissa == T(0)) sum = dead<T>();
    to[u] = sum;
    if constexpr (kPass == Pass::kTowardsMiddle) {
      if (stored != nullptr) stored[u] = sum;
    }
    if constexpr (kPass == Pass::kFromMiddle) {
      blank[u] = normaliser.posterior(partner[u], stay);
      if (has_label) label[label_u] = normaliser.posterior(partner[u], move);
      if (kForward && !kWound && u == trellis.labels) label[u] = T(0);
    }
  }
}

template <class T>
__device__ __forceinline__ void copy_row(Extended<T>* to, const Extended<T>* from, int slots) {
  for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) to[u] = from[u];
}

// Where the sweeps meet, a multiple of a tile's fronts; in tiles.
__device__ __forceinline__ int middle_tile(int fronts, int tile_fronts) {
  return fronts / 2 / tile_fronts;
}

// Returns false, having done nothing, where the loss turns out not to be finite.
template <bool kForward, Pass kPass, bool kShared, class T, bool kWound>
__device__ __forceinline__ bool sweep(const Trellis<T, kWound>& trellis, const SweepLayout& layout,
                                      const Store<T>& store, T* memory, T* log_likelihood) {
  const int capacity = layout.fronts, fronts = trellis.fronts, slots = trellis.slots;
  const int tiles = (fronts + capacity - 1) / capacity, middle = middle_tile(fronts, capacity);
  const bool towards = kPass != Pass::kFromMiddle;
  const int first_tile = towards == kForward ? 0 : middle;
  const int end_tile = towards == kForward ? middle : tiles;
  const int count_tiles = end_tile - first_tile;
  const auto tile_index = [&](int i) { return kForward ? first_tile + i : end_tile - 1 - i; };
  const auto fronts_of_tile = [&](int index) {
    return smaller(capacity, fronts - index * capacity);
  };
  const auto start = [&](int i) {
    const int index = tile_index(i), n0 = index * capacity, count = fronts_of_tile(index);
    const Tile<T> tile = tile_at(memory, layout, i % 2);
    start_tile<kShared>(trellis, n0, count, capacity, tile);
    if constexpr (kPass == Pass::kFromMiddle) {
      for (int k = 0; k < count; ++k) {
        const Extended<T>* row = kForward ? store.beta(n0 + k + 1) : store.alpha(n0 + k);
        for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
          start_copy<kShared>(tile.partner + k * tile.stride + u, row + u);
        }
      }
    }
  };
  // The partner's nodes at a tile's end, which are those at the next one's beginning.
  const auto last_partner = [&](const Tile<T>& tile, int count) {
    return tile.partner + (kForward ? count - 1 : 0) * tile.stride;
  };

  Extended<T>* from = reinterpret_cast<Extended<T>*>(memory + layout.rows) + 1;
  Extended<T>* to = from + layout.row_elements / 2;
  int64_t* const offsets = kForward ? store.alpha_offsets : store.beta_offsets;
  const int64_t* const partner_offsets = kForward ? store.beta_offsets : store.alpha_offsets;
  int64_t offset = 0;
  Extended<T> sum{};
  if (threadIdx.x == 0) {
    for (Extended<T>* row : {from, to}) row[-1] = row[slots] = dead<T>();
  }
  if constexpr (towards) {
    const int n = kForward ? 0 : fronts;
    const int single = kForward ? trellis.first_node : trellis.last_node;
    for (int u = int(threadIdx.x); u < slots; u += int(blockDim.x)) {
      from[u] = u == single ? Extended<T>{T(1), 0} : dead<T>();
    }
    copy_row(kForward ? store.alpha(n) : store.beta(n), from, slots);
    if (threadIdx.x == 0) offsets[kForward ? 0 : tiles] = 0;
  } else {
    const int n = middle * capacity;
    copy_row(from, kForward ? store.alpha(n) : store.beta(n), slots);
    sum = sum_of_front(from, kForward ? store.beta(n) : store.alpha(n), slots);
    const T log_likelihood_here =
        log_likelihood_of(sum, store.alpha_offsets[middle] + store.beta_offsets[middle]);
    if (kForward && threadIdx.x == 0) *log_likelihood = log_likelihood_here;
    if (!(sum.mantissa > T(0)) || !(log_likelihood_here < Constants<T>::kInfinity)) return false;
  }

  if (count_tiles > 0) start(0);
  __pipeline_commit();
  for (int i = 0; i < count_tiles; ++i) {
    if (i + 1 < count_tiles) start(i + 1);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    const int index = tile_index(i), n0 = index * capacity, count = fronts_of_tile(index);
    const Tile<T> tile = tile_at(memory, layout, i % 2);
    if (trellis.constrained) {
      add_blank_to_labels(trellis, count, tile);
      __syncthreads();
    }
    // From the offset of the partner's nodes in the sum to that of its nodes in this tile.
    const int before = kForward ? index : index + 1, inside = kForward ? index + 1 : index;
    const Normaliser<T> normaliser(sum,
                                   towards ? 0 : partner_offsets[inside] - partner_offsets[before]);
    for (int j = 0; j < count; ++j) {
      const int k = kForward ? j : count - 1 - j, n = n0 + k, next = kForward ? n + 1 : n;
      Extended<T>* stored = nullptr;
      if (kPass == Pass::kTowardsMiddle && j + 1 < count) {
        stored = kForward ? store.alpha(next) : store.beta(next);
      }
      step<kForward, kPass>(trellis, n, tile, k, from, to, stored, normaliser);
      __syncthreads();
      Extended<T>* swap = from;
      from = to;
      to = swap;
    }
    offset += renormalise(from, slots);
    if constexpr (towards) {
      const int next = kForward ? n0 + count : n0;
      const bool is_last = i + 1 == count_tiles;
      if (kPass == Pass::kTowardsMiddle || is_last) {
        copy_row(kForward ? store.alpha(next) : store.beta(next), from, slots);
      }
      if (threadIdx.x == 0) offsets[kForward ? index + 1 : index] = offset;
    } else {
      sum = sum_of_front(from, last_partner(tile, count), slots);
      drain_tile(trellis, n0, count, capacity, tile);
      __syncthreads();  // before the next tile but one is copied here
    }
  }
  return true;
}

// Both sweeps of an utterance, in the two blocks that it has. Returns as `sweep`.
template <Pass kPass, bool kShared, class T, bool kWound>
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
  if constexpr (!kShared) {
    memory = workspace + workspace_layout.tiles + (forward ? 0 : workspace_layout.tile_elements);
  }
  return forward ? sweep<true, kPass, kShared>(trellis, layout, store, memory, log_likelihood)
                 : sweep<false, kPass, kShared>(trellis, layout, store, memory, log_likelihood);
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
    const Extended<T> sum = sum_of_front(store.alpha(0), store.beta(0), trellis.slots);
    result = log_likelihood_of(sum, store.alpha_offsets[middle] + store.beta_offsets[middle]);
  }
  if (threadIdx.x == 0) *log_likelihood = result;
}

}  // namespace jax_rnnt::cuda
