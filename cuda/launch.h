// How host code starts kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jax_rnnt::cuda {

struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes = 0;
};

// Nothing to do is not an error here, as it is for CUDA.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Grid grid, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  constexpr int64_t kSharedBytesWithoutAsking = 48 << 10;
  if (grid.shared_bytes > kSharedBytesWithoutAsking) {
    const cudaError_t status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
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
