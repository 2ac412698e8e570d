// XLA FFI handlers of one platform's kernels.
#pragma once

#include <vector>

#include "banded_calls.h"
#include "best_path_calls.h"
#include "duration_calls.h"
#include "factored_calls.h"
#include "ffi_calls.h"
#include "packed_calls.h"
#include "row_sums_calls.h"

// M(target, function) for each FFI target of the library: every platform has all of them, as
// jax_rnnt_<target>. It is called with <target>_signature and runs the platform's <function>.
#define JAX_RNNT_TARGETS(M)                   \
  M(arcs_fwd, arcs_fwd)                       \
  M(arcs_bwd, arcs_bwd)                       \
  M(lattice, lattice)                         \
  M(lattice_score, lattice)                   \
  M(packed_lattice, packed_lattice)           \
  M(packed_lattice_score, packed_lattice)     \
  M(banded_lattice, banded_lattice)           \
  M(banded_lattice_score, banded_lattice)     \
  M(duration_lattice, duration_lattice)       \
  M(duration_lattice_score, duration_lattice) \
  M(best_path, best_path)                     \
  M(packed_best_path, packed_best_path)       \
  M(best_duration_path, best_duration_path)   \
  M(factored_fwd, factored_fwd)               \
  M(factored_bwd, factored_bwd)               \
  M(smoothed_fwd, factored_fwd)               \
  M(smoothed_bwd, factored_bwd)               \
  M(row_sums, row_sums)

namespace jax_rnnt {

std::vector<NamedHandler> handlers();

}  // namespace jax_rnnt
