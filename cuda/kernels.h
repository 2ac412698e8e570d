// The CUDA kernels' interface: as the CPU kernels', on a stream. It knows nothing of XLA. Nothing
// here waits for the device or allocates, so that calls can be captured into a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include "../cpp/kernels.h"

namespace jax_rnnt::cuda {

cudaError_t arcs_forward(const ArcsForward& params, DType dtype, cudaStream_t stream);
cudaError_t arcs_backward(const ArcsBackward& params, DType dtype, cudaStream_t stream);
cudaError_t lattice(const Lattice& params, DType dtype, cudaStream_t stream);
cudaError_t banded_lattice(const BandedLattice& params, DType dtype, cudaStream_t stream);
cudaError_t duration_lattice(const DurationLattice& params, DType dtype, cudaStream_t stream);
cudaError_t best_path(const BestPath& params, DType dtype, cudaStream_t stream);
cudaError_t best_duration_path(const BestDurationPath& params, DType dtype, cudaStream_t stream);
cudaError_t factored_forward(const FactoredForward& params, DType dtype, cudaStream_t stream);
cudaError_t factored_backward(const FactoredBackward& params, DType dtype, cudaStream_t stream);
cudaError_t row_sums(const RowSums& params, DType dtype, cudaStream_t stream);

// Elements of float (double) that one utterance needs as workspace, on any device.
int64_t lattice_workspace_elements(int64_t frames, int64_t cells, Topology topology,
                                   bool with_posteriors, DType dtype);
PackedWorkspace packed_workspace(int64_t cells, bool with_posteriors, DType dtype);
int64_t banded_workspace_elements(int64_t frames, int64_t cells, int64_t labels, Topology topology,
                                  bool with_posteriors, DType dtype);
int64_t duration_workspace_elements(int64_t frames, int64_t cells, bool with_posteriors);
int64_t best_path_workspace_elements(int64_t frames, int64_t cells, DType dtype);
int64_t packed_best_path_elements(int64_t cells);  // of an utterance, beside the rows' bytes
int64_t factored_backward_elements(int64_t frames, int64_t cells, int64_t classes);

}  // namespace jax_rnnt::cuda
