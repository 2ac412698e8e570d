// XLA FFI entry points of the CPU kernels.
#pragma once

#include "xla/ffi/api/ffi.h"

XLA_FFI_DECLARE_HANDLER_SYMBOL(jax_rnnt_arcs_fwd_cpu);
XLA_FFI_DECLARE_HANDLER_SYMBOL(jax_rnnt_arcs_bwd_cpu);
XLA_FFI_DECLARE_HANDLER_SYMBOL(jax_rnnt_lattice_cpu);
XLA_FFI_DECLARE_HANDLER_SYMBOL(jax_rnnt_lattice_score_cpu);
