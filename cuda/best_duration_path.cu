// The best path through arcs with durations: a block to an utterance, front after front as in
// duration_lattice.cu, a thread to a label position.
#include <algorithm>

#include "../cpp/best_duration_path.h"
#include "extended.h"
#include "kernels.h"
#include "launch.h"

namespace jax_rnnt::cuda {
namespace {

inline constexpr int64_t kMostThreads = 512;

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    best_duration_path_kernel(const BestDurationPath p) {
  const int64_t b = blockIdx.x, labels = p.lattice.cells - 1;
  for (int64_t i = b * labels + threadIdx.x; i < (b + 1) * labels; i += blockDim.x) {
    p.label_frames[i] = p.label_durations[i] = -1;
  }
  T& score = static_cast<T*>(p.lattice.log_likelihood)[b];
  const Bounds bounds = p.lattice.bounds[b];
  const bool valid = bounds.valid(p.lattice.frames, labels);
  if (!valid || bounds.frame_begin == bounds.frame_end) {
    const bool without_labels = bounds.label_begin == bounds.label_end;
    if (threadIdx.x == 0) {
      score = !valid ? not_a_number<T>() : without_labels ? T(0) : -Constants<T>::kInfinity;
    }
    return;
  }
  const auto of = UtteranceWithDurations<T>::of(p, b);
  bool bad = false;
  for (int64_t n = 0; n < of.frames + of.labels; ++n) {
    for (int64_t u = threadIdx.x; u <= of.labels; u += blockDim.x) {
      const int64_t t = n - u;
      if (0 <= t && t < of.frames) of.visit(t, u, bad);
    }
    __syncthreads();
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x > 0) return;
  const auto end = of.arrival_at(of.frames, of.labels, bad);
  score = bad ? not_a_number<T>() : end.score;
  if (!bad) of.trace_back(end);
}

template <class T>
cudaError_t launch_best_duration_path(const BestDurationPath& p, cudaStream_t stream) {
  const int64_t threads = (p.lattice.cells + kWarp - 1) / kWarp * kWarp;
  const Grid grid{p.lattice.batch, int(std::min(threads, kMostThreads))};
  return launch(best_duration_path_kernel<T>, grid, stream, p);
}

}  // namespace

cudaError_t best_duration_path(const BestDurationPath& p, DType dtype, cudaStream_t stream) {
  return dtype == DType::kF64 ? launch_best_duration_path<double>(p, stream)
                              : launch_best_duration_path<float>(p, stream);
}

}  // namespace jax_rnnt::cuda
