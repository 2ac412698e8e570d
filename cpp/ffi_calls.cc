#include "ffi_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {
namespace {

// Sizes shared by the arcs calls, read off the logits' shape and checked against the other
// operands.
struct ArcsSizes {
  int64_t batch, frames, cells, labels_per_utterance, classes;
  DType dtype;

  ffi::Error decode(const ffi::AnyBuffer& logits, const Int32Buffer& labels, int64_t blank_id) {
    const Dimensions dims = logits.dimensions();
    if (dims.size() < 3) return shape_error("logits", dims, "(*batch, T, U+1, V)");
    const size_t leading = dims.size() - 3;
    batch = product(dims, leading);
    frames = dims[leading], cells = dims[leading + 1], classes = dims[leading + 2];
    if (!decode_dtype(logits.element_type(), dtype)) {
      return ffi::Error::InvalidArgument("jax_rnnt: logits must be f32, f64, bf16 or f16");
    }
    if (cells < 1) return shape_error("logits", dims, "U+1 >= 1 cells a frame");
    if (blank_id < 0 || blank_id >= classes) {
      return ffi::Error::InvalidArgument(
          "jax_rnnt: blank_id " + std::to_string(blank_id) +
          " is not a class of logits with V = " + std::to_string(classes));
    }
    const int64_t labels_given = elements(labels.dimensions());
    labels_per_utterance = labels_given == batch * cells ? cells : cells - 1;
    if (labels_given != batch * labels_per_utterance) {
      return shape_error("labels", labels.dimensions(), "(*batch, U) or (*batch, U+1)");
    }
    return ffi::Error::Success();
  }

  ffi::Error check_plane(const char* name, Dimensions dims, ffi::DataType type) const {
    if (elements(dims) != batch * frames * cells || type != accumulator_type(dtype)) {
      return shape_error(name, dims, "(*batch, T, U+1) in the accumulator's dtype");
    }
    return ffi::Error::Success();
  }
};

bool is_gradient_dtype(DType logits, DType gradient) {
  if (gradient == logits) return true;
  return logits == DType::kF32 && (gradient == DType::kBF16 || gradient == DType::kF16);
}

// Everything of the lattice calls but the posteriors.
ffi::Error decode_lattice(Lattice& params, DType& dtype, const ffi::AnyBuffer& blank,
                          const ffi::AnyBuffer& label, const Int32Buffer& bounds,
                          ffi::AnyBuffer& log_likelihood, ffi::AnyBuffer& workspace,
                          int64_t topology, bool final_blank, double delay_penalty) {
  const Dimensions dims = blank.dimensions();
  if (dims.size() < 2 || dims.back() < 1) return shape_error("blank", dims, "(*batch, T, U+1)");
  const size_t leading = dims.size() - 2;
  const int64_t batch = product(dims, leading);
  JAX_RNNT_RETURN_IF_ERROR(
      decode_arcs(dtype, batch, blank, label, bounds, log_likelihood, workspace, topology));
  params = {
      .batch = batch,
      .frames = dims[leading],
      .cells = dims[leading + 1],
      .packed = {},
      .topology = Topology(topology),
      .final_blank = final_blank,
      .delay_penalty = delay_penalty,
      .blank = blank.untyped_data(),
      .label = label.untyped_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .log_likelihood = log_likelihood.untyped_data(),
      .blank_posteriors = nullptr,
      .label_posteriors = nullptr,
      .workspace = workspace.untyped_data(),
      .workspace_elements = batch == 0 ? 0 : elements(workspace.dimensions()) / batch,
  };
  return ffi::Error::Success();
}

}  // namespace

ffi::Error decode(ArcsForward& params, DType& dtype, ffi::AnyBuffer logits, Int32Buffer labels,
                  Int32Buffer bounds, AnyResult blank, AnyResult label, AnyResult denominators,
                  int64_t blank_id, int64_t normalization) {
  ArcsSizes s;
  JAX_RNNT_RETURN_IF_ERROR(s.decode(logits, labels, blank_id));
  JAX_RNNT_RETURN_IF_ERROR(check_code("normalization", normalization, Normalization::kHat));
  JAX_RNNT_RETURN_IF_ERROR(check_bounds(bounds, s.batch));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("blank", blank->dimensions(), blank->element_type()));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("label", label->dimensions(), label->element_type()));
  JAX_RNNT_RETURN_IF_ERROR(
      s.check_plane("denominators", denominators->dimensions(), denominators->element_type()));
  dtype = s.dtype;
  params = {
      .batch = s.batch,
      .frames = s.frames,
      .cells = s.cells,
      .labels_per_utterance = s.labels_per_utterance,
      .classes = s.classes,
      .blank_id = blank_id,
      .normalization = Normalization(normalization),
      .logits = logits.untyped_data(),
      .labels = labels.typed_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .blank = blank->untyped_data(),
      .label = label->untyped_data(),
      .denominators = denominators->untyped_data(),
  };
  return ffi::Error::Success();
}

ffi::Error decode(ArcsBackward& params, DType& dtype, ffi::AnyBuffer logits, Int32Buffer labels,
                  ffi::AnyBuffer denominators, ffi::AnyBuffer blank_weights,
                  ffi::AnyBuffer label_weights, ffi::AnyBuffer cotangents, AnyResult gradient,
                  int64_t blank_id, int64_t normalization, double clamp) {
  ArcsSizes s;
  JAX_RNNT_RETURN_IF_ERROR(s.decode(logits, labels, blank_id));
  JAX_RNNT_RETURN_IF_ERROR(check_code("normalization", normalization, Normalization::kHat));
  for (const auto& [name, plane] :
       {std::pair<const char*, const ffi::AnyBuffer&>{"denominators", denominators},
        {"blank_weights", blank_weights},
        {"label_weights", label_weights}}) {
    JAX_RNNT_RETURN_IF_ERROR(s.check_plane(name, plane.dimensions(), plane.element_type()));
  }
  if (elements(cotangents.dimensions()) != s.batch ||
      cotangents.element_type() != accumulator_type(s.dtype)) {
    return shape_error("cotangents", cotangents.dimensions(),
                       "(*batch,) in the accumulator's dtype");
  }
  DType gradient_dtype;
  if (elements(gradient->dimensions()) != elements(logits.dimensions()) ||
      !decode_dtype(gradient->element_type(), gradient_dtype) ||
      !is_gradient_dtype(s.dtype, gradient_dtype)) {
    return shape_error("gradient", gradient->dimensions(),
                       "logits' shape and dtype, or bf16 or f16 where theirs is f32");
  }
  dtype = s.dtype;
  params = {
      .batch = s.batch,
      .frames = s.frames,
      .cells = s.cells,
      .labels_per_utterance = s.labels_per_utterance,
      .classes = s.classes,
      .blank_id = blank_id,
      .normalization = Normalization(normalization),
      .clamp = clamp,
      .logits = logits.untyped_data(),
      .labels = labels.typed_data(),
      .denominators = denominators.untyped_data(),
      .blank_weights = blank_weights.untyped_data(),
      .label_weights = label_weights.untyped_data(),
      .cotangents = cotangents.untyped_data(),
      .gradient = gradient->untyped_data(),
      .gradient_dtype = gradient_dtype,
  };
  return ffi::Error::Success();
}

ffi::Error decode(Lattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer bounds, AnyResult log_likelihood, AnyResult blank_posteriors,
                  AnyResult label_posteriors, AnyResult workspace, int64_t topology,
                  bool final_blank, double delay_penalty) {
  JAX_RNNT_RETURN_IF_ERROR(decode_lattice(params, dtype, blank, label, bounds, *log_likelihood,
                                          *workspace, topology, final_blank, delay_penalty));
  return decode_posteriors(params, blank, blank_posteriors, label_posteriors);
}

ffi::Error decode(Lattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer bounds, AnyResult log_likelihood, AnyResult workspace,
                  int64_t topology, bool final_blank, double delay_penalty) {
  return decode_lattice(params, dtype, blank, label, bounds, *log_likelihood, *workspace, topology,
                        final_blank, delay_penalty);
}

ffi::Error check_workspace(int64_t batch, int64_t elements, int64_t needed_elements) {
  if (batch == 0 || elements >= needed_elements) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("jax_rnnt: workspace has " + std::to_string(elements) +
                                     " elements for each utterance, expected " +
                                     std::to_string(needed_elements));
}

}  // namespace jax_rnnt
