// The Python module jax_rnnt._native._cuda. Importing it does not touch CUDA.
#include "python_functions.h"

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of jax_rnnt, as XLA FFI handlers.";
  jax_rnnt::cuda::define_functions(m);
}
