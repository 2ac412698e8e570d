// How host code starts kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "lattice_layout.h"

namespace jax_rnnt::cuda {

struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes = 0;
};

// Of a block on the current device, beside the static ones.
inline cudaError_t most_shared_bytes(int64_t& bytes) {
  int device = 0, most_bytes = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  bytes = most_bytes - kStaticSharedBytes;
  return status;
}

// Nothing to do is not an error here, as it is for CUDA.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Grid grid, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  constexpr int64_t kSharedBytesWithoutAsking = 48 << 10;
  if (grid.shared_bytes + kStaticSharedBytes > kSharedBytesWithoutAsking) {
    // Always for the same size, all that may be asked for: with that of this launch, one thread
    // could take back what another one has asked for and not yet launched with.
    int64_t most_bytes;
    cudaError_t status = most_shared_bytes(most_bytes);
    if (status != cudaSuccess) return status;
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(most_bytes));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace jax_rnnt::cuda
