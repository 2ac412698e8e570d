#include "banded_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {

ffi::Error decode(BandedLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult workspace, int64_t topology, double delay_penalty, int64_t num_labels) {
  const Dimensions dims = blank.dimensions();
  if (dims.size() < 2 || dims.back() < 1) return shape_error("blank", dims, "(*batch, T, S)");
  const size_t leading = dims.size() - 2;
  const int64_t batch = product(dims, leading), frames = dims[leading];
  JAX_RNNT_RETURN_IF_ERROR(
      decode_arcs(dtype, batch, blank, label, bounds, *log_likelihood, *workspace, topology));
  if (elements(starts.dimensions()) != batch * frames) {
    return shape_error("starts", starts.dimensions(), "(*batch, T)");
  }
  if (num_labels < 0) return ffi::Error::InvalidArgument("jax_rnnt: num_labels must be >= 0");
  params = {
      .batch = batch,
      .frames = frames,
      .cells = dims[leading + 1],
      .labels = num_labels,
      .topology = Topology(topology),
      .delay_penalty = delay_penalty,
      .blank = blank.untyped_data(),
      .label = label.untyped_data(),
      .starts = starts.typed_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .log_likelihood = log_likelihood->untyped_data(),
      .blank_posteriors = nullptr,
      .label_posteriors = nullptr,
      .workspace = workspace->untyped_data(),
      .workspace_elements = batch == 0 ? 0 : elements(workspace->dimensions()) / batch,
  };
  return ffi::Error::Success();
}

ffi::Error decode(BandedLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult blank_posteriors, AnyResult label_posteriors, AnyResult workspace,
                  int64_t topology, double delay_penalty, int64_t num_labels) {
  JAX_RNNT_RETURN_IF_ERROR(decode(params, dtype, blank, label, starts, bounds, log_likelihood,
                                  workspace, topology, delay_penalty, num_labels));
  return decode_posteriors(params, blank, blank_posteriors, label_posteriors);
}

}  // namespace jax_rnnt
