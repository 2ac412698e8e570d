// The best path through a band of arcs: one block to an utterance, frame by frame, each with a row
// of slots as in cpp/best_path_kernels.h. The labels of one frame of a regular lattice are a prefix
// scan over the row.
#include <algorithm>

#include "corridor.h"
#include "extended.h"
#include "kernels.h"
#include "launch.h"

namespace jax_rnnt::cuda {
namespace {

inline constexpr int64_t kMostThreads = 512;
// Longer rows are in the workspace. Every device has as much shared memory without asking.
inline constexpr int64_t kMostRowBytes = 40 << 10;

// Counted in elements of float or double, in each of which an int32 fits.
struct BestPathLayout {
  int64_t corridor;
  int64_t rows;      // two rows of slots, in turn
  int64_t by_label;  // one byte for each slot of each frame
  int64_t total;
};

inline BestPathLayout best_path_layout(int64_t frames, int64_t cells, int64_t element_bytes) {
  BestPathLayout layout{};
  layout.corridor = 0;
  layout.rows = (Corridor::kRows * frames + 1) / 2 * 2;
  layout.by_label = layout.rows + 2 * (cells + 1);
  layout.total = layout.by_label + (frames * (cells + 1) + element_bytes - 1) / element_bytes;
  return layout;
}

inline int64_t row_bytes(int64_t cells, int64_t element_bytes) {
  return 2 * (cells + 1) * element_bytes;
}

// Arcs that lead to one slot, as they were read.
template <class T>
struct Arcs {
  bool has_stay, has_move;
  T blank, label;
};

// One utterance; t = 0 is its first frame.
template <class T>
struct Band {
  Bounds bounds;
  int frames;
  int64_t cells;
  bool regular, constrained;
  T delay_penalty, delay_center;
  const T *blank, *label;
  const int32_t* starts;
  Corridor corridor;
  uint8_t* by_label;

  // Slots that arcs of frame t on complete paths lead from or to.
  __device__ __forceinline__ Interval slots(int t) const {
    const int start = starts[t];
    const Interval blanks = corridor.blank(t), labels = corridor.label(t);
    if (labels.empty()) return {blanks.low - start, blanks.high - start};
    if (blanks.empty()) return {labels.low - start, labels.high + 1 - start};
    return {smaller(blanks.low, labels.low) - start, larger(blanks.high, labels.high + 1) - start};
  }

  __device__ __forceinline__ Arcs<T> arcs(int t, int slot) const {
    const int u = starts[t] + slot;
    const int64_t cell = t * cells + slot;
    Arcs<T> arcs{corridor.blank(t).contains(u), corridor.label(t).contains(u - 1), T(0), T(0)};
    if (arcs.has_stay || (constrained && arcs.has_move)) arcs.blank = blank[cell];
    if (arcs.has_move) arcs.label = label[cell - 1];
    return arcs;
  }

  __device__ __forceinline__ T stay(const Arcs<T>& arcs, bool& bad) const {
    return arcs.has_stay ? usable(arcs.blank, bad) : -Constants<T>::kInfinity;
  }
  __device__ __forceinline__ T move(const Arcs<T>& arcs, int t, bool& bad) const {
    if (!arcs.has_move) return -Constants<T>::kInfinity;
    T log_prob = arcs.label + delay_penalty * (delay_center - T(t));
    if (constrained) log_prob += arcs.blank;
    return usable(log_prob, bad);
  }

 private:
  // Forbidden and bad arcs become -inf; NaN and excessive ones set the flag.
  static __device__ __forceinline__ T usable(T x, bool& bad) {
    const bool good = x <= T(kExcessive);
    bad = bad || !good;
    return good && !(x < T(kForbidden)) ? x : -Constants<T>::kInfinity;
  }
};

// The best score of a slot's node before it: with node(s) = max(arrived(s), node(s - 1) + move(s)),
// thread i gets node(i - 1), where node(-1) is `carry`. That becomes the last thread's node.
template <class T>
__device__ __forceinline__ T scan_nodes(T move, T arrived, T& carry) {
  __shared__ T moves_of_warp[kWarp], best_of_warp[kWarp];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int warps = int(blockDim.x) / kWarp;
  T moves = move, best = arrived;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const T moves_below = __shfl_up_sync(kAllLanes, moves, step);
    const T best_below = __shfl_up_sync(kAllLanes, best, step);
    if (lane >= step) {
      best = larger(best, best_below + moves);
      moves += moves_below;
    }
  }
  if (lane == kWarp - 1) {
    moves_of_warp[warp] = moves;
    best_of_warp[warp] = best;
  }
  __syncthreads();
  T before_warp = carry;
  for (int w = 0; w < warps; ++w) {
    if (w == warp) before_warp = carry;
    carry = larger(best_of_warp[w], carry + moves_of_warp[w]);
  }
  __syncthreads();
  const T moves_before = __shfl_up_sync(kAllLanes, moves, 1);
  const T best_before = __shfl_up_sync(kAllLanes, best, 1);
  return lane == 0 ? before_warp : larger(best_before, before_warp + moves_before);
}

// Fills `by_label` and returns, to all threads, the best score; NaN for bad arcs. `rows` are two
// rows of cells + 1 slots.
template <class T>
__device__ __forceinline__ T best_score(const Band<T>& band, T* rows) {
  const int64_t row_elements = band.cells + 1;
  bool bad = false;
  const int first = band.bounds.label_begin - band.starts[0];
  if (threadIdx.x == 0) rows[first] = T(0);
  __syncthreads();
  Interval previous{first, first}, slots = band.slots(0);
  Arcs<T> ahead = slots.low + int(threadIdx.x) <= slots.high
                      ? band.arcs(0, slots.low + int(threadIdx.x))
                      : Arcs<T>{};
  for (int t = 0; t < band.frames; ++t) {
    const T* from = rows + t % 2 * row_elements;
    T* to = rows + (t + 1) % 2 * row_elements;
    uint8_t* by_label = band.by_label + t * row_elements;
    const int distance = t > 0 ? band.starts[t] - band.starts[t - 1] : 0;
    const auto arrived_at = [&](int slot) {
      return previous.contains(slot + distance) ? from[slot + distance] : -Constants<T>::kInfinity;
    };
    // The next frame's arcs are on their way while this one is being computed.
    Arcs<T> arcs = ahead;
    ahead = Arcs<T>{};
    Interval next = slots;
    if (t + 1 < band.frames) {
      next = band.slots(t + 1);
      const int slot = next.low + int(threadIdx.x);
      if (slot <= next.high) ahead = band.arcs(t + 1, slot);
    }
    T carry = -Constants<T>::kInfinity;
    for (int begin = slots.low; begin <= slots.high; begin += int(blockDim.x)) {
      const int slot = begin + int(threadIdx.x);
      const bool inside = slot <= slots.high;
      if (begin > slots.low) arcs = inside ? band.arcs(t, slot) : Arcs<T>{};
      const T stay = band.stay(arcs, bad), move = band.move(arcs, t, bad);
      T stayed = inside ? arrived_at(slot) : -Constants<T>::kInfinity, moved;
      if (band.regular) {
        moved = scan_nodes(move, stayed, carry) + move;
      } else {
        moved = (inside ? arrived_at(slot - 1) : -Constants<T>::kInfinity) + move;
        stayed += stay;
      }
      // Strictly better: of equally good paths, the one whose labels come first.
      const bool is_label = moved > stayed;
      const T best = is_label ? moved : stayed;
      if (inside) {
        by_label[slot] = is_label;
        to[slot] = band.regular ? best + stay : best;
      }
    }
    __syncthreads();
    previous = slots;
    slots = next;
  }
  const int last = band.bounds.label_end - band.starts[band.frames - 1];
  const T score = rows[band.frames % 2 * row_elements + last];
  return __syncthreads_or(bad) ? not_a_number<T>() : score;
}

// Writes the frame of each label, from the last to the first, by one warp: its lanes look at as
// many frames before, for the first of them in which a label arc leads to the position.
template <class T>
__device__ __forceinline__ void trace_back(const Band<T>& band, int32_t* label_frames) {
  const int lane = int(threadIdx.x);
  int u = band.bounds.label_end, t = band.frames - 1;
  while (u > band.bounds.label_begin && t >= 0) {
    const int frame = t - lane;
    bool is_label = false;
    if (frame >= 0) {
      const int slot = u - band.starts[frame];
      if (band.slots(frame).contains(slot)) {
        is_label = band.by_label[frame * (band.cells + 1) + slot] != 0;
      }
    }
    const unsigned votes = __ballot_sync(kAllLanes, is_label);
    if (votes == 0) {
      t -= kWarp;
      continue;
    }
    t -= __ffs(int(votes)) - 1;
    --u;
    if (lane == 0) label_frames[u] = band.bounds.frame_begin + t;
    if (!band.regular) --t;
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    best_path_kernel(const BestPath p, const BestPathLayout layout, bool rows_are_shared) {
  const BandedLattice& lattice = p.band;
  const int64_t b = blockIdx.x;
  int32_t* label_frames = p.label_frames + b * lattice.labels;
  T& score = static_cast<T*>(lattice.log_likelihood)[b];
  for (int64_t u = threadIdx.x; u < lattice.labels; u += blockDim.x) label_frames[u] = -1;
  const Bounds bounds = lattice.bounds[b];
  const bool valid = bounds.valid(lattice.frames, lattice.labels);
  if (!valid || bounds.frame_begin == bounds.frame_end) {
    const bool without_arcs = bounds.label_begin == bounds.label_end;
    if (threadIdx.x == 0) {
      score = !valid ? not_a_number<T>() : without_arcs ? T(0) : -Constants<T>::kInfinity;
    }
    return;
  }
  T* workspace = static_cast<T*>(lattice.workspace) + b * lattice.workspace_elements;
  const int64_t first_frame = b * lattice.frames + bounds.frame_begin;
  Band<T> band{};
  band.bounds = bounds;
  band.frames = bounds.frame_end - bounds.frame_begin;
  band.cells = lattice.cells;
  band.regular = lattice.topology == Topology::kRegular;
  band.constrained = lattice.topology == Topology::kConstrained;
  band.delay_penalty = T(lattice.delay_penalty);
  band.delay_center = (T(bounds.frame_end) - 1) / 2 - T(bounds.frame_begin);
  band.blank = static_cast<const T*>(lattice.blank) + first_frame * lattice.cells;
  band.label = static_cast<const T*>(lattice.label) + first_frame * lattice.cells;
  band.starts = lattice.starts + first_frame;
  band.corridor = {reinterpret_cast<int32_t*>(workspace + layout.corridor), lattice.frames};
  band.by_label = reinterpret_cast<uint8_t*>(workspace + layout.by_label);
  const bool feasible = find_corridor(band.corridor, bounds, band.starts, lattice.cells,
                                      lattice.topology, p.final_blank);
  T best = -Constants<T>::kInfinity;
  if (feasible) {
    T* rows = rows_are_shared ? reinterpret_cast<T*>(shared_memory()) : workspace + layout.rows;
    best = best_score(band, rows);
  }
  if (threadIdx.x == 0) score = best;
  if (best > -Constants<T>::kInfinity && threadIdx.x < kWarp) trace_back(band, label_frames);
}

template <class T>
cudaError_t launch_best_path(const BestPath& p, cudaStream_t stream) {
  const int64_t slots = p.band.cells + 1;
  const int64_t threads = std::min((slots + kWarp - 1) / kWarp * kWarp, kMostThreads);
  const int64_t bytes = row_bytes(p.band.cells, sizeof(T));
  const bool shared = bytes <= kMostRowBytes;
  return launch(best_path_kernel<T>, Grid{p.band.batch, int(threads), shared ? bytes : 0}, stream,
                p, best_path_layout(p.band.frames, p.band.cells, sizeof(T)), shared);
}

}  // namespace

cudaError_t best_path(const BestPath& p, DType dtype, cudaStream_t stream) {
  return dtype == DType::kF64 ? launch_best_path<double>(p, stream)
                              : launch_best_path<float>(p, stream);
}

int64_t best_path_workspace_elements(int64_t frames, int64_t cells, DType dtype) {
  return best_path_layout(frames, cells, dtype == DType::kF64 ? 8 : 4).total;
}

}  // namespace jax_rnnt::cuda
