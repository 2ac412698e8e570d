// The XLA FFI calls of the recursion over arcs with durations, as ffi_calls.h has those of others.
#pragma once

#include "ffi_calls.h"

namespace jax_rnnt {

ffi::Error decode(DurationLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  ffi::AnyBuffer duration, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult blank_posteriors, AnyResult label_posteriors,
                  AnyResult duration_posteriors, AnyResult workspace, int64_t durations,
                  bool labels_stay);

ffi::Error decode(DurationLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  ffi::AnyBuffer duration, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult workspace, int64_t durations, bool labels_stay);

// Its workspace is the scores of the nodes.
ffi::Error decode(BestDurationPath& params, DType& dtype, ffi::AnyBuffer blank,
                  ffi::AnyBuffer label, ffi::AnyBuffer duration, Int32Buffer bounds,
                  AnyResult score, ffi::Result<Int32Buffer> label_frames,
                  ffi::Result<Int32Buffer> label_durations, AnyResult workspace,
                  ffi::Result<ffi::Buffer<ffi::U8>> arrivals, int64_t durations, bool labels_stay);

template <class Context>
auto duration_lattice_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<ffi::AnyBuffer>()  // duration
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // log_likelihood
      .template Ret<ffi::AnyBuffer>()  // blank_posteriors
      .template Ret<ffi::AnyBuffer>()  // label_posteriors
      .template Ret<ffi::AnyBuffer>()  // duration_posteriors
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("durations")
      .template Attr<bool>("labels_stay");
}

template <class Context>
auto duration_lattice_score_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<ffi::AnyBuffer>()  // duration
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // log_likelihood
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("durations")
      .template Attr<bool>("labels_stay");
}

template <class Context>
auto best_duration_path_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()        // blank
      .template Arg<ffi::AnyBuffer>()        // label
      .template Arg<ffi::AnyBuffer>()        // duration
      .template Arg<Int32Buffer>()           // bounds
      .template Ret<ffi::AnyBuffer>()        // score
      .template Ret<Int32Buffer>()           // label_frames
      .template Ret<Int32Buffer>()           // label_durations
      .template Ret<ffi::AnyBuffer>()        // workspace
      .template Ret<ffi::Buffer<ffi::U8>>()  // arrivals
      .template Attr<int64_t>("durations")
      .template Attr<bool>("labels_stay");
}

}  // namespace jax_rnnt
