// The transducer recursion on whole planes: two blocks to an utterance, one for each direction.
#include <algorithm>

#include "kernels.h"
#include "launch.h"
#include "sweep.h"

namespace jax_rnnt::cuda {
namespace {

// Doubles and generic addresses take more registers. Tiles in the workspace are slow in any case.
template <class T, bool kShared>
inline constexpr int kMostThreads = sizeof(T) == 4 && kShared ? 1024 : 512;

// Zeros where no tile is drained: outside of the bounds, or everywhere. The two blocks of an
// utterance take every other frame.
template <class T>
__device__ __forceinline__ void clear_posteriors(const Lattice& p, int64_t b, bool inside_too,
                                                 bool odd_frames) {
  const Bounds bounds = p.bounds[b];
  T* blank = static_cast<T*>(p.blank_posteriors) + b * p.frames * p.cells;
  T* label = static_cast<T*>(p.label_posteriors) + b * p.frames * p.cells;
  for (int64_t t = odd_frames; t < p.frames; t += 2) {
    const bool frame_inside = !inside_too && bounds.frame_begin <= t && t < bounds.frame_end;
    for (int64_t u = threadIdx.x; u < p.cells; u += blockDim.x) {
      if (frame_inside && bounds.label_begin <= u && u <= bounds.label_end) continue;
      blank[t * p.cells + u] = T(0);
      label[t * p.cells + u] = T(0);
    }
  }
}

template <class T, Pass kPass, bool kShared>
__global__ void __launch_bounds__(kMostThreads<T, kShared>)
    sweep_kernel(const Lattice p, const SweepLayout layout, const WorkspaceLayout workspace) {
  const int64_t b = blockIdx.x / 2;
  const bool forward = blockIdx.x % 2 == 0;
  const Trellis<T> trellis = trellis_of<T>(p, b);
  T* log_likelihood = static_cast<T*>(p.log_likelihood) + b;
  bool finite = trellis.has_paths();
  if (finite) {
    const Store<T> store = store_of<T>(p, workspace, b);
    T* memory = reinterpret_cast<T*>(shared_memory());
    if constexpr (!kShared) {
      memory = static_cast<T*>(p.workspace) + b * p.workspace_elements + workspace.tiles +
               (forward ? 0 : workspace.tile_elements);
    }
    finite = forward ? sweep<true, kPass, kShared>(trellis, layout, store, memory, log_likelihood)
                     : sweep<false, kPass, kShared>(trellis, layout, store, memory, log_likelihood);
  } else if (kPass == Pass::kFromMiddle && forward && threadIdx.x == 0) {
    *log_likelihood = trellis.trivial_log_likelihood;
  }
  if constexpr (kPass == Pass::kFromMiddle) clear_posteriors<T>(p, b, !finite, forward);
}

// Where only the log-likelihood is wanted, it is the sum over the nodes on which the sweeps met.
template <class T>
__global__ void __launch_bounds__(kMostThreads<T, true>)
    score_kernel(const Lattice p, const WorkspaceLayout workspace, int tile_fronts) {
  const int64_t b = blockIdx.x;
  const Trellis<T> trellis = trellis_of<T>(p, b);
  T log_likelihood = trellis.trivial_log_likelihood;
  if (trellis.has_paths()) {
    const Store<T> store = store_of<T>(p, workspace, b);
    const int middle = middle_tile(trellis.fronts, tile_fronts);
    const Extended<T> sum = sum_of_front(store.alpha(0), store.beta(0), trellis.slots);
    log_likelihood =
        log_likelihood_of(sum, store.alpha_offsets[middle] + store.beta_offsets[middle]);
  }
  if (threadIdx.x == 0) static_cast<T*>(p.log_likelihood)[b] = log_likelihood;
}

// The largest tile that fits; none, where even the smallest does not.
template <class T>
cudaError_t choose_layout(int64_t cells, bool with_posteriors, SweepLayout& layout, bool& shared) {
  int device = 0, most_bytes = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (status != cudaSuccess) return status;
  constexpr int kStaticBytes = 2048;  // of the reductions
  for (int fronts = kMostTileFronts; fronts >= kFewestTileFronts; fronts /= 2) {
    layout = sweep_layout(cells, fronts, with_posteriors);
    shared = layout.total * int64_t(sizeof(T)) + kStaticBytes <= most_bytes;
    if (shared) return cudaSuccess;
  }
  layout = sweep_layout(cells, kMostTileFronts, with_posteriors);
  return cudaSuccess;
}

template <class T, bool kShared>
cudaError_t launch_sweeps(const Lattice& p, const SweepLayout& layout, cudaStream_t stream) {
  const bool with_posteriors = p.blank_posteriors != nullptr;
  const WorkspaceLayout workspace = workspace_layout(
      p.frames, p.cells, p.topology == Topology::kRegular, with_posteriors, sizeof(T));
  const int threads = int(std::min<int64_t>(round_up(p.cells, kWarp), kMostThreads<T, kShared>));
  const Grid sweeps{2 * p.batch, threads, kShared ? layout.total * int64_t(sizeof(T)) : 0};
  if (!with_posteriors) {
    const cudaError_t status =
        launch(sweep_kernel<T, Pass::kScore, kShared>, sweeps, stream, p, layout, workspace);
    if (status != cudaSuccess) return status;
    return launch(score_kernel<T>, Grid{p.batch, threads}, stream, p, workspace, layout.fronts);
  }
  const cudaError_t status =
      launch(sweep_kernel<T, Pass::kTowardsMiddle, kShared>, sweeps, stream, p, layout, workspace);
  if (status != cudaSuccess) return status;
  return launch(sweep_kernel<T, Pass::kFromMiddle, kShared>, sweeps, stream, p, layout, workspace);
}

template <class T>
cudaError_t launch_lattice(const Lattice& p, cudaStream_t stream) {
  SweepLayout layout;
  bool shared;
  const cudaError_t status =
      choose_layout<T>(p.cells, p.blank_posteriors != nullptr, layout, shared);
  if (status != cudaSuccess) return status;
  return shared ? launch_sweeps<T, true>(p, layout, stream)
                : launch_sweeps<T, false>(p, layout, stream);
}

}  // namespace

cudaError_t lattice(const Lattice& p, DType dtype, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return dtype == DType::kF64 ? launch_lattice<double>(p, stream)
                              : launch_lattice<float>(p, stream);
}

int64_t lattice_workspace_elements(int64_t frames, int64_t cells, Topology topology,
                                   bool with_posteriors, DType dtype) {
  const int64_t element_bytes = dtype == DType::kF64 ? sizeof(double) : sizeof(float);
  return workspace_layout(frames, cells, topology == Topology::kRegular, with_posteriors,
                          element_bytes)
      .total;
}

}  // namespace jax_rnnt::cuda
