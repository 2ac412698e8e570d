// Loops that stream memory, or multiply and add, as fast as a core does, for floor.py; the sizes
// are in bytes.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {
constexpr size_t kVector = 64;
constexpr size_t kAtOnce = 8;  // independent, so that loads do not wait for arithmetic
using Vector = int64_t __attribute__((vector_size(kVector), aligned(1), may_alias));
using Aligned = int64_t __attribute__((vector_size(kVector), may_alias));
using Floats = float __attribute__((vector_size(kVector)));
}  // namespace

extern "C" {

// In registers: 2 * 16 * kAtOnce operations a step.
float multiply_add(size_t steps) {
  Floats sums[kAtOnce];
  for (size_t j = 0; j < kAtOnce; ++j) sums[j] = Floats{} + float(j);
  for (size_t i = 0; i < steps; ++i)
    for (Floats& sum : sums) sum = sum * 0.5f + 1.0f;
  float total = 0;
  for (const Floats& sum : sums)
    for (size_t j = 0; j < kVector / sizeof(float); ++j) total += sum[j];
  return total;
}

int64_t stream_read(const char* from, size_t size) {
  Vector sums[kAtOnce] = {};
  size_t i = 0;
  for (; i + kAtOnce * kVector <= size; i += kAtOnce * kVector)
    for (size_t j = 0; j < kAtOnce; ++j)
      sums[j] ^= *reinterpret_cast<const Vector*>(from + i + j * kVector);
  int64_t sum = 0;
  for (; i < size; ++i) sum ^= from[i];
  for (const Vector& x : sums)
    for (size_t j = 0; j < kVector / sizeof(int64_t); ++j) sum ^= x[j];
  return sum;
}

// Stores that pass the cache by: a plain store reads the line that it is about to overwrite.
void stream_copy(const char* from, char* to, size_t size) {
  size_t i = 0;
  while (i < size && reinterpret_cast<uintptr_t>(to + i) % kVector) to[i] = from[i], ++i;
  for (; i + kVector <= size; i += kVector) {
    const Vector x = *reinterpret_cast<const Vector*>(from + i);
#if defined(__clang__)
    __builtin_nontemporal_store(x, reinterpret_cast<Aligned*>(to + i));
#elif defined(__AVX512F__)
    __builtin_ia32_movntdq512(reinterpret_cast<long long __attribute__((vector_size(64)))*>(to + i),
                              (long long __attribute__((vector_size(64))))x);
#elif defined(__AVX__)
    using Half = long long __attribute__((vector_size(32)));
    Half halves[2];
    std::memcpy(halves, &x, sizeof(x));
    __builtin_ia32_movntdq256(reinterpret_cast<Half*>(to + i), halves[0]);
    __builtin_ia32_movntdq256(reinterpret_cast<Half*>(to + i + 32), halves[1]);
#else
    std::memcpy(to + i, &x, sizeof(x));
#endif
  }
  for (; i < size; ++i) to[i] = from[i];
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
}
