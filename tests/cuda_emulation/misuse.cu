// One mistake a run, named on the command line. The emulation, or AddressSanitizer, must end the
// program.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "selftest.h"

namespace {

__global__ void end_before_barrier(int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  __syncthreads();
}

__global__ void barrier_before_end(int n) {
  if (static_cast<int>(threadIdx.x) < n) __syncthreads();
}

__global__ void different_barriers(int n) {
  if (static_cast<int>(threadIdx.x) < n) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lanes_miss_shuffle(int* result) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x != 40) value = __shfl_xor_sync(~0u, value, 1);
  __syncthreads();
  result[threadIdx.x] = value;
}

__global__ void different_collectives(int* result) {
  if (threadIdx.x % 2 == 0) {
    result[threadIdx.x] = __any_sync(~0u, 1);
  } else {
    result[threadIdx.x] = __all_sync(~0u, 1);
  }
}

__global__ void mask_without_own_lane(int* result) { result[threadIdx.x] = __any_sync(1u, 1); }

__global__ void shuffle_from_absent_lane(int* result) {
  if (threadIdx.x % 32 >= 16) return;
  result[threadIdx.x] = __shfl_sync(0xffffu, 1, 20);
}

__global__ void shuffle_with_bad_width(int* result) {
  result[threadIdx.x] = __shfl_sync(~0u, 1, 0, 12);
}

__global__ void write_shared(int index) { dynamic_shared<unsigned char>()[index] = 1; }

__global__ void write_global(int* data, int index) { data[index] = 1; }

__global__ void read_global(int* data, int index) { data[0] = data[index]; }

__global__ void misaligned_load(int* data) {
  data[0] = __ldcs(reinterpret_cast<const int4*>(data + 1)).x;
}

__global__ void misaligned_copy(int* data) { __pipeline_memcpy_async(data + 1, data + 8, 16); }

__global__ void false_assumption(int* data, int n) {
  __builtin_assume(n % 4 == 0);
  data[0] = n;
}

__global__ void uninitialized_shared(int* result) {
  const float value = dynamic_shared<float>()[threadIdx.x];
  __syncthreads();
  result[threadIdx.x] = isnan(value);
}

__global__ void pass_on_in_block(int* result, bool barrier) {
  int* values = dynamic_shared<int>();
  values[threadIdx.x] = 1;
  if (barrier) __syncthreads();
  result[threadIdx.x] = values[(threadIdx.x + 32) % blockDim.x];
}

__global__ void pass_on_in_warp(int* result, bool barrier) {
  __shared__ int values[32];
  values[threadIdx.x] = int(threadIdx.x);
  const int lane = __shfl_xor_sync(~0u, values[threadIdx.x], 1);
  if (barrier) __syncwarp();
  result[32 * blockIdx.x + threadIdx.x] = values[lane];
}

// Whoever reads last, an earlier one has not been waited for.
__global__ void write_what_others_read(int* result, bool barrier) {
  result[1 + blockDim.x * blockIdx.x + threadIdx.x] = result[0];
  if (barrier) __syncthreads();
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x == 0) result[0] = 1;
}

__global__ void write_behind_copy(int* result) {
  int* values = dynamic_shared<int>();
  __pipeline_memcpy_async(values + threadIdx.x, result + threadIdx.x, sizeof(int));
  __pipeline_commit();
  __syncthreads();
  values[(threadIdx.x + 1) % blockDim.x] = 2;
  __pipeline_wait_prior(0);
}

__global__ void count_without_atomics(int* result, bool atomic) {
  if (atomic) {
    atomicAdd(result, 1);
  } else {
    ++*result;
  }
}

template <class... Parameters, class... Arguments>
void with_result(void (*kernel)(int*, Parameters...), Arguments... arguments) {
  const Buffer<int> result(64);
  launch(kernel, 1, 64, 0, result.data(), arguments...);
}

template <class... Parameters, class... Arguments>
void pass_on(void (*kernel)(int*, Parameters...), int blocks, int threads, Arguments... arguments) {
  const Buffer<int> result(std::vector<int>(128));
  const size_t shared = 64 * sizeof(int);
  check_success(launch(kernel, blocks, threads, shared, result.data(), arguments...));
}

const Test kTests[] = {
    {"end before barrier", [] { launch(end_before_barrier, 1, 64, 0, 40); }},
    {"barrier before end", [] { launch(barrier_before_end, 1, 64, 0, 40); }},
    {"different barriers", [] { launch(different_barriers, dim3(2, 3), 64, 0, 32); }},
    {"lanes miss shuffle", [] { with_result(lanes_miss_shuffle); }},
    {"different collectives", [] { with_result(different_collectives); }},
    {"mask without own lane", [] { with_result(mask_without_own_lane); }},
    {"shuffle from absent lane", [] { with_result(shuffle_from_absent_lane); }},
    {"shuffle with bad width", [] { with_result(shuffle_with_bad_width); }},
    {"collective on the host", [] { __syncthreads(); }},
    {"write behind shared", [] { launch(write_shared, 1, 1, 100, 100); }},
    {"write before shared", [] { launch(write_shared, 1, 1, 100, -1); }},
    {"write behind global", [] { with_result(write_global, 64); }},
    {"read before global", [] { with_result(read_global, -1); }},
    {"misaligned load", [] { with_result(misaligned_load); }},
    {"misaligned copy", [] { with_result(misaligned_copy); }},
    {"false assumption", [] { with_result(false_assumption, 6); }},
    {"race in block", [] { pass_on(pass_on_in_block, 1, 64, false); }},
    {"barrier in block", [] { pass_on(pass_on_in_block, 1, 64, true); }},
    {"race in warp", [] { pass_on(pass_on_in_warp, 2, 32, false); }},
    {"barrier in warp", [] { pass_on(pass_on_in_warp, 2, 32, true); }},
    {"race with reader", [] { pass_on(write_what_others_read, 1, 64, false); }},
    {"barrier for reader", [] { pass_on(write_what_others_read, 1, 64, true); }},
    {"race with block", [] { pass_on(write_what_others_read, 2, 16, true); }},
    {"race with copy", [] { pass_on(write_behind_copy, 1, 64); }},
    {"race of counts", [] { pass_on(count_without_atomics, 2, 32, false); }},
    {"atomic counts", [] { pass_on(count_without_atomics, 2, 32, true); }},
};

}  // namespace

int main(int count, char** arguments) {
  const Buffer<int> poisoned(32);
  check_success(launch(uninitialized_shared, 1, 32, 32 * sizeof(float), poisoned.data()));
  for (int i : poisoned.read()) check(i == 1, "uninitialized shared memory is NaN");
  for (const Test& test : kTests) {
    if (count == 2 && std::strcmp(arguments[1], test.name) == 0) test.run();
  }
  std::printf("no mistake was found\n");
}
