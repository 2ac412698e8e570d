// Small kernels that use what the emulation emulates, except for numbers.cu's. This is plain CUDA:
// nvcc compiles it too, and the program says the same on a GPU.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <math_constants.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "selftest.h"

namespace {

// ------------------------------------------------------------------------- barriers and
// collectives

__device__ float block_sum(float value, float* partial) {
  for (int i = 16; i > 0; i /= 2) value += __shfl_xor_sync(~0u, value, i);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += partial[i];
  __syncthreads();
  return sum;
}

__global__ void __launch_bounds__(128)
    sum_kernel(const float* values, int n, float* sums, double* total, int* blocks) {
  __shared__ float partial[4];
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    sum += __ldg(values + i);
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    atomicAdd(total, sum);
    __threadfence();
    atomicAdd(blocks, 1);
  }
}

void test_sum() {
  constexpr int kBlocks = 7, kSize = 10000;
  std::vector<float> values(kSize);
  for (int i = 0; i < kSize; ++i) values[i] = static_cast<float>(i % 100);
  const Buffer<float> input(values), sums(kBlocks);
  const Buffer<double> total(std::vector<double>{0});
  const Buffer<int> blocks(std::vector<int>{0});
  check_success(launch(sum_kernel, kBlocks, 128, 0, input.data(), kSize, sums.data(), total.data(),
                       blocks.data()));
  check(total.read()[0] == 495000, "sum");
  check(blocks.read()[0] == kBlocks, "every block counted itself");
  double sum = 0;
  for (float x : sums.read()) sum += x;
  check(sum == 495000, "sums of blocks");
}

// Each thread puts down one bit for each thing that is as it should be.
__global__ void collectives_kernel(unsigned* passed) {
  const int thread = threadIdx.x, lane = thread % 32;
  unsigned bits = 0;
  int bit = 0;
  const auto expect = [&](bool condition) { bits |= unsigned(condition) << bit++; };
  expect(__ballot_sync(~0u, lane % 2) == 0xaaaaaaaa);
  expect(__any_sync(~0u, lane == 5) && !__any_sync(~0u, false));
  expect(__all_sync(~0u, true) && !__all_sync(~0u, lane != 5));
  expect(__shfl_sync(~0u, thread, 3) == thread / 32 * 32 + 3);
  expect(__shfl_sync(~0u, lane, 33) == 1);
  expect(__shfl_sync(~0u, lane, 2, 8) == lane / 8 * 8 + 2);
  expect(__shfl_up_sync(~0u, lane, 1) == (lane == 0 ? 0 : lane - 1));
  expect(__shfl_up_sync(~0u, lane, 3, 16) == (lane % 16 < 3 ? lane : lane - 3));
  expect(__shfl_down_sync(~0u, lane, 1) == (lane == 31 ? 31 : lane + 1));
  expect(__shfl_down_sync(~0u, lane, 40u) == lane);
  expect(__shfl_xor_sync(~0u, lane, 16, 16) == (lane < 16 ? lane : lane - 16));
  expect(__shfl_sync(~0u, 1e300 * lane, 7) == 7e300);
  expect(__shfl_sync(~0u, static_cast<long long>(lane) << 40, 7) == 7ll << 40);
  expect(__syncthreads_count(thread < 5) == 5);
  expect(__syncthreads_or(thread == 40) && !__syncthreads_or(0));
  expect(__syncthreads_and(1) && !__syncthreads_and(thread != 40));
  // Halves of a warp, each on its own, then together.
  if (lane < 16) {
    expect(__shfl_xor_sync(0x0000ffff, lane, 8) == (lane ^ 8));
  } else {
    expect(__ballot_sync(0xffff0000, lane > 20) == 0xffe00000);
  }
  __syncwarp();
  expect(__shfl_sync(~0u, lane, 31 - lane) == 31 - lane);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  expect(__reduce_add_sync(~0u, lane - 16) == -16);
  expect(__reduce_max_sync(~0u, -lane) == 0);
  expect(__reduce_min_sync(~0u, unsigned(lane) - 1) == 0);
#else
  bits |= 7u << bit, bit += 3;
#endif
  expect(__activemask() >> lane & 1);
  passed[thread] = ~bits & ((1u << bit) - 1);
  // Lanes that have ended do not take part.
  if (lane >= 20) return;
  if (__ballot_sync(~0u, 1) != 0xfffff) passed[thread] |= 1u << 31;
}

void test_collectives() {
  const Buffer<unsigned> failed(96);
  check_success(launch(collectives_kernel, 1, 96, 0, failed.data()));
  for (unsigned bits : failed.read()) check(bits == 0, "a collective gave a wrong result");
}

__global__ void partial_warp_kernel(int* sums) {
  int sum = static_cast<int>(threadIdx.x);
  const unsigned mask = __ballot_sync(~0u, 1);
  for (int i = 1; i < 8; i *= 2) sum += __shfl_xor_sync(mask, sum, i);
  sums[threadIdx.x] = sum;
}

void test_partial_warp() {
  const Buffer<int> sums(40);
  check_success(launch(partial_warp_kernel, 1, 40, 0, sums.data()));
  check(sums.read()[39] == 32 + 33 + 34 + 35 + 36 + 37 + 38 + 39, "a warp of eight lanes");
}

// -------------------------------------------------------------------------------------- memory

__global__ void transpose_kernel(const float* from, float* to, int n) {
  float* tile = dynamic_shared<float>();
  const int x = blockIdx.x * 32, y = blockIdx.y * 32;
  for (int i = threadIdx.y; i < 32; i += blockDim.y) {
    tile[i * 33 + threadIdx.x] = from[(y + i) * n + x + threadIdx.x];
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += blockDim.y) {
    to[(x + i) * n + y + threadIdx.x] = tile[threadIdx.x * 33 + i];
  }
}

void test_transpose() {
  constexpr int kSize = 96;
  std::vector<float> values(kSize * kSize);
  for (int i = 0; i < kSize * kSize; ++i) values[i] = static_cast<float>(i);
  const Buffer<float> from(values), to(values.size());
  check_success(launch(transpose_kernel, dim3(3, 3), dim3(32, 8), 32 * 33 * sizeof(float),
                       from.data(), to.data(), kSize));
  const std::vector<float> result = to.read();
  for (int i = 0; i < kSize * kSize; ++i) {
    check(result[i] == values[i % kSize * kSize + i / kSize], "transpose");
  }
}

// Sums rows of 128 float4, two rows in flight.
__global__ void pipeline_kernel(const float4* rows, int n, float4* sums) {
  float4* stages = dynamic_shared<float4>();
  const int i = threadIdx.x;
  const auto fetch = [&](int row) {
    if (row < n) {
      __pipeline_memcpy_async(stages + row % 2 * 128 + i, rows + row * 128 + i, sizeof(float4),
                              row == 3 ? 4 : 0);
    }
    __pipeline_commit();
  };
  fetch(0);
  float4 sum = make_float4(0, 0, 0, 0);
  for (int row = 0; row < n; ++row) {
    fetch(row + 1);
#ifdef CUDA_EMULATION
    if (!isnan(stages[row % 2 * 128 + i].x)) sum.x = CUDART_INF_F;  // it is not here yet
#endif
    __pipeline_wait_prior(1);
    __syncthreads();
    const float4 value = stages[row % 2 * 128 + (i + 1) % 128];
    sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
    __syncthreads();
  }
  sums[i] = sum;
}

void test_pipeline() {
  constexpr int kRows = 5;
  std::vector<float4> rows(kRows * 128);
  for (int i = 0; i < kRows * 128; ++i) {
    const float x = static_cast<float>(i);
    rows[i] = make_float4(x, 2 * x, 3 * x, 4 * x);
  }
  const Buffer<float4> input(rows), sums(128);
  check_success(
      launch(pipeline_kernel, 1, 128, 2 * 128 * sizeof(float4), input.data(), kRows, sums.data()));
  const std::vector<float4> result = sums.read();
  for (int i = 0; i < 128; ++i) {
    const float column = static_cast<float>((i + 1) % 128);
    const float expected = 10 * 128 + 5 * column, zero_filled = 3 * 128 + column;
    check(result[i].x == expected && result[i].z == 3 * expected, "pipeline");
    check(result[i].w == 4 * (expected - zero_filled), "pipeline, zero fill");
  }
}

struct Counters {
  int integer;
  unsigned natural;
  unsigned long long wide;
  float single;
  double twice;
  int greatest, least, exchanged, swapped;
};

__global__ void atomics_kernel(Counters* counters) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&counters->integer, -i);
  atomicAdd(&counters->natural, 1u);
  atomicAdd(&counters->wide, 1ull << 32);
  atomicAdd(&counters->single, 1.0f);
  atomicAdd(&counters->twice, 0.5);
  atomicMax(&counters->greatest, i);
  atomicMin(&counters->least, i);
  atomicExch(&counters->exchanged, 17);
  for (int old = 0;;) {
    const int seen = atomicCAS(&counters->swapped, old, old + 2);
    if (seen == old) break;
    old = seen;
  }
}

void test_atomics() {
  const Buffer<Counters> counters(std::vector<Counters>(1));
  check_success(launch(atomics_kernel, 10, 96, 0, counters.data()));
  const Counters c = counters.read()[0];
  check(c.integer == -960 * 959 / 2 && c.natural == 960 && c.wide == 960ull << 32, "atomicAdd");
  check(c.single == 960 && c.twice == 480, "atomicAdd of floats");
  check(c.greatest == 959 && c.least == 0, "atomicMax, atomicMin");
  check(c.exchanged == 17 && c.swapped == 1920, "atomicExch, atomicCAS");
}

__global__ void streaming_kernel(const int4* from, int4* to, double2* pairs) {
  const int i = threadIdx.x;
  int4 value = __ldcs(from + i);
  value.x += __ldcg(&from[i].y);
  __stcs(to + i, value);
  __stcg(pairs + i, make_double2(value.x, value.w));
  __stwt(&to[i].z, 5);
}

void test_streaming() {
  const Buffer<int4> from(std::vector<int4>(32, make_int4(1, 2, 3, 4))), to(32);
  const Buffer<double2> pairs(32);
  check_success(launch(streaming_kernel, 1, 32, 0, from.data(), to.data(), pairs.data()));
  const int4 value = to.read()[31];
  check(value.x == 3 && value.y == 2 && value.z == 5 && value.w == 4, "loads and stores");
  check(pairs.read()[31].x == 3 && pairs.read()[31].y == 4, "stores of double2");
}

// -------------------------------------------------------------------------------------- launches

__global__ void nothing_kernel(float) {}
__global__ void shared_kernel(int last) { dynamic_shared<unsigned char>()[last] = 1; }

void test_launches() {
  const auto refused = [](dim3 grid, dim3 block, size_t shared, cudaError_t expected) {
    check(launch(nothing_kernel, grid, block, shared, 1) == expected, "launch refused");
    check(cudaPeekAtLastError() == expected && cudaGetLastError() == expected, "last error");
    check(cudaGetLastError() == cudaSuccess, "last error is reset");
  };
  refused(0, 32, 0, cudaErrorInvalidConfiguration);
  refused(1, 0, 0, cudaErrorInvalidConfiguration);
  refused(1, 1025, 0, cudaErrorInvalidConfiguration);
  refused(1, dim3(32, 33), 0, cudaErrorInvalidConfiguration);
  refused(1, dim3(1, 1, 65), 0, cudaErrorInvalidConfiguration);
  refused(dim3(1, 65536), 1, 0, cudaErrorInvalidConfiguration);
  refused(dim3(1, 1, 65536), 1, 0, cudaErrorInvalidConfiguration);
  refused(1, 1, 48 * 1024 + 1, cudaErrorInvalidValue);
  check_success(launch(nothing_kernel, dim3(1, 65535), dim3(1, 2, 3), 48 * 1024, 1));

  int limit = 0;
  check_success(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  const auto allow = [](int size) {
    return cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
  };
  check(launch(shared_kernel, 1, 1, limit, limit - 1) == cudaErrorInvalidValue, "no opt-in");
  check_success(allow(limit));
  check_success(launch(shared_kernel, 1, 1, limit, limit - 1));
  cudaGetLastError();
  check(allow(limit + 1) == cudaErrorInvalidValue, "more shared memory than the device has");
  cudaGetLastError();
  std::printf("   %d bytes of shared memory\n", limit);
}

// ------------------------------------------------------------------------------------- scheduling

__global__ void order_kernel(int* count, int* order) {
  order[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(count, 1);
}

void test_order() {
  const Buffer<int> count(std::vector<int>{0}), order(8 * 64);
  check_success(launch(order_kernel, 8, 64, 0, count.data(), order.data()));
  const std::vector<int> found = order.read();
  const bool sorted = std::is_sorted(found.begin(), found.end());
  std::printf("   threads run %s\n", sorted ? "in order" : "out of order");
}

__global__ void barriers_kernel(int n, int* result) {
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += __syncthreads_or(i == static_cast<int>(threadIdx.x));
  result[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

void test_speed() {
  const Buffer<int> result(10 * 128);
  check_success(launch(barriers_kernel, 1, 128, 0, 1, result.data()));
  const auto begin = std::chrono::steady_clock::now();
  check_success(launch(barriers_kernel, 10, 128, 0, 100, result.data()));
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
  check(result.read()[5] == 100, "barriers");
  std::printf("   %.0f us a block of 128 threads with 100 barriers\n", time.count() / 10);
}

}  // namespace

int main() {
  run_all({
      {"sum", test_sum},
      {"collectives", test_collectives},
      {"partial warp", test_partial_warp},
      {"transpose", test_transpose},
      {"pipeline", test_pipeline},
      {"atomics", test_atomics},
      {"streaming", test_streaming},
      {"launches", test_launches},
      {"order", test_order},
      {"speed", test_speed},
  });
}
