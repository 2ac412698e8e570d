// The best path through a band of arcs, or a whole lattice in packed rows: one block to an
// utterance, frame by frame, each with a row of slots as in cpp/best_path_kernels.h. The labels of
// one frame of a regular lattice are a prefix scan over the row.
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

inline int64_t two_rows(int64_t cells) { return 2 * (cells + 1); }

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
  layout.by_label = layout.rows + two_rows(cells);
  layout.total = layout.by_label + (frames * (cells + 1) + element_bytes - 1) / element_bytes;
  return layout;
}

// Arcs that lead to one slot, as they were read.
template <class T>
struct Arcs {
  bool has_stay, has_move;
  T blank, label;
};

// One utterance; t = 0 is its first frame. A whole lattice starts at 0 in all frames, and needs no
// corridor to know which arcs are on complete paths.
template <class T, bool kWhole>
struct Band {
  Bounds bounds;
  int frames;
  int64_t cells;
  bool regular, constrained, final_blank;
  T delay_penalty, delay_center;
  const T *blank, *label;
  const int32_t* starts;
  Corridor corridor;
  uint8_t* by_label;

  // In a band, a label arc to the next frame may lead above the cells.
  __device__ __forceinline__ int64_t slots_per_frame() const { return kWhole ? cells : cells + 1; }
  __device__ __forceinline__ int start(int t) const { return kWhole ? 0 : int(starts[t]); }

  // Label positions of frame t whose blank arcs, and whose label arcs, are on complete paths.
  __device__ __forceinline__ Interval blanks(int t) const {
    if constexpr (kWhole) return intersection(nodes(t), nodes(t + 1));
    return corridor.blank(t);
  }
  __device__ __forceinline__ Interval labels(int t) const {
    if constexpr (!kWhole) return corridor.label(t);
    const Interval here = nodes(t), next = nodes(t + 1);
    if (regular) return {here.low, here.high - 1};
    return intersection(here, {next.low - 1, next.high - 1});
  }

  // Slots that arcs of frame t on complete paths lead from or to.
  __device__ __forceinline__ Interval slots(int t) const {
    const int start = this->start(t);
    const Interval blanks = this->blanks(t), labels = this->labels(t);
    if (labels.empty()) return {blanks.low - start, blanks.high - start};
    if (blanks.empty()) return {labels.low - start, labels.high + 1 - start};
    return {smaller(blanks.low, labels.low) - start, larger(blanks.high, labels.high + 1) - start};
  }

  __device__ __forceinline__ Arcs<T> arcs(int t, int slot) const {
    const int u = start(t) + slot;
    const int64_t cell = t * cells + slot;
    Arcs<T> arcs{blanks(t).contains(u), labels(t).contains(u - 1), T(0), T(0)};
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

  // Fills the corridor; false, for all threads, if there is no complete path.
  __device__ __forceinline__ bool feasible(Topology topology) const {
    if constexpr (kWhole) {
      return regular || bounds.label_end - bounds.label_begin <= frames - int(final_blank);
    }
    return find_corridor(corridor, bounds, starts, cells, topology, final_blank);
  }

 private:
  // Label positions on complete paths of a whole lattice.
  __device__ __forceinline__ Interval nodes(int t) const {
    const int first = bounds.label_begin, last = bounds.label_end;
    if (t == frames) return {last, last};
    if (regular) return {first, last};
    return {larger(first, last - (frames - t) + int(final_blank)), smaller(last, first + t)};
  }

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
template <class T, bool kWhole>
__device__ __forceinline__ T best_score(const Band<T, kWhole>& band, T* rows) {
  const int64_t row_elements = band.cells + 1;
  bool bad = false;
  const int first = band.bounds.label_begin - band.start(0);
  if (threadIdx.x == 0) rows[first] = T(0);
  __syncthreads();
  Interval previous{first, first}, slots = band.slots(0);
  Arcs<T> ahead = slots.low + int(threadIdx.x) <= slots.high
                      ? band.arcs(0, slots.low + int(threadIdx.x))
                      : Arcs<T>{};
  for (int t = 0; t < band.frames; ++t) {
    const T* from = rows + t % 2 * row_elements;
    T* to = rows + (t + 1) % 2 * row_elements;
    uint8_t* by_label = band.by_label + t * band.slots_per_frame();
    const int distance = t > 0 ? band.start(t) - band.start(t - 1) : 0;
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
  const int last = band.bounds.label_end - band.start(band.frames - 1);
  const T score = rows[band.frames % 2 * row_elements + last];
  return __syncthreads_or(bad) ? not_a_number<T>() : score;
}

// Writes the frame of each label, from the last to the first, by one warp: its lanes look at as
// many frames before, for the first of them in which a label arc leads to the position.
template <class T, bool kWhole>
__device__ __forceinline__ void trace_back(const Band<T, kWhole>& band, int32_t* label_frames) {
  const int lane = int(threadIdx.x);
  int u = band.bounds.label_end, t = band.frames - 1;
  while (u > band.bounds.label_begin && t >= 0) {
    const int frame = t - lane;
    bool is_label = false;
    if (frame >= 0) {
      const int slot = u - band.start(frame);
      if (band.slots(frame).contains(slot)) {
        is_label = band.by_label[frame * band.slots_per_frame() + slot] != 0;
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

// One block to a multiprocessor will do: asked for more, the compiler spills registers.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kMostThreads, 1)
    best_path_kernel(const BestPath p, const BestPathLayout layout, bool rows_are_shared) {
  const BandedLattice& lattice = p.band;
  const int64_t b = blockIdx.x;
  int32_t* label_frames = p.label_frames + b * lattice.labels;
  T& score = static_cast<T*>(lattice.log_likelihood)[b];
  for (int64_t u = threadIdx.x; u < lattice.labels; u += blockDim.x) label_frames[u] = -1;
  const Bounds bounds = lattice.bounds[b];
  const bool valid = p.valid(b);
  if (!valid || bounds.frame_begin == bounds.frame_end) {
    const bool without_arcs = bounds.label_begin == bounds.label_end;
    if (threadIdx.x == 0) {
      score = !valid ? not_a_number<T>() : without_arcs ? T(0) : -Constants<T>::kInfinity;
    }
    return;
  }
  T* workspace = p.workspace<T>(b);
  Band<T, kPacked> band{};
  band.bounds = bounds;
  band.frames = bounds.frame_end - bounds.frame_begin;
  band.cells = p.cells(bounds);
  band.final_blank = p.final_blank;
  band.regular = lattice.topology == Topology::kRegular;
  band.constrained = lattice.topology == Topology::kConstrained;
  band.delay_penalty = T(lattice.delay_penalty);
  band.delay_center = (T(bounds.frame_end) - 1) / 2 - T(bounds.frame_begin);
  const int64_t first = p.first_cell(b) + bounds.frame_begin * band.cells;
  band.blank = static_cast<const T*>(lattice.blank) + first;
  band.label = static_cast<const T*>(lattice.label) + first;
  if constexpr (kPacked) {
    band.by_label = p.row_bytes<T>(b);
  } else {
    band.starts = lattice.starts + b * lattice.frames + bounds.frame_begin;
    band.corridor = {reinterpret_cast<int32_t*>(workspace + layout.corridor), lattice.frames};
    band.by_label = reinterpret_cast<uint8_t*>(workspace + layout.by_label);
  }
  T best = -Constants<T>::kInfinity;
  if (band.feasible(lattice.topology)) {
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
  const int64_t bytes = two_rows(p.band.cells) * sizeof(T);
  const bool shared = bytes <= kMostRowBytes;
  const Grid grid{p.band.batch, int(threads), shared ? bytes : 0};
  if (p.packed.used) {
    return launch(best_path_kernel<T, true>, grid, stream, p, BestPathLayout{}, shared);
  }
  return launch(best_path_kernel<T, false>, grid, stream, p,
                best_path_layout(p.band.frames, p.band.cells, sizeof(T)), shared);
}

}  // namespace

cudaError_t best_path(const BestPath& p, DType dtype, cudaStream_t stream) {
  return dtype == DType::kF64 ? launch_best_path<double>(p, stream)
                              : launch_best_path<float>(p, stream);
}

int64_t packed_best_path_elements(int64_t cells) { return two_rows(cells); }

int64_t best_path_workspace_elements(int64_t frames, int64_t cells, DType dtype) {
  return best_path_layout(frames, cells, dtype == DType::kF64 ? 8 : 4).total;
}

}  // namespace jax_rnnt::cuda
