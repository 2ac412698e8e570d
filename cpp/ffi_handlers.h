// XLA FFI handlers of one platform's kernels.
#pragma once

#include <vector>

#include "ffi_calls.h"

namespace jax_rnnt {

std::vector<NamedHandler> handlers();

}  // namespace jax_rnnt
