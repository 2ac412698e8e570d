#include "factored_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {
namespace {

struct FactoredSizes {
  int64_t batch, frames, cells, classes;
  DType dtype;

  ffi::Error decode(const ffi::AnyBuffer& am, const ffi::AnyBuffer& lm, const Int32Buffer& labels,
                    int64_t blank_id, int64_t normalization) {
    const Dimensions dims = am.dimensions(), lm_dims = lm.dimensions();
    if (dims.size() < 2) return shape_error("am", dims, "(*batch, T, V)");
    const size_t leading = dims.size() - 2;
    batch = product(dims, leading), frames = dims[leading], classes = dims.back();
    if (!decode_dtype(am.element_type(), dtype)) {
      return ffi::Error::InvalidArgument("jax_rnnt: am must be f32, f64, bf16 or f16");
    }
    if (lm_dims.size() != dims.size() || product(lm_dims, leading) != batch ||
        lm_dims[leading] < 1 || lm_dims.back() != classes ||
        lm.element_type() != am.element_type()) {
      return shape_error("lm", lm_dims, "(*batch, U+1, V) in the dtype of am");
    }
    cells = lm_dims[leading];
    if (elements(labels.dimensions()) != batch * (cells - 1)) {
      return shape_error("labels", labels.dimensions(), "(*batch, U)");
    }
    if (blank_id < 0 || blank_id >= classes) {
      return ffi::Error::InvalidArgument(
          "jax_rnnt: blank_id " + std::to_string(blank_id) +
          " is not a class of scores with V = " + std::to_string(classes));
    }
    return check_code("normalization", normalization, Normalization::kHat);
  }

  // Whether a buffer has so many elements of the accumulator's dtype.
  template <class Buffer>
  ffi::Error check(const char* name, const Buffer& buffer, int64_t count,
                   const char* expected) const {
    if (elements(buffer.dimensions()) == count &&
        buffer.element_type() == accumulator_type(dtype)) {
      return ffi::Error::Success();
    }
    return shape_error(name, buffer.dimensions(),
                       std::string(expected) + " in the accumulator's dtype");
  }
  template <class Buffer>
  ffi::Error check_plane(const char* name, const Buffer& buffer) const {
    return check(name, buffer, batch * frames * cells, "(*batch, T, U+1)");
  }
  template <class Buffer>
  ffi::Error check_tops(const Buffer& am_top, const Buffer& lm_top) const {
    JAX_RNNT_RETURN_IF_ERROR(check("am_top", am_top, batch * frames, "(*batch, T)"));
    return check("lm_top", lm_top, batch * cells, "(*batch, U+1)");
  }

  // What smoothed arcs take beside the joiner's.
  ffi::Error decode(Smoothing& smoothing, const ffi::AnyBuffer& average, double joint_share,
                    double am_share) const {
    JAX_RNNT_RETURN_IF_ERROR(check("average", average, batch * classes, "(*batch, V)"));
    smoothing.joint_share = joint_share;
    smoothing.am_share = am_share;
    smoothing.average = average.untyped_data();
    return ffi::Error::Success();
  }
  template <class Buffer>
  ffi::Error check_positions(const char* name, const Buffer& buffer) const {
    return check(name, buffer, batch * cells, "(*batch, U+1)");
  }
  template <class Buffer>
  ffi::Error check_encoder_logs(const Buffer& buffer) const {
    return check("encoder_logs", buffer, batch * frames, "(*batch, T)");
  }

  ffi::Error decode_workspace(AnyResult workspace, void*& data, int64_t& of_utterance) const {
    if (workspace->element_type() != accumulator_type(dtype)) {
      return ffi::Error::InvalidArgument("jax_rnnt: workspace must have the accumulator's dtype");
    }
    data = workspace->untyped_data();
    of_utterance = batch == 0 ? 0 : elements(workspace->dimensions()) / batch;
    return ffi::Error::Success();
  }
};

template <class Params>
FactoredSizes sizes_of(const Params& params, DType dtype) {
  return {params.batch, params.frames, params.cells, params.classes, dtype};
}

ffi::Error check_gradient(const char* name, AnyResult gradient, const ffi::AnyBuffer& of,
                          ffi::DataType type) {
  if (elements(gradient->dimensions()) == elements(of.dimensions()) &&
      gradient->element_type() == type) {
    return ffi::Error::Success();
  }
  return shape_error(name, gradient->dimensions(), "the scores' shape and dtype");
}

}  // namespace

ffi::Error decode(FactoredForward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  Int32Buffer labels, Int32Buffer bounds, AnyResult blank, AnyResult label,
                  AnyResult denominators, AnyResult am_top, AnyResult lm_top, AnyResult workspace,
                  int64_t blank_id, int64_t normalization) {
  FactoredSizes s;
  JAX_RNNT_RETURN_IF_ERROR(s.decode(am, lm, labels, blank_id, normalization));
  JAX_RNNT_RETURN_IF_ERROR(check_bounds(bounds, s.batch));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("blank", *blank));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("label", *label));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("denominators", *denominators));
  JAX_RNNT_RETURN_IF_ERROR(s.check_tops(*am_top, *lm_top));
  dtype = s.dtype;
  params = {
      .batch = s.batch,
      .frames = s.frames,
      .cells = s.cells,
      .classes = s.classes,
      .blank_id = blank_id,
      .normalization = Normalization(normalization),
      .am = am.untyped_data(),
      .lm = lm.untyped_data(),
      .labels = labels.typed_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .blank = blank->untyped_data(),
      .label = label->untyped_data(),
      .denominators = denominators->untyped_data(),
      .am_top = am_top->untyped_data(),
      .lm_top = lm_top->untyped_data(),
      .workspace = nullptr,
      .workspace_elements = 0,
      .smoothing = {},
      .blank_scores = nullptr,
      .label_scores = nullptr,
  };
  return s.decode_workspace(workspace, params.workspace, params.workspace_elements);
}

namespace {

// Smoothed, lm's gradient is not yet all of it, and in the accumulator's dtype.
ffi::Error decode_backward(FactoredBackward& params, DType& dtype, ffi::AnyBuffer am,
                           ffi::AnyBuffer lm, Int32Buffer labels, ffi::AnyBuffer denominators,
                           ffi::AnyBuffer am_top, ffi::AnyBuffer lm_top,
                           ffi::AnyBuffer blank_weights, ffi::AnyBuffer label_weights,
                           ffi::AnyBuffer cotangents, AnyResult am_gradient, AnyResult lm_gradient,
                           AnyResult workspace, int64_t blank_id, int64_t normalization,
                           bool smoothed) {
  FactoredSizes s;
  JAX_RNNT_RETURN_IF_ERROR(s.decode(am, lm, labels, blank_id, normalization));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("denominators", denominators));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("blank_weights", blank_weights));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("label_weights", label_weights));
  JAX_RNNT_RETURN_IF_ERROR(s.check_tops(am_top, lm_top));
  JAX_RNNT_RETURN_IF_ERROR(s.check("cotangents", cotangents, s.batch, "(*batch,)"));
  JAX_RNNT_RETURN_IF_ERROR(check_gradient("am_gradient", am_gradient, am, am.element_type()));
  JAX_RNNT_RETURN_IF_ERROR(check_gradient(
      "lm_gradient", lm_gradient, lm, smoothed ? accumulator_type(s.dtype) : lm.element_type()));
  dtype = s.dtype;
  params = {
      .batch = s.batch,
      .frames = s.frames,
      .cells = s.cells,
      .classes = s.classes,
      .blank_id = blank_id,
      .normalization = Normalization(normalization),
      .am = am.untyped_data(),
      .lm = lm.untyped_data(),
      .labels = labels.typed_data(),
      .denominators = denominators.untyped_data(),
      .am_top = am_top.untyped_data(),
      .lm_top = lm_top.untyped_data(),
      .blank_weights = blank_weights.untyped_data(),
      .label_weights = label_weights.untyped_data(),
      .cotangents = cotangents.untyped_data(),
      .am_gradient = am_gradient->untyped_data(),
      .lm_gradient = lm_gradient->untyped_data(),
      .workspace = nullptr,
      .workspace_elements = 0,
      .smoothing = {},
      .average_gradient = nullptr,
      .blank_of_position = nullptr,
      .label_of_position = nullptr,
  };
  return s.decode_workspace(workspace, params.workspace, params.workspace_elements);
}

}  // namespace

ffi::Error decode(FactoredBackward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  Int32Buffer labels, ffi::AnyBuffer denominators, ffi::AnyBuffer am_top,
                  ffi::AnyBuffer lm_top, ffi::AnyBuffer blank_weights, ffi::AnyBuffer label_weights,
                  ffi::AnyBuffer cotangents, AnyResult am_gradient, AnyResult lm_gradient,
                  AnyResult workspace, int64_t blank_id, int64_t normalization) {
  return decode_backward(params, dtype, am, lm, labels, denominators, am_top, lm_top, blank_weights,
                         label_weights, cotangents, am_gradient, lm_gradient, workspace, blank_id,
                         normalization, false);
}

ffi::Error decode(FactoredForward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  ffi::AnyBuffer average, ffi::AnyBuffer blank_scores, ffi::AnyBuffer label_scores,
                  Int32Buffer labels, Int32Buffer bounds, AnyResult blank, AnyResult label,
                  AnyResult denominators, AnyResult am_top, AnyResult lm_top,
                  AnyResult encoder_logs, AnyResult workspace, int64_t blank_id, double joint_share,
                  double am_share) {
  JAX_RNNT_RETURN_IF_ERROR(decode(params, dtype, am, lm, labels, bounds, blank, label, denominators,
                                  am_top, lm_top, workspace, blank_id,
                                  int64_t(Normalization::kSoftmax)));
  const FactoredSizes s = sizes_of(params, dtype);
  JAX_RNNT_RETURN_IF_ERROR(s.decode(params.smoothing, average, joint_share, am_share));
  JAX_RNNT_RETURN_IF_ERROR(s.check_positions("blank_scores", blank_scores));
  JAX_RNNT_RETURN_IF_ERROR(s.check_positions("label_scores", label_scores));
  JAX_RNNT_RETURN_IF_ERROR(s.check_encoder_logs(*encoder_logs));
  params.smoothing.encoder_logs = encoder_logs->untyped_data();
  params.blank_scores = blank_scores.untyped_data();
  params.label_scores = label_scores.untyped_data();
  return ffi::Error::Success();
}

ffi::Error decode(FactoredBackward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  ffi::AnyBuffer average, Int32Buffer labels, ffi::AnyBuffer denominators,
                  ffi::AnyBuffer am_top, ffi::AnyBuffer lm_top, ffi::AnyBuffer encoder_logs,
                  ffi::AnyBuffer blank_weights, ffi::AnyBuffer label_weights,
                  ffi::AnyBuffer cotangents, AnyResult am_gradient, AnyResult lm_gradient,
                  AnyResult average_gradient, AnyResult blank_of_position,
                  AnyResult label_of_position, AnyResult workspace, int64_t blank_id,
                  double joint_share, double am_share) {
  JAX_RNNT_RETURN_IF_ERROR(decode_backward(params, dtype, am, lm, labels, denominators, am_top,
                                           lm_top, blank_weights, label_weights, cotangents,
                                           am_gradient, lm_gradient, workspace, blank_id,
                                           int64_t(Normalization::kSoftmax), true));
  const FactoredSizes s = sizes_of(params, dtype);
  JAX_RNNT_RETURN_IF_ERROR(s.decode(params.smoothing, average, joint_share, am_share));
  JAX_RNNT_RETURN_IF_ERROR(s.check_encoder_logs(encoder_logs));
  JAX_RNNT_RETURN_IF_ERROR(
      s.check("average_gradient", *average_gradient, s.batch * s.classes, "(*batch, V)"));
  JAX_RNNT_RETURN_IF_ERROR(s.check_positions("blank_of_position", *blank_of_position));
  JAX_RNNT_RETURN_IF_ERROR(s.check_positions("label_of_position", *label_of_position));
  params.smoothing.encoder_logs = encoder_logs.untyped_data();
  params.average_gradient = average_gradient->untyped_data();
  params.blank_of_position = blank_of_position->untyped_data();
  params.label_of_position = label_of_position->untyped_data();
  return ffi::Error::Success();
}

}  // namespace jax_rnnt
