// Chooses the kernels for the processor that runs this.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace jax_rnnt {

// The widest instruction set that this build and this processor have, unless `select_kernels` or
// the environment variable JAX_RNNT_CPU_TARGET says otherwise. Throws std::invalid_argument for a
// name that is not one of `available_targets`.
const Kernels& active_kernels();
void select_kernels(const std::string& name);
std::vector<std::string> available_targets();

}  // namespace jax_rnnt
