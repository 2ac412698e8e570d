#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace jax_rnnt {

namespace baseline {
const Kernels& kernels();
}
#ifdef JAX_RNNT_X86
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
#endif

namespace {

// Widest first.
std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> found;
#ifdef JAX_RNNT_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi2");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512::kernels());
  }
  if (has_avx2) found.push_back(&avx2::kernels());
#endif
  found.push_back(&baseline::kernels());
  return found;
}

const Kernels* find_kernels(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : supported_kernels()) {
    if (name == kernels->name) return kernels;
    names += std::string(names.empty() ? "" : ", ") + kernels->name;
  }
  throw std::invalid_argument("CPU target '" + name + "' is not available; use one of: " + names);
}

const Kernels* initial_kernels() {
  const char* name = std::getenv("JAX_RNNT_CPU_TARGET");
  return name != nullptr && *name != '\0' ? find_kernels(name) : supported_kernels().front();
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> kernels{initial_kernels()};
  return kernels;
}

}  // namespace

const Kernels& active_kernels() { return *active().load(std::memory_order_relaxed); }

void select_kernels(const std::string& name) { active().store(find_kernels(name)); }

std::vector<std::string> available_targets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : supported_kernels()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace jax_rnnt
