// The library's XLA FFI calls as every platform makes them: their operands, results and attributes,
// and how these become the kernels' structs.
//
// Shapes and dtypes are checked here because a wrong one would be a memory error. Data values never
// give an error (another device could be left waiting in a collective): the kernels turn bad ones
// into NaN.
#pragma once

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace jax_rnnt {

namespace ffi = xla::ffi;
using Int32Buffer = ffi::Buffer<ffi::S32>;
using AnyResult = ffi::Result<ffi::AnyBuffer>;

struct NamedHandler {
  const char* target;
  XLA_FFI_Handler* handler;
};

#define JAX_RNNT_RETURN_IF_ERROR(expression)                            \
  do {                                                                  \
    if (ffi::Error error = (expression); error.failure()) return error; \
  } while (false)

// Each decode function takes a call's arguments in the order of its signature below.

ffi::Error decode(ArcsForward& params, DType& dtype, ffi::AnyBuffer logits, Int32Buffer labels,
                  Int32Buffer bounds, AnyResult blank, AnyResult label, AnyResult denominators,
                  int64_t blank_id, int64_t normalization);

ffi::Error decode(ArcsBackward& params, DType& dtype, ffi::AnyBuffer logits, Int32Buffer labels,
                  ffi::AnyBuffer denominators, ffi::AnyBuffer blank_weights,
                  ffi::AnyBuffer label_weights, ffi::AnyBuffer cotangents, AnyResult gradient,
                  int64_t blank_id, int64_t normalization, double clamp);

ffi::Error decode(Lattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer bounds, AnyResult log_likelihood, AnyResult blank_posteriors,
                  AnyResult label_posteriors, AnyResult workspace, int64_t topology,
                  bool final_blank, double delay_penalty);

ffi::Error decode(Lattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer bounds, AnyResult log_likelihood, AnyResult workspace,
                  int64_t topology, bool final_blank, double delay_penalty);

// Whether the workspace, whose size depends on the platform, is as large as the kernels need.
ffi::Error check_workspace(int64_t batch, int64_t elements, int64_t needed_elements);

template <class Params>
ffi::Error check_workspace(const Params& params, int64_t needed_elements) {
  return check_workspace(params.batch, params.workspace_elements, needed_elements);
}

// `Context` is what the platform hands to a handler: a thread pool, a stream.

template <class Context>
auto arcs_fwd_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // logits
      .template Arg<Int32Buffer>()     // labels
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // blank
      .template Ret<ffi::AnyBuffer>()  // label
      .template Ret<ffi::AnyBuffer>()  // denominators
      .template Attr<int64_t>("blank_id")
      .template Attr<int64_t>("normalization");
}

template <class Context>
auto arcs_bwd_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // logits
      .template Arg<Int32Buffer>()     // labels
      .template Arg<ffi::AnyBuffer>()  // denominators
      .template Arg<ffi::AnyBuffer>()  // blank_weights
      .template Arg<ffi::AnyBuffer>()  // label_weights
      .template Arg<ffi::AnyBuffer>()  // cotangents
      .template Ret<ffi::AnyBuffer>()  // gradient, which may be in the memory of the logits
      .template Attr<int64_t>("blank_id")
      .template Attr<int64_t>("normalization")
      .template Attr<double>("clamp");
}

template <class Context>
auto lattice_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // log_likelihood
      .template Ret<ffi::AnyBuffer>()  // blank_posteriors
      .template Ret<ffi::AnyBuffer>()  // label_posteriors
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("topology")
      .template Attr<bool>("final_blank")
      .template Attr<double>("delay_penalty");
}

template <class Context>
auto lattice_score_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // log_likelihood
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("topology")
      .template Attr<bool>("final_blank")
      .template Attr<double>("delay_penalty");
}

}  // namespace jax_rnnt
