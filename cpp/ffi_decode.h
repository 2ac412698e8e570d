// Helpers of the functions that decode and check XLA FFI calls.
#pragma once

#include <string>

#include "ffi_calls.h"

namespace jax_rnnt {

using Dimensions = ffi::Span<const int64_t>;

inline int64_t product(Dimensions dims, size_t count) {
  int64_t size = 1;
  for (size_t i = 0; i < count; ++i) size *= dims[i];
  return size;
}

inline int64_t elements(Dimensions dims) { return product(dims, dims.size()); }

inline ffi::Error shape_error(const char* what, Dimensions dims, const std::string& expected) {
  std::string message = std::string("jax_rnnt: ") + what + " has shape (";
  for (size_t i = 0; i < dims.size(); ++i) message += (i ? ", " : "") + std::to_string(dims[i]);
  return ffi::Error::InvalidArgument(message + "), expected " + expected);
}

inline bool decode_dtype(ffi::DataType type, DType& dtype) {
  switch (type) {
    case ffi::F32: dtype = DType::kF32; return true;
    case ffi::F64: dtype = DType::kF64; return true;
    case ffi::BF16: dtype = DType::kBF16; return true;
    case ffi::F16: dtype = DType::kF16; return true;
    default: return false;
  }
}

inline ffi::DataType accumulator_type(DType dtype) {
  return dtype == DType::kF64 ? ffi::F64 : ffi::F32;
}

// Exported programs may come from another version.
template <class Enum>
ffi::Error check_code(const char* name, int64_t code, Enum last) {
  if (code < 0 || code > static_cast<int64_t>(last)) {
    return ffi::Error::InvalidArgument("jax_rnnt: unknown " + std::string(name) + " code " +
                                       std::to_string(code));
  }
  return ffi::Error::Success();
}

inline ffi::Error check_bounds(const Int32Buffer& bounds, int64_t batch) {
  static_assert(sizeof(Bounds) == 4 * sizeof(int32_t));
  if (elements(bounds.dimensions()) != batch * 4) {
    return shape_error("bounds", bounds.dimensions(), "(*batch, 4)");
  }
  return ffi::Error::Success();
}

// What the calls of all recursions have, of so many utterances.
inline ffi::Error decode_arcs(DType& dtype, int64_t batch, const ffi::AnyBuffer& blank,
                              const ffi::AnyBuffer& label, const Int32Buffer& bounds,
                              const ffi::AnyBuffer& log_likelihood, const ffi::AnyBuffer& workspace,
                              int64_t topology) {
  const ffi::DataType type = blank.element_type();
  if (type != ffi::F32 && type != ffi::F64) {
    return ffi::Error::InvalidArgument("jax_rnnt: arcs must be f32 or f64");
  }
  dtype = type == ffi::F64 ? DType::kF64 : DType::kF32;
  if (elements(label.dimensions()) != elements(blank.dimensions()) ||
      label.element_type() != type) {
    return shape_error("label", label.dimensions(), "blank's shape and dtype");
  }
  JAX_RNNT_RETURN_IF_ERROR(check_bounds(bounds, batch));
  if (elements(log_likelihood.dimensions()) != batch || log_likelihood.element_type() != type) {
    return shape_error("log_likelihood", log_likelihood.dimensions(),
                       "one for each utterance, of the arcs' dtype");
  }
  if (workspace.element_type() != type) {
    return ffi::Error::InvalidArgument("jax_rnnt: workspace must have the arcs' dtype");
  }
  return check_code("topology", topology, Topology::kConstrained);
}

// The two planes of posteriors, alike to those of the arcs.
template <class Params>
ffi::Error decode_posteriors(Params& params, const ffi::AnyBuffer& arcs, AnyResult blank,
                             AnyResult label) {
  for (AnyResult plane : {blank, label}) {
    if (elements(plane->dimensions()) != elements(arcs.dimensions()) ||
        plane->element_type() != arcs.element_type()) {
      return shape_error("posteriors", plane->dimensions(), "the arcs' shape and dtype");
    }
  }
  params.blank_posteriors = blank->untyped_data();
  params.label_posteriors = label->untyped_data();
  return ffi::Error::Success();
}

}  // namespace jax_rnnt
