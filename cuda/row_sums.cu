// Sums of rows by their numbers: a warp to some columns of a sum. It looks through the numbers for
// the rows, and adds these in their order: an atomic addition for each row would read no less, and
// have the last bits of the sum change from run to run.
#include "device.h"
#include "kernels.h"
#include "launch.h"

namespace jax_rnnt::cuda {
namespace {

inline constexpr int kSumThreads = 256;
inline constexpr int kColumnsOfLane = 4;
inline constexpr int kColumnsOfWarp = kWarp * kColumnsOfLane;
// On their way at the same time: numbers of a lane, and rows of the sum.
inline constexpr int kNumbersInFlight = 4, kRowsInFlight = 4;

template <class In>
__global__ void __launch_bounds__(kSumThreads) row_sums_kernel(const RowSums p, int64_t parts) {
  using T = Accumulator<In>;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t index = int64_t(blockIdx.x) * (kSumThreads / kWarp) + int64_t(threadIdx.x) / kWarp;
  const int64_t sum = index / parts, b = sum / p.sums_per_batch;
  if (b >= p.batch) return;
  const int64_t number = sum - b * p.sums_per_batch;
  const int64_t first_column = (index - sum * parts) * kColumnsOfWarp + lane;
  const int32_t* numbers = p.numbers + b * p.rows;
  const In* values = static_cast<const In*>(p.values) + b * p.rows * p.columns + first_column;
  const int columns = int(smaller(p.columns - first_column, int64_t(kColumnsOfWarp)));

  T sums[kColumnsOfLane] = {};
  for (int64_t begin = 0; begin < p.rows; begin += kNumbersInFlight * kWarp) {
    int32_t here[kNumbersInFlight];
#pragma unroll
    for (int i = 0; i < kNumbersInFlight; ++i) {
      const int64_t n = begin + i * kWarp + lane;
      here[i] = n < p.rows ? numbers[n] : -1;
    }
#pragma unroll
    for (int i = 0; i < kNumbersInFlight; ++i) {
      unsigned found = __ballot_sync(kAllLanes, here[i] == number);
      while (found != 0) {
        In rows[kRowsInFlight][kColumnsOfLane];
        const unsigned all = found;
#pragma unroll
        for (int k = 0; k < kRowsInFlight; ++k) {
          if (found == 0) break;
          const int64_t n = begin + i * kWarp + __ffs(int(found)) - 1;
          found &= found - 1;
#pragma unroll
          for (int j = 0; j < kColumnsOfLane; ++j) {
            if (j * kWarp < columns) rows[k][j] = values[n * p.columns + j * kWarp];
          }
        }
        const int added = __popc(all) - __popc(found);
#pragma unroll
        for (int k = 0; k < kRowsInFlight; ++k) {
          if (k >= added) break;
#pragma unroll
          for (int j = 0; j < kColumnsOfLane; ++j) {
            if (j * kWarp < columns) sums[j] += widen(rows[k][j]);
          }
        }
      }
    }
  }
  In* to = static_cast<In*>(p.sums) + sum * p.columns + first_column;
#pragma unroll
  for (int j = 0; j < kColumnsOfLane; ++j) {
    if (j * kWarp < columns) narrow(sums[j], to[j * kWarp]);
  }
}

template <class In>
cudaError_t launch_row_sums(const RowSums& p, cudaStream_t stream) {
  const int64_t parts = (p.columns + kColumnsOfWarp - 1) / kColumnsOfWarp;
  const int64_t warps = p.batch * p.sums_per_batch * parts, per_block = kSumThreads / kWarp;
  const Grid grid{(warps + per_block - 1) / per_block, kSumThreads};
  return launch(row_sums_kernel<In>, grid, stream, p, parts);
}

}  // namespace

cudaError_t row_sums(const RowSums& p, DType dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32: return launch_row_sums<float>(p, stream);
    case DType::kF64: return launch_row_sums<double>(p, stream);
    case DType::kBF16: return launch_row_sums<__nv_bfloat16>(p, stream);
    case DType::kF16: return launch_row_sums<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace jax_rnnt::cuda
