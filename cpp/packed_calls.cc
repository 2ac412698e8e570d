#include "packed_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {

ffi::Error decode(Lattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer offsets, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult workspace, int64_t topology, bool final_blank, double delay_penalty,
                  int64_t num_labels) {
  const Dimensions dims = blank.dimensions(), offset_dims = offsets.dimensions();
  if (dims.size() < 1) return shape_error("blank", dims, "(*batch, N)");
  const int64_t planes = product(dims, dims.size() - 1), rows = dims.back();
  if (offset_dims.size() < 1 || product(offset_dims, offset_dims.size() - 1) != planes) {
    return shape_error("offsets", offset_dims, "(*batch, B)");
  }
  const int64_t utterances = offset_dims.back(), batch = planes * utterances;
  if (batch > INT32_MAX) return shape_error("offsets", offset_dims, "less than 2^31 utterances");
  JAX_RNNT_RETURN_IF_ERROR(
      decode_arcs(dtype, batch, blank, label, bounds, *log_likelihood, *workspace, topology));
  if (num_labels < 0 || num_labels > INT32_MAX) {
    return ffi::Error::InvalidArgument("jax_rnnt: num_labels must be in [0, 2^31)");
  }
  params = {
      .batch = batch,
      .frames = rows,
      .cells = num_labels + 1,
      .packed = {.used = true,
                 .planes = planes,
                 .rows = rows,
                 .utterances = utterances,
                 .offsets = offsets.typed_data(),
                 .per_row = 0,
                 .per_utterance = 0},
      .topology = Topology(topology),
      .final_blank = final_blank,
      .delay_penalty = delay_penalty,
      .blank = blank.untyped_data(),
      .label = label.untyped_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .log_likelihood = log_likelihood->untyped_data(),
      .blank_posteriors = nullptr,
      .label_posteriors = nullptr,
      .workspace = workspace->untyped_data(),
      .workspace_elements = planes == 0 ? 0 : elements(workspace->dimensions()) / planes,
  };
  return ffi::Error::Success();
}

ffi::Error decode(Lattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer offsets, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult blank_posteriors, AnyResult label_posteriors, AnyResult workspace,
                  int64_t topology, bool final_blank, double delay_penalty, int64_t num_labels) {
  JAX_RNNT_RETURN_IF_ERROR(decode(params, dtype, blank, label, offsets, bounds, log_likelihood,
                                  workspace, topology, final_blank, delay_penalty, num_labels));
  return decode_posteriors(params, blank, blank_posteriors, label_posteriors);
}

ffi::Error divide_workspace(Lattice& params, PackedWorkspace needed) {
  PackedRows& packed = params.packed;
  packed.per_row = needed.per_row;
  packed.per_utterance = needed.per_utterance;
  return check_workspace(params,
                         needed.per_row * packed.rows + needed.per_utterance * packed.utterances);
}

}  // namespace jax_rnnt
