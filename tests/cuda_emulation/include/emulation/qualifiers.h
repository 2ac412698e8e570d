// CUDA's function and variable qualifiers, for a C++ compiler that knows none of them.
#pragma once

// libstdc++ writes __attribute__((__noinline__)) here; it must be read before that name is a macro.
#include <memory>

// Device code may test this where it cannot be the same for nvcc and for the emulation.
#define CUDA_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// An OS thread runs one block at a time, so its copy of the variable is the block's. Unlike dynamic
// shared memory it is neither poisoned nor surrounded by red zones.
#define __shared__ static thread_local

// An assumption that does not hold is an error here, where nvcc would miscompile.
#define __builtin_assume(condition) \
  ((condition) ? void() : ::emulation::misuse("__builtin_assume(%s) is false", #condition))
