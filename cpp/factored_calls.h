// The FFI calls of the additive joiner's arcs; as ffi_calls.h does for the others.
#pragma once

#include "ffi_calls.h"

namespace jax_rnnt {

ffi::Error decode(FactoredForward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  Int32Buffer labels, Int32Buffer bounds, AnyResult blank, AnyResult label,
                  AnyResult denominators, AnyResult am_top, AnyResult lm_top, AnyResult workspace,
                  int64_t blank_id, int64_t normalization);

ffi::Error decode(FactoredBackward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  Int32Buffer labels, ffi::AnyBuffer denominators, ffi::AnyBuffer am_top,
                  ffi::AnyBuffer lm_top, ffi::AnyBuffer blank_weights, ffi::AnyBuffer label_weights,
                  ffi::AnyBuffer cotangents, AnyResult am_gradient, AnyResult lm_gradient,
                  AnyResult workspace, int64_t blank_id, int64_t normalization);

ffi::Error check_workspace(const FactoredForward& params, int64_t needed_elements);
ffi::Error check_workspace(const FactoredBackward& params, int64_t needed_elements);

template <class Context>
auto factored_fwd_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // am
      .template Arg<ffi::AnyBuffer>()  // lm
      .template Arg<Int32Buffer>()     // labels
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // blank
      .template Ret<ffi::AnyBuffer>()  // label
      .template Ret<ffi::AnyBuffer>()  // denominators
      .template Ret<ffi::AnyBuffer>()  // am_top
      .template Ret<ffi::AnyBuffer>()  // lm_top
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("blank_id")
      .template Attr<int64_t>("normalization");
}

template <class Context>
auto factored_bwd_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // am
      .template Arg<ffi::AnyBuffer>()  // lm
      .template Arg<Int32Buffer>()     // labels
      .template Arg<ffi::AnyBuffer>()  // denominators
      .template Arg<ffi::AnyBuffer>()  // am_top
      .template Arg<ffi::AnyBuffer>()  // lm_top
      .template Arg<ffi::AnyBuffer>()  // blank_weights
      .template Arg<ffi::AnyBuffer>()  // label_weights
      .template Arg<ffi::AnyBuffer>()  // cotangents
      .template Ret<ffi::AnyBuffer>()  // am_gradient
      .template Ret<ffi::AnyBuffer>()  // lm_gradient
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("blank_id")
      .template Attr<int64_t>("normalization");
}

}  // namespace jax_rnnt
