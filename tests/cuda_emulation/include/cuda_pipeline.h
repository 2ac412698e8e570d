// Asynchronous copies to shared memory. Each is made at the last moment that CUDA allows, when its
// thread waits for it; until then the destination holds 0xFF bytes.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zero_fill = 0) {
  emulation::copy_async(to, from, size, zero_fill);
}
inline void __pipeline_commit() { emulation::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups_left) {
  emulation::wait_for_copies(static_cast<int>(groups_left));
}
