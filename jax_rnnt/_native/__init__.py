"""The native kernels as JAX primitives. Everything that depends on XLA FFI or JAX's version is here."""
