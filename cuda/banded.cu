// The transducer recursion inside a band: its arcs are arranged front by front, wound around as
// many slots as the band has cells (see trellis.h), then the sweeps are those of a whole lattice.
#include <algorithm>

#include "cells.h"
#include "corridor.h"
#include "kernels.h"
#include "sweep_launch.h"

namespace jax_rnnt::cuda {
namespace {

inline constexpr int kThreads = 256;

// Where a block arranges an utterance, with a thread for each of its frames, or some that share a
// frame: then neighbouring lanes read neighbouring cells of a wide band.
template <class T>
inline constexpr int kMostArrangeThreads = sizeof(T) == 4 ? 1024 : 512;  // doubles: more registers
inline constexpr int kCellsAtOnce = 8;  // of a thread, read before any is written

JAX_RNNT_HOST_DEVICE inline int lanes_of_frame(int64_t cells) {
  int lanes = 1;
  while (lanes < kWarp && lanes * kCellsAtOnce < cells) lanes *= 2;
  return lanes;
}

// 0 where a corridor stays in the workspace: every device has so much shared memory without asking.
JAX_RNNT_HOST_DEVICE inline int64_t shared_corridor_bytes(int64_t frames) {
  const int64_t bytes = Corridor::kRows * frames * int64_t(sizeof(int32_t));
  return bytes + kStaticSharedBytes <= kLeastSharedBytes ? bytes : 0;
}

// Counted in elements of float or double, in each of which an int32 fits.
struct BandedLayout {
  WorkspaceLayout sweeps;
  int64_t fronts;  // at most
  int64_t blank;   // rows of fronts: arcs, then posteriors
  int64_t label;
  int64_t corridor;
  int64_t feasible;
  int64_t total;
};

BandedLayout banded_layout(int64_t frames, int64_t cells, int64_t labels, Topology topology,
                           bool with_posteriors, int64_t element_bytes) {
  BandedLayout layout{};
  layout.fronts = frames + (topology == Topology::kRegular ? labels : 0);
  layout.sweeps =
      workspace_layout(layout.fronts, cells, false, with_posteriors, element_bytes, cells);
  layout.blank = round_up(layout.sweeps.total, 4);
  layout.label = layout.blank + layout.fronts * cells;
  layout.corridor = layout.label + layout.fronts * cells;
  layout.feasible = layout.corridor + Corridor::kRows * frames;
  layout.total = round_up(layout.feasible + 1, 4);
  return layout;
}

template <class T>
struct Utterance {
  Bounds bounds;
  bool valid;
  const int32_t* starts;  // of the first frame
  T* workspace;
  Corridor corridor;
  int32_t* feasible;
  int64_t first_cell;  // of the planes

  __device__ __forceinline__ Utterance(const BandedLattice& p, const BandedLayout& layout,
                                       int64_t b)
      : bounds(p.bounds[b]),
        valid(bounds.valid(p.frames, p.labels)),
        starts(p.starts + b * p.frames + (valid ? bounds.frame_begin : 0)),
        workspace(static_cast<T*>(p.workspace) + b * p.workspace_elements),
        corridor{reinterpret_cast<int32_t*>(workspace + layout.corridor), p.frames},
        feasible(reinterpret_cast<int32_t*>(workspace + layout.feasible)),
        first_cell((b * p.frames + (valid ? bounds.frame_begin : 0)) * p.cells) {}

  __device__ __forceinline__ int frames() const { return bounds.frame_end - bounds.frame_begin; }
  __device__ __forceinline__ int labels() const { return bounds.label_end - bounds.label_begin; }
  __device__ __forceinline__ int fronts(Topology topology) const {
    return frames() == 0 ? 0 : frames() + (topology == Topology::kRegular ? labels() : 0);
  }
};

// Where the arcs of cell (t, u), both counted from the begins, are among the fronts.
__device__ __forceinline__ int64_t place(const BandedLattice& p, int t, int u, int slot) {
  return (p.topology == Topology::kRegular ? t + u : t) * p.cells + slot;
}
// The slot of label position u, counted from the begin, or above by a multiple of the cells.
__device__ __forceinline__ int slot_of(const BandedLattice& p, const Divisor& by_cells,
                                       uint32_t u) {
  return int(u - by_cells.quotient(u) * uint32_t(p.cells));
}

template <class T>
__device__ __forceinline__ Trellis<T, true> trellis_of(const BandedLattice& p,
                                                       const BandedLayout& layout, int64_t b) {
  const Utterance<T> utterance(p, layout, b);
  Trellis<T, true> trellis{};
  if (!utterance.valid) {
    trellis.trivial_log_likelihood = not_a_number<T>();
    return trellis;
  }
  trellis.frames = trellis.fronts = utterance.fronts(p.topology);
  trellis.slots = int(p.cells);
  trellis.last_node = int(utterance.labels() % p.cells);
  trellis.plane_stride = p.cells;
  trellis.blank = trellis.blank_out = utterance.workspace + layout.blank;
  trellis.label = trellis.label_out = utterance.workspace + layout.label;
  trellis.feasible = *utterance.feasible != 0;
  trellis.trivial_log_likelihood =
      trellis.fronts == 0 && utterance.labels() == 0 ? T(0) : -Constants<T>::kInfinity;
  return trellis;
}

// Arranges the arcs of one utterance by front; those on no complete path become -inf.
template <class T>
__global__ void __launch_bounds__(kMostArrangeThreads<T>)
    arrange_kernel(const BandedLattice p, const BandedLayout layout, const Divisor by_cells) {
  const Utterance<T> utterance(p, layout, blockIdx.x);
  if (!utterance.valid || utterance.frames() == 0) return;
  T* blank_out = utterance.workspace + layout.blank;
  T* label_out = utterance.workspace + layout.label;
  const int64_t elements = utterance.fronts(p.topology) * p.cells;
  for (int64_t i = threadIdx.x; i < elements; i += blockDim.x) {
    blank_out[i] = label_out[i] = -Constants<T>::kInfinity;
  }
  Corridor corridor = utterance.corridor;
  const bool shared = shared_corridor_bytes(p.frames) > 0;
  if (shared) corridor.rows = reinterpret_cast<int32_t*>(shared_memory());
  // Its barriers are also between the elements above and those below.
  const bool feasible =
      find_corridor(corridor, utterance.bounds, utterance.starts, p.cells, p.topology);
  if (threadIdx.x == 0) *utterance.feasible = feasible;
  if (!feasible) return;

  const Bounds& bounds = utterance.bounds;
  const bool constrained = p.topology == Topology::kConstrained;
  const T penalty = T(p.delay_penalty);
  const T center = (T(bounds.frame_end) - 1) / 2 - T(bounds.frame_begin);
  const int cells = int(p.cells), lanes = lanes_of_frame(p.cells);
  const int lane = int(threadIdx.x) % lanes, step = int(blockDim.x) / lanes;
  for (int t = int(threadIdx.x) / lanes; t < utterance.frames(); t += step) {
    const Interval blanks = corridor.blank(t), labels = corridor.label(t);
    if (shared && lane == 0) utterance.corridor.set(t, blanks, labels);
    const T* blank = static_cast<const T*>(p.blank) + utterance.first_cell + t * p.cells;
    const T* label = static_cast<const T*>(p.label) + utterance.first_cell + t * p.cells;
    const int start = band_of(utterance.starts, t, p.cells).low;
    // The band begins less than its cells below the begin: it has some of a complete path.
    int slot = slot_of(p, by_cells, uint32_t(start - bounds.label_begin + cells + lane));
    for (int s = lane; s < cells; s += kCellsAtOnce * lanes) {
      // No cell of the corridor is outside of the band. All that are read are on their way at once.
      T blank_at[kCellsAtOnce], label_at[kCellsAtOnce], blank_behind[kCellsAtOnce];
#pragma unroll
      for (int k = 0; k < kCellsAtOnce; ++k) {
        const int i = s + k * lanes, u = start + i;
        blank_at[k] = blanks.contains(u) ? blank[i] : T(0);
        label_at[k] = labels.contains(u) ? label[i] : T(0);
        blank_behind[k] = constrained && labels.contains(u) ? blank[i + 1] : T(0);
      }
#pragma unroll
      for (int k = 0; k < kCellsAtOnce; ++k) {
        const int u = start + s + k * lanes;
        const int64_t to = place(p, t, u - bounds.label_begin, slot);
        if (blanks.contains(u)) blank_out[to] = blank_at[k];
        if (labels.contains(u)) {
          T log_prob = label_at[k] + penalty * (center - T(t));
          if (constrained) log_prob += blank_behind[k];
          label_out[to] = log_prob;
        }
        slot += lanes;
        if (slot >= cells) slot -= cells;
      }
    }
  }
}

template <class T, Pass kPass, Plan kPlan>
__global__ void __launch_bounds__(kMostSweepThreads<T, kPlan>, 1)
    banded_sweep_kernel(const BandedLattice p, const SweepLayout sweep_layout,
                        const BandedLayout layout) {
  const int64_t b = blockIdx.x / 2;
  sweep_of_block<kPass, kPlan>(trellis_of<T>(p, layout, b), sweep_layout, layout.sweeps,
                               static_cast<T*>(p.workspace) + b * p.workspace_elements, p.cells,
                               blockIdx.x % 2 == 0, static_cast<T*>(p.log_likelihood) + b);
}

template <class T>
__global__ void __launch_bounds__(kMostSweepThreads<T, Plan::kSlots>, 1)
    banded_score_kernel(const BandedLattice p, const BandedLayout layout, int stretch_fronts) {
  const int64_t b = blockIdx.x;
  score_of_block(trellis_of<T>(p, layout, b), layout.sweeps,
                 static_cast<T*>(p.workspace) + b * p.workspace_elements, p.cells, stretch_fronts,
                 static_cast<T*>(p.log_likelihood) + b);
}

// Posteriors back from fronts to the cells of the band; zeros in all others.
template <class T>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const BandedLattice p, const BandedLayout layout, const Cells all,
                   const Divisor by_cells) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= all.count) return;
  const Cell cell = all.locate(i);
  const Utterance<T> utterance(p, layout, cell.batch);
  const Bounds& bounds = utterance.bounds;
  const int64_t t = cell.t - bounds.frame_begin;
  T blank = 0, label = 0;
  const T log_likelihood = static_cast<const T*>(p.log_likelihood)[cell.batch];
  const bool finite = log_likelihood - log_likelihood == 0;
  if (finite && utterance.valid && 0 <= t && t < utterance.frames()) {
    const T* blanks = utterance.workspace + layout.blank;
    const T* labels = utterance.workspace + layout.label;
    const int u = band_of(utterance.starts, t, p.cells).low + int(cell.u);
    const int relative = u - bounds.label_begin;
    const int slot = slot_of(p, by_cells, uint32_t(relative));
    const int64_t from = place(p, int(t), relative, slot);
    if (utterance.corridor.blank(t).contains(u)) blank = blanks[from];
    if (utterance.corridor.label(t).contains(u)) label = labels[from];
    // An occurrence of a constrained label arc is one of both its parts.
    if (p.topology == Topology::kConstrained && utterance.corridor.label(t).contains(u - 1)) {
      blank += labels[slot == 0 ? from + p.cells - 1 : from - 1];
    }
  }
  static_cast<T*>(p.blank_posteriors)[i] = blank;
  static_cast<T*>(p.label_posteriors)[i] = label;
}

template <class T, Plan kPlan>
cudaError_t launch_all(const BandedLattice& p, const SweepLayout& sweep_layout,
                       cudaStream_t stream) {
  const bool with_posteriors = p.blank_posteriors != nullptr;
  const BandedLayout layout =
      banded_layout(p.frames, p.cells, p.labels, p.topology, with_posteriors, sizeof(T));
  const Grid sweeps = sweep_grid<T, kPlan>(p.batch, p.cells, sweep_layout);
  const Divisor by_cells{uint32_t(p.cells)};
  const int64_t threads = round_up(std::max<int64_t>(p.frames, 1) * lanes_of_frame(p.cells), kWarp);
  const Grid arrange{p.batch, int(std::min<int64_t>(threads, kMostArrangeThreads<T>)),
                     shared_corridor_bytes(p.frames)};
  cudaError_t status = launch(arrange_kernel<T>, arrange, stream, p, layout, by_cells);
  if (status != cudaSuccess) return status;
  if (!with_posteriors) {
    status = launch(banded_sweep_kernel<T, Pass::kScore, kPlan>, sweeps, stream, p, sweep_layout,
                    layout);
    if (status != cudaSuccess) return status;
    return launch(banded_score_kernel<T>, Grid{p.batch, sweeps.threads}, stream, p, layout,
                  sweep_layout.stretch_fronts);
  }
  status = launch(banded_sweep_kernel<T, Pass::kTowardsMiddle, kPlan>, sweeps, stream, p,
                  sweep_layout, layout);
  if (status != cudaSuccess) return status;
  status = launch(banded_sweep_kernel<T, Pass::kFromMiddle, kPlan>, sweeps, stream, p, sweep_layout,
                  layout);
  if (status != cudaSuccess) return status;
  const Cells all(p.batch, p.frames, p.cells);
  return launch(collect_kernel<T>, Grid{(all.count + kThreads - 1) / kThreads, kThreads}, stream, p,
                layout, all, by_cells);
}

template <class T>
cudaError_t launch_banded_lattice(const BandedLattice& p, cudaStream_t stream) {
  SweepShape shape;
  const cudaError_t status =
      choose_sweep<T>(p.batch, p.cells, p.blank_posteriors != nullptr, true, shape);
  if (status != cudaSuccess) return status;
  switch (shape.plan) {
    case Plan::kWarp: return launch_all<T, Plan::kWarp>(p, shape.layout, stream);
    case Plan::kStrips: return launch_all<T, Plan::kStrips>(p, shape.layout, stream);
    default: return launch_all<T, Plan::kWorkspace>(p, shape.layout, stream);
  }
}

}  // namespace

cudaError_t banded_lattice(const BandedLattice& p, DType dtype, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return dtype == DType::kF64 ? launch_banded_lattice<double>(p, stream)
                              : launch_banded_lattice<float>(p, stream);
}

int64_t banded_workspace_elements(int64_t frames, int64_t cells, int64_t labels, Topology topology,
                                  bool with_posteriors, DType dtype) {
  const int64_t element_bytes = dtype == DType::kF64 ? sizeof(double) : sizeof(float);
  return banded_layout(frames, cells, labels, topology, with_posteriors, element_bytes).total;
}

}  // namespace jax_rnnt::cuda
