// XLA's header, plus: handlers that ask for a CUDA stream can be called by XLA's CPU runtime, which
// has none to give. They get the null stream.
#pragma once

#include_next "xla/ffi/api/ffi.h"

#include "cuda_runtime.h"

template <>
struct xla::ffi::CtxDecoding<xla::ffi::PlatformStream<cudaStream_t>> {
  using Type = cudaStream_t;

  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return Type{nullptr};
  }
};
