#include "best_path_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {

ffi::Error decode(BestPath& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult score,
                  ffi::Result<Int32Buffer> label_frames, AnyResult workspace, int64_t topology,
                  bool final_blank, double delay_penalty) {
  const Dimensions dims = label_frames->dimensions();
  if (dims.size() < 1) return shape_error("label_frames", dims, "(*batch, U)");
  JAX_RNNT_RETURN_IF_ERROR(decode(params.band, dtype, blank, label, starts, bounds, score,
                                  workspace, topology, delay_penalty, dims.back()));
  if (product(dims, dims.size() - 1) != params.band.batch) {
    return shape_error("label_frames", dims, "(*batch, U)");
  }
  params.packed = {};
  params.final_blank = final_blank;
  params.label_frames = label_frames->typed_data();
  return ffi::Error::Success();
}

ffi::Error decode_packed(BestPath& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                         Int32Buffer offsets, Int32Buffer bounds, AnyResult score,
                         ffi::Result<Int32Buffer> label_frames, AnyResult workspace,
                         int64_t topology, bool final_blank, double delay_penalty) {
  const Dimensions dims = label_frames->dimensions();
  if (dims.size() < 1) return shape_error("label_frames", dims, "(*batch, B, U)");
  Lattice lattice;
  JAX_RNNT_RETURN_IF_ERROR(decode(lattice, dtype, blank, label, offsets, bounds, score, workspace,
                                  topology, final_blank, delay_penalty, dims.back()));
  if (product(dims, dims.size() - 1) != lattice.batch) {
    return shape_error("label_frames", dims, "(*batch, B, U)");
  }
  params = {
      .band = {.batch = lattice.batch,
               .frames = lattice.frames,
               .cells = lattice.cells,
               .labels = dims.back(),
               .topology = lattice.topology,
               .delay_penalty = delay_penalty,
               .blank = lattice.blank,
               .label = lattice.label,
               .starts = nullptr,
               .bounds = lattice.bounds,
               .log_likelihood = lattice.log_likelihood,
               .blank_posteriors = nullptr,
               .label_posteriors = nullptr,
               .workspace = lattice.workspace,
               .workspace_elements = lattice.workspace_elements},
      .packed = lattice.packed,
      .final_blank = final_blank,
      .label_frames = label_frames->typed_data(),
  };
  return ffi::Error::Success();
}

ffi::Error divide_workspace(BestPath& params, int64_t per_utterance, int64_t element_bytes) {
  PackedRows& packed = params.packed;
  packed.per_utterance = per_utterance;
  const int64_t of_rows = (packed.rows + element_bytes - 1) / element_bytes;
  return check_workspace(params.band, per_utterance * packed.utterances + of_rows);
}

}  // namespace jax_rnnt
