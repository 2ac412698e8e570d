#include "../cpp/ffi_handlers.h"

#include <string>

#include "kernels.h"

namespace jax_rnnt {
namespace {

using Stream = ffi::PlatformStream<cudaStream_t>;

ffi::Error error_of(cudaError_t status) {
  if (status == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("jax_rnnt: CUDA: ") + cudaGetErrorString(status));
}

constexpr auto arcs_fwd = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  ArcsForward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  return error_of(cuda::arcs_forward(p, dtype, stream));
};

constexpr auto arcs_bwd = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  ArcsBackward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  return error_of(cuda::arcs_backward(p, dtype, stream));
};

constexpr auto lattice = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  Lattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p, cuda::lattice_workspace_elements(p.frames, p.cells, p.topology,
                                                          p.blank_posteriors != nullptr, dtype)));
  return error_of(cuda::lattice(p, dtype, stream));
};

constexpr auto packed_lattice = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  Lattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(
      divide_workspace(p, cuda::packed_workspace(p.cells, p.blank_posteriors != nullptr, dtype)));
  return error_of(cuda::lattice(p, dtype, stream));
};

constexpr auto banded_lattice = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  BandedLattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p, cuda::banded_workspace_elements(p.frames, p.cells, p.labels, p.topology,
                                                         p.blank_posteriors != nullptr, dtype)));
  return error_of(cuda::banded_lattice(p, dtype, stream));
};

constexpr auto duration_lattice = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  DurationLattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(check_workspace(
      p, cuda::duration_workspace_elements(p.frames, p.cells, p.blank_posteriors != nullptr)));
  return error_of(cuda::duration_lattice(p, dtype, stream));
};

constexpr auto best_path = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  BestPath p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(check_workspace(
      p.band, cuda::best_path_workspace_elements(p.band.frames, p.band.cells, dtype)));
  return error_of(cuda::best_path(p, dtype, stream));
};

constexpr auto packed_best_path = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  BestPath p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode_packed(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(divide_workspace(p, cuda::packed_best_path_elements(p.band.cells),
                                            dtype == DType::kF64 ? 8 : 4));
  return error_of(cuda::best_path(p, dtype, stream));
};

constexpr auto best_duration_path = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  BestDurationPath p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  return error_of(cuda::best_duration_path(p, dtype, stream));
};

constexpr auto factored_fwd = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  FactoredForward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  return error_of(cuda::factored_forward(p, dtype, stream));
};

constexpr auto factored_bwd = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  FactoredBackward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p, cuda::factored_backward_elements(p.frames, p.cells, p.classes)));
  return error_of(cuda::factored_backward(p, dtype, stream));
};

constexpr auto row_sums = [](cudaStream_t stream, auto... operands) -> ffi::Error {
  RowSums p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  return error_of(cuda::row_sums(p, dtype, stream));
};

// Launches depend on shapes only, so that XLA may record them once into a CUDA graph.
constexpr auto kTraits = {ffi::Traits::kCmdBufferCompatible};

#define JAX_RNNT_DEFINE_HANDLER(target, function) \
  XLA_FFI_DEFINE_HANDLER(target##_handler, function, target##_signature<Stream>(), kTraits);
JAX_RNNT_TARGETS(JAX_RNNT_DEFINE_HANDLER)
#undef JAX_RNNT_DEFINE_HANDLER

}  // namespace

std::vector<NamedHandler> handlers() {
#define JAX_RNNT_NAMED_HANDLER(target, function) {"jax_rnnt_" #target, target##_handler},
  return {JAX_RNNT_TARGETS(JAX_RNNT_NAMED_HANDLER)};
#undef JAX_RNNT_NAMED_HANDLER
}

}  // namespace jax_rnnt
