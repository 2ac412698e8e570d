"""The native kernels as JAX primitives. All that depends on XLA FFI is here."""
