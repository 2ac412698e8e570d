// The transducer recursion on planes and packed rows: two blocks to an utterance, one for each
// direction.
#include "kernels.h"
#include "sweep_launch.h"

namespace jax_rnnt::cuda {
namespace {

// Zeros in the elements [begin, end) of both planes of posteriors of an utterance.
template <class T>
__device__ __forceinline__ void clear(const Lattice& p, int64_t b, int64_t begin, int64_t end,
                                      int thread, int threads) {
  T* blank = static_cast<T*>(p.blank_posteriors) + b * p.frames * p.cells;
  T* label = static_cast<T*>(p.label_posteriors) + b * p.frames * p.cells;
#pragma unroll 1
  for (int64_t i = begin + thread; i < end; i += threads) blank[i] = label[i] = T(0);
}

// Zeros where no tile is drained: outside of the bounds, which are valid and have a frame, or
// everywhere. The two blocks of an utterance share the work, which a whole lattice has none of.
// (Packed rows are zero from the start.)
template <class T>
__device__ __forceinline__ void clear_posteriors(const Lattice& p, int64_t b, bool inside_too,
                                                 bool second_block) {
  const int threads = int(blockDim.x);
  const int thread = int(threadIdx.x) + (second_block ? threads : 0);
  const int64_t plane = p.frames * p.cells;
  // Asked for before anything else, it is not kept in a register while a block sweeps.
  if (inside_too) {
    if (!p.packed.used) clear<T>(p, b, 0, plane, thread, 2 * threads);
    return;
  }
  if (p.packed.used) return;
  // From the last cell inside one frame to the first inside the next, there is a gap of as many
  // cells each time.
  const Bounds bounds = p.bounds[b];
  const int64_t behind = bounds.label_end + 1, gap = p.cells - behind + bounds.label_begin;
  const int64_t last_frame = bounds.frame_end - 1;
  clear<T>(p, b, 0, bounds.frame_begin * p.cells + bounds.label_begin, thread, 2 * threads);
  clear<T>(p, b, last_frame * p.cells + behind, plane, thread, 2 * threads);
  if (gap == 0) return;
  for (int64_t t = bounds.frame_begin + thread / kWarp; t < last_frame; t += 2 * threads / kWarp) {
    const int64_t begin = t * p.cells + behind;
    clear<T>(p, b, begin, begin + gap, thread % kWarp, kWarp);
  }
}

// Where an utterance keeps what; in packed rows, where there is one layout for each.
template <class T>
__device__ __forceinline__ WorkspaceLayout workspace_of(const Lattice& p,
                                                        const WorkspaceLayout& of_all, int64_t b) {
  if (!p.packed.used || !p.valid(b)) return of_all;
  const Bounds bounds = p.bounds[b];
  return workspace_layout(bounds.frame_end, p.stride(bounds), p.topology == Topology::kRegular,
                          p.blank_posteriors != nullptr, sizeof(T), p.cells);
}

template <class T, Pass kPass, Plan kPlan>
__global__ void __launch_bounds__(kMostSweepThreads<T, kPlan>, 1)
    sweep_kernel(const Lattice p, const SweepLayout layout, const WorkspaceLayout workspace) {
  const int64_t b = blockIdx.x / 2;
  const bool forward = blockIdx.x % 2 == 0;
  const bool finite = sweep_of_block<kPass, kPlan>(
      trellis_of<T>(p, b), layout, workspace_of<T>(p, workspace, b),
      static_cast<T*>(p.workspace) + p.first_workspace_element(b), p.stride(p.bounds[b]), forward,
      static_cast<T*>(p.log_likelihood) + b);
  if constexpr (kPass == Pass::kFromMiddle) {
    clear_posteriors<T>(p, b, !finite, forward);
  }
}

// One block to a multiprocessor will do: asked for more, the compiler spills registers.
template <class T>
__global__ void __launch_bounds__(kMostSweepThreads<T, Plan::kSlots>, 1)
    score_kernel(const Lattice p, const WorkspaceLayout workspace, int stretch_fronts) {
  const int64_t b = blockIdx.x;
  score_of_block(trellis_of<T>(p, b), workspace_of<T>(p, workspace, b),
                 static_cast<T*>(p.workspace) + p.first_workspace_element(b), p.stride(p.bounds[b]),
                 stretch_fronts, static_cast<T*>(p.log_likelihood) + b);
}

template <class T, Plan kPlan>
cudaError_t launch_sweeps(const Lattice& p, const SweepLayout& layout, cudaStream_t stream) {
  const bool with_posteriors = p.blank_posteriors != nullptr;
  const WorkspaceLayout workspace = workspace_layout(
      p.frames, p.cells, p.topology == Topology::kRegular, with_posteriors, sizeof(T), p.cells);
  const Grid sweeps = sweep_grid<T, kPlan>(p.batch, p.cells, layout);
  if (!with_posteriors) {
    const cudaError_t status =
        launch(sweep_kernel<T, Pass::kScore, kPlan>, sweeps, stream, p, layout, workspace);
    if (status != cudaSuccess) return status;
    return launch(score_kernel<T>, Grid{p.batch, sweeps.threads}, stream, p, workspace,
                  layout.stretch_fronts);
  }
  const cudaError_t status =
      launch(sweep_kernel<T, Pass::kTowardsMiddle, kPlan>, sweeps, stream, p, layout, workspace);
  if (status != cudaSuccess) return status;
  return launch(sweep_kernel<T, Pass::kFromMiddle, kPlan>, sweeps, stream, p, layout, workspace);
}

template <class T>
cudaError_t launch_lattice(const Lattice& p, cudaStream_t stream) {
  SweepShape shape;
  const cudaError_t status =
      choose_sweep<T>(p.batch, p.cells, p.blank_posteriors != nullptr, false, shape);
  if (status != cudaSuccess) return status;
  switch (shape.plan) {
    case Plan::kSlots: return launch_sweeps<T, Plan::kSlots>(p, shape.layout, stream);
    case Plan::kStrips: return launch_sweeps<T, Plan::kStrips>(p, shape.layout, stream);
    default: return launch_sweeps<T, Plan::kWorkspace>(p, shape.layout, stream);
  }
}

}  // namespace

cudaError_t lattice(const Lattice& p, DType dtype, cudaStream_t stream) {
  const PackedRows& packed = p.packed;
  if (packed.used && p.blank_posteriors != nullptr && packed.planes * packed.rows > 0) {
    const size_t bytes =
        packed.planes * packed.rows * (dtype == DType::kF64 ? sizeof(double) : sizeof(float));
    for (void* plane : {p.blank_posteriors, p.label_posteriors}) {
      const cudaError_t status = cudaMemsetAsync(plane, 0, bytes, stream);
      if (status != cudaSuccess) return status;
    }
  }
  if (p.batch == 0) return cudaSuccess;
  return dtype == DType::kF64 ? launch_lattice<double>(p, stream)
                              : launch_lattice<float>(p, stream);
}

int64_t lattice_workspace_elements(int64_t frames, int64_t cells, Topology topology,
                                   bool with_posteriors, DType dtype) {
  const int64_t element_bytes = dtype == DType::kF64 ? sizeof(double) : sizeof(float);
  return workspace_layout(frames, cells, topology == Topology::kRegular, with_posteriors,
                          element_bytes, cells)
      .total;
}

PackedWorkspace packed_workspace(int64_t cells, bool with_posteriors, DType dtype) {
  return packed_workspace(cells, with_posteriors,
                          dtype == DType::kF64 ? int64_t(sizeof(double)) : int64_t(sizeof(float)));
}

}  // namespace jax_rnnt::cuda
