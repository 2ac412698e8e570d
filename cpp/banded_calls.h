// The XLA FFI calls of the banded lattice, as ffi_calls.h has those of the others.
#pragma once

#include "ffi_calls.h"

namespace jax_rnnt {

ffi::Error decode(BandedLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult blank_posteriors, AnyResult label_posteriors, AnyResult workspace,
                  int64_t topology, double delay_penalty, int64_t num_labels);

ffi::Error decode(BandedLattice& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult log_likelihood,
                  AnyResult workspace, int64_t topology, double delay_penalty, int64_t num_labels);

template <class Context>
auto banded_lattice_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<Int32Buffer>()     // starts
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // log_likelihood
      .template Ret<ffi::AnyBuffer>()  // blank_posteriors
      .template Ret<ffi::AnyBuffer>()  // label_posteriors
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("topology")
      .template Attr<double>("delay_penalty")
      .template Attr<int64_t>("num_labels");
}

template <class Context>
auto banded_lattice_score_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<Int32Buffer>()     // starts
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // log_likelihood
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("topology")
      .template Attr<double>("delay_penalty")
      .template Attr<int64_t>("num_labels");
}

}  // namespace jax_rnnt
