#include "ffi_handlers.h"

#include "dispatch.h"
#include "factored_layout.h"
#include "lattice_threads.h"
#include "memory.h"
#include "parallel.h"

namespace jax_rnnt {
namespace {

using Pool = ffi::ThreadPool;

int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kF64: return 8;
    case DType::kF32: return 4;
    default: return 2;
  }
}

constexpr auto arcs_fwd = [](Pool pool, auto... operands) -> ffi::Error {
  ArcsForward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const Kernels& kernels = active_kernels();
  const int64_t frame_bytes = p.cells * p.classes * bytes_of(dtype);
  parallel_for(pool, p.batch * p.frames, frame_bytes,
               [&](int64_t begin, int64_t end) { kernels.arcs_forward(p, dtype, begin, end); });
  return ffi::Error::Success();
};

constexpr auto arcs_bwd = [](Pool pool, auto... operands) -> ffi::Error {
  ArcsBackward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const Kernels& kernels = active_kernels();
  const int64_t frames = p.batch * p.frames, frame_elements = p.cells * p.classes;
  const int64_t gradient_bytes = frame_elements * bytes_of(p.gradient_dtype);
  if (p.gradient != p.logits) prefer_huge_pages(p.gradient, frames * gradient_bytes);
  parallel_for(pool, frames, frame_elements * bytes_of(dtype) + gradient_bytes,
               [&](int64_t begin, int64_t end) { kernels.arcs_backward(p, dtype, begin, end); });
  return ffi::Error::Success();
};

// Runs all utterances. The batch is `planes` planes of `cells` cells each.
ffi::Error run_lattice(Pool& pool, const Lattice& p, DType dtype, int64_t planes, int64_t cells) {
  const int64_t plane_bytes = planes * cells * bytes_of(dtype);
  prefer_huge_pages(p.workspace, planes * p.workspace_elements * bytes_of(dtype));
  if (p.blank_posteriors != nullptr) {
    prefer_huge_pages(p.blank_posteriors, plane_bytes);
    prefer_huge_pages(p.label_posteriors, plane_bytes);
  }
  run_lattices(pool, active_kernels(), p, dtype, p.batch == 0 ? 0 : planes * cells / p.batch);
  return ffi::Error::Success();
}

constexpr auto lattice = [](Pool pool, auto... operands) -> ffi::Error {
  Lattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(check_workspace(
      p, lattice_workspace_elements(p.frames, p.cells, p.topology, p.blank_posteriors != nullptr)));
  return run_lattice(pool, p, dtype, p.batch, p.frames * p.cells);
};

constexpr auto packed_lattice = [](Pool pool, auto... operands) -> ffi::Error {
  Lattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const bool with_posteriors = p.blank_posteriors != nullptr;
  JAX_RNNT_RETURN_IF_ERROR(divide_workspace(p, packed_workspace(p.cells, with_posteriors)));
  if (p.batch == 0 && with_posteriors) {  // rows of no utterance
    const size_t bytes = p.packed.planes * p.packed.rows * bytes_of(dtype);
    for (void* plane : {p.blank_posteriors, p.label_posteriors}) __builtin_memset(plane, 0, bytes);
  }
  return run_lattice(pool, p, dtype, p.packed.planes, p.packed.rows);
};

constexpr auto banded_lattice = [](Pool pool, auto... operands) -> ffi::Error {
  BandedLattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const bool with_posteriors = p.blank_posteriors != nullptr;
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p, banded_workspace_elements(p.frames, p.cells, with_posteriors)));
  prefer_huge_pages(p.workspace, p.batch * p.workspace_elements * bytes_of(dtype));
  const Kernels& kernels = active_kernels();
  const int64_t lanes = kernels.vector_bytes / bytes_of(dtype);
  parallel_for(pool, (p.batch + lanes - 1) / lanes, p.frames * p.cells * lanes * 64,
               [&](int64_t begin, int64_t end) { kernels.banded_lattice(p, dtype, begin, end); });
  return ffi::Error::Success();
};

constexpr auto duration_lattice = [](Pool pool, auto... operands) -> ffi::Error {
  DurationLattice p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p, duration_workspace_elements(p.frames, p.cells, p.durations)));
  prefer_huge_pages(p.workspace, p.batch * p.workspace_elements * bytes_of(dtype));
  const Kernels& kernels = active_kernels();
  parallel_for(pool, p.batch, p.frames * p.cells * (p.durations.number + 2) * 32,
               [&](int64_t begin, int64_t end) { kernels.duration_lattice(p, dtype, begin, end); });
  return ffi::Error::Success();
};

// Runs all utterances. The batch is `planes` planes of `cells` cells each.
ffi::Error run_best_path(Pool& pool, const BestPath& p, DType dtype, int64_t planes,
                         int64_t cells) {
  const BandedLattice& band = p.band;
  prefer_huge_pages(band.workspace, planes * band.workspace_elements * bytes_of(dtype));
  const Kernels& kernels = active_kernels();
  parallel_for(pool, band.batch, band.batch == 0 ? 0 : planes * cells / band.batch * 32,
               [&](int64_t begin, int64_t end) { kernels.best_path(p, dtype, begin, end); });
  return ffi::Error::Success();
}

constexpr auto best_path = [](Pool pool, auto... operands) -> ffi::Error {
  BestPath p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const int64_t frames = p.band.frames, cells = p.band.cells;
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p.band, best_path_workspace_elements(frames, cells, bytes_of(dtype))));
  return run_best_path(pool, p, dtype, p.band.batch, frames * cells);
};

constexpr auto packed_best_path = [](Pool pool, auto... operands) -> ffi::Error {
  BestPath p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode_packed(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(
      divide_workspace(p, packed_best_path_elements(p.band.cells), bytes_of(dtype)));
  return run_best_path(pool, p, dtype, p.packed.planes, p.packed.rows);
};

constexpr auto best_duration_path = [](Pool pool, auto... operands) -> ffi::Error {
  BestDurationPath p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const Kernels& kernels = active_kernels();
  const int64_t cells = p.lattice.frames * p.lattice.cells;
  parallel_for(
      pool, p.lattice.batch, cells * (p.lattice.durations.number + 2) * 32,
      [&](int64_t begin, int64_t end) { kernels.best_duration_path(p, dtype, begin, end); });
  return ffi::Error::Success();
};

constexpr auto factored_fwd = [](Pool pool, auto... operands) -> ffi::Error {
  FactoredForward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  JAX_RNNT_RETURN_IF_ERROR(check_workspace(p, factored_forward_elements(p.cells, p.classes)));
  const Kernels& kernels = active_kernels();
  // A product costs as much as streaming a quarter of a byte.
  parallel_for(
      pool, p.batch * (round_up(p.cells, kPositions) / kPositions), kPositions * p.classes * 8,
      [&](int64_t begin, int64_t end) { kernels.factored_positions(p, dtype, begin, end); });
  const int64_t blocks = (p.frames + kFramesOfBlock - 1) / kFramesOfBlock;
  parallel_for(pool, p.batch * blocks, kFramesOfBlock * (p.cells / 4 + 1) * p.classes,
               [&](int64_t begin, int64_t end) { kernels.factored_frames(p, dtype, begin, end); });
  return ffi::Error::Success();
};

constexpr auto factored_bwd = [](Pool pool, auto... operands) -> ffi::Error {
  FactoredBackward p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const int64_t element_bytes = dtype == DType::kF64 ? 8 : 4;
  JAX_RNNT_RETURN_IF_ERROR(
      check_workspace(p, factored_backward_elements(p.frames, p.cells, p.classes, element_bytes)));
  prefer_huge_pages(p.am_gradient, p.batch * p.frames * p.classes * bytes_of(dtype));
  const Kernels& kernels = active_kernels();
  parallel_for(pool, p.batch, p.frames * p.cells * 8,
               [&](int64_t begin, int64_t end) { kernels.factored_sums(p, dtype, begin, end); });
  const auto layout = factored_backward_layout(p.frames, p.cells, p.classes, element_bytes);
  parallel_for(pool, p.batch * layout.blocks, p.frames * (p.cells / 2 + 1) * layout.block_classes,
               [&](int64_t begin, int64_t end) { kernels.factored_classes(p, dtype, begin, end); });
  return ffi::Error::Success();
};

constexpr auto row_sums = [](Pool pool, auto... operands) -> ffi::Error {
  RowSums p;
  DType dtype;
  JAX_RNNT_RETURN_IF_ERROR(decode(p, dtype, operands...));
  const Kernels& kernels = active_kernels();
  const int64_t rows_per_sum = p.rows / std::max<int64_t>(p.sums_per_batch, 1) + 1;
  parallel_for(pool, p.batch * p.sums_per_batch, rows_per_sum * p.columns * bytes_of(dtype),
               [&](int64_t begin, int64_t end) { kernels.row_sums(p, dtype, begin, end); });
  return ffi::Error::Success();
};

#define JAX_RNNT_DEFINE_HANDLER(target, function) \
  XLA_FFI_DEFINE_HANDLER(target##_handler, function, target##_signature<Pool>());
JAX_RNNT_TARGETS(JAX_RNNT_DEFINE_HANDLER)
#undef JAX_RNNT_DEFINE_HANDLER

}  // namespace

std::vector<NamedHandler> handlers() {
#define JAX_RNNT_NAMED_HANDLER(target, function) {"jax_rnnt_" #target, target##_handler},
  return {JAX_RNNT_TARGETS(JAX_RNNT_NAMED_HANDLER)};
#undef JAX_RNNT_NAMED_HANDLER
}

}  // namespace jax_rnnt
