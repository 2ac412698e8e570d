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

// The same of smoothed arcs.
ffi::Error decode(FactoredForward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  ffi::AnyBuffer average, ffi::AnyBuffer blank_scores, ffi::AnyBuffer label_scores,
                  Int32Buffer labels, Int32Buffer bounds, AnyResult blank, AnyResult label,
                  AnyResult denominators, AnyResult am_top, AnyResult lm_top,
                  AnyResult encoder_logs, AnyResult workspace, int64_t blank_id, double joint_share,
                  double am_share);

ffi::Error decode(FactoredBackward& params, DType& dtype, ffi::AnyBuffer am, ffi::AnyBuffer lm,
                  ffi::AnyBuffer average, Int32Buffer labels, ffi::AnyBuffer denominators,
                  ffi::AnyBuffer am_top, ffi::AnyBuffer lm_top, ffi::AnyBuffer encoder_logs,
                  ffi::AnyBuffer blank_weights, ffi::AnyBuffer label_weights,
                  ffi::AnyBuffer cotangents, AnyResult am_gradient, AnyResult lm_gradient,
                  AnyResult average_gradient, AnyResult blank_of_position,
                  AnyResult label_of_position, AnyResult workspace, int64_t blank_id,
                  double joint_share, double am_share);

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

template <class Context>
auto smoothed_fwd_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // am
      .template Arg<ffi::AnyBuffer>()  // lm
      .template Arg<ffi::AnyBuffer>()  // average
      .template Arg<ffi::AnyBuffer>()  // blank_scores
      .template Arg<ffi::AnyBuffer>()  // label_scores
      .template Arg<Int32Buffer>()     // labels
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // blank
      .template Ret<ffi::AnyBuffer>()  // label
      .template Ret<ffi::AnyBuffer>()  // denominators
      .template Ret<ffi::AnyBuffer>()  // am_top
      .template Ret<ffi::AnyBuffer>()  // lm_top
      .template Ret<ffi::AnyBuffer>()  // encoder_logs
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("blank_id")
      .template Attr<double>("joint_share")
      .template Attr<double>("am_share");
}

template <class Context>
auto smoothed_bwd_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // am
      .template Arg<ffi::AnyBuffer>()  // lm
      .template Arg<ffi::AnyBuffer>()  // average
      .template Arg<Int32Buffer>()     // labels
      .template Arg<ffi::AnyBuffer>()  // denominators
      .template Arg<ffi::AnyBuffer>()  // am_top
      .template Arg<ffi::AnyBuffer>()  // lm_top
      .template Arg<ffi::AnyBuffer>()  // encoder_logs
      .template Arg<ffi::AnyBuffer>()  // blank_weights
      .template Arg<ffi::AnyBuffer>()  // label_weights
      .template Arg<ffi::AnyBuffer>()  // cotangents
      .template Ret<ffi::AnyBuffer>()  // am_gradient
      .template Ret<ffi::AnyBuffer>()  // lm_gradient
      .template Ret<ffi::AnyBuffer>()  // average_gradient
      .template Ret<ffi::AnyBuffer>()  // blank_of_position
      .template Ret<ffi::AnyBuffer>()  // label_of_position
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("blank_id")
      .template Attr<double>("joint_share")
      .template Attr<double>("am_share");
}

}  // namespace jax_rnnt
