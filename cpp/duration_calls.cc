#include "duration_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {

ffi::Error decode(DurationLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  ffi::AnyBuffer duration, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult workspace, int64_t durations, bool labels_stay) {
  const Dimensions dims = blank.dimensions();
  if (dims.size() < 2 || dims.back() < 1) return shape_error("blank", dims, "(*batch, T, U+1)");
  const size_t leading = dims.size() - 2;
  const int64_t batch = product(dims, leading);
  JAX_RNNT_RETURN_IF_ERROR(decode_arcs(dtype, batch, blank, label, bounds, *log_likelihood,
                                       *workspace, int64_t(Topology::kRegular)));
  if (durations <= 1 || durations >> Durations::kLongest > 1) {
    return ffi::Error::InvalidArgument("jax_rnnt: durations must be bits of a duration above 0");
  }
  Durations found = Durations::of_bits(uint64_t(durations));
  found.labels_stay = labels_stay;
  if (elements(duration.dimensions()) != elements(dims) * found.number ||
      duration.element_type() != blank.element_type()) {
    return shape_error("duration", duration.dimensions(), "(*batch, D, T, U+1) of blank's dtype");
  }
  params = {
      .batch = batch,
      .frames = dims[leading],
      .cells = dims[leading + 1],
      .durations = found,
      .blank = blank.untyped_data(),
      .label = label.untyped_data(),
      .duration = duration.untyped_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .log_likelihood = log_likelihood->untyped_data(),
      .blank_posteriors = nullptr,
      .label_posteriors = nullptr,
      .duration_posteriors = nullptr,
      .workspace = workspace->untyped_data(),
      .workspace_elements = batch == 0 ? 0 : elements(workspace->dimensions()) / batch,
  };
  return ffi::Error::Success();
}

ffi::Error decode(DurationLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  ffi::AnyBuffer duration, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult blank_posteriors, AnyResult label_posteriors,
                  AnyResult duration_posteriors, AnyResult workspace, int64_t durations,
                  bool labels_stay) {
  JAX_RNNT_RETURN_IF_ERROR(decode(params, dtype, blank, label, duration, bounds, log_likelihood,
                                  workspace, durations, labels_stay));
  if (elements(duration_posteriors->dimensions()) != elements(duration.dimensions()) ||
      duration_posteriors->element_type() != duration.element_type()) {
    return shape_error("posteriors", duration_posteriors->dimensions(),
                       "the durations' shape and dtype");
  }
  params.duration_posteriors = duration_posteriors->untyped_data();
  return decode_posteriors(params, blank, blank_posteriors, label_posteriors);
}

ffi::Error decode(BestDurationPath& params, DType& dtype, ffi::AnyBuffer blank,
                  ffi::AnyBuffer label, ffi::AnyBuffer duration, Int32Buffer bounds,
                  AnyResult score, ffi::Result<Int32Buffer> label_frames,
                  ffi::Result<Int32Buffer> label_durations, AnyResult workspace,
                  ffi::Result<ffi::Buffer<ffi::U8>> arrivals, int64_t durations, bool labels_stay) {
  DurationLattice& lattice = params.lattice;
  JAX_RNNT_RETURN_IF_ERROR(decode(lattice, dtype, blank, label, duration, bounds, score, workspace,
                                  durations, labels_stay));
  const int64_t plane_size = lattice.frames * lattice.cells;
  JAX_RNNT_RETURN_IF_ERROR(check_workspace(lattice, plane_size));
  if (elements(arrivals->dimensions()) != lattice.batch * plane_size) {
    return shape_error("arrivals", arrivals->dimensions(), "blank's shape");
  }
  for (auto result : {label_frames, label_durations}) {
    if (elements(result->dimensions()) != lattice.batch * (lattice.cells - 1)) {
      return shape_error("label_frames and label_durations", result->dimensions(), "(*batch, U)");
    }
  }
  params.arrivals = arrivals->typed_data();
  params.label_frames = label_frames->typed_data();
  params.label_durations = label_durations->typed_data();
  return ffi::Error::Success();
}

}  // namespace jax_rnnt
