#include "../cpp/ffi_handlers.h"

#include <string>

#include "../cpp/banded_calls.h"
#include "../cpp/best_path_calls.h"
#include "../cpp/duration_calls.h"
#include "../cpp/factored_calls.h"
#include "../cpp/packed_calls.h"
#include "../cpp/row_sums_calls.h"
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

XLA_FFI_DEFINE_HANDLER(arcs_fwd_handler, arcs_fwd, arcs_fwd_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(arcs_bwd_handler, arcs_bwd, arcs_bwd_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(lattice_handler, lattice, lattice_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(lattice_score_handler, lattice, lattice_score_signature<Stream>(), kTraits);

XLA_FFI_DEFINE_HANDLER(packed_lattice_handler, packed_lattice, packed_lattice_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(packed_lattice_score_handler, packed_lattice,
                       packed_lattice_score_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(banded_lattice_handler, banded_lattice, banded_lattice_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(banded_lattice_score_handler, banded_lattice,
                       banded_lattice_score_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(duration_lattice_handler, duration_lattice,
                       duration_lattice_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(duration_lattice_score_handler, duration_lattice,
                       duration_lattice_score_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(best_path_handler, best_path, best_path_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(packed_best_path_handler, packed_best_path, best_path_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(best_duration_path_handler, best_duration_path,
                       best_duration_path_signature<Stream>(), kTraits);
XLA_FFI_DEFINE_HANDLER(factored_fwd_handler, factored_fwd, factored_fwd_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(factored_bwd_handler, factored_bwd, factored_bwd_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(smoothed_fwd_handler, factored_fwd, smoothed_fwd_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(smoothed_bwd_handler, factored_bwd, smoothed_bwd_signature<Stream>(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(row_sums_handler, row_sums, row_sums_signature<Stream>(), kTraits);

}  // namespace

std::vector<NamedHandler> handlers() {
  return {
      {"jax_rnnt_arcs_fwd", arcs_fwd_handler},
      {"jax_rnnt_arcs_bwd", arcs_bwd_handler},
      {"jax_rnnt_lattice", lattice_handler},
      {"jax_rnnt_lattice_score", lattice_score_handler},
      {"jax_rnnt_packed_lattice", packed_lattice_handler},
      {"jax_rnnt_packed_lattice_score", packed_lattice_score_handler},
      {"jax_rnnt_banded_lattice", banded_lattice_handler},
      {"jax_rnnt_banded_lattice_score", banded_lattice_score_handler},
      {"jax_rnnt_duration_lattice", duration_lattice_handler},
      {"jax_rnnt_duration_lattice_score", duration_lattice_score_handler},
      {"jax_rnnt_best_path", best_path_handler},
      {"jax_rnnt_packed_best_path", packed_best_path_handler},
      {"jax_rnnt_best_duration_path", best_duration_path_handler},
      {"jax_rnnt_factored_fwd", factored_fwd_handler},
      {"jax_rnnt_factored_bwd", factored_bwd_handler},
      {"jax_rnnt_smoothed_fwd", smoothed_fwd_handler},
      {"jax_rnnt_smoothed_bwd", smoothed_bwd_handler},
      {"jax_rnnt_row_sums", row_sums_handler},
  };
}

}  // namespace jax_rnnt
