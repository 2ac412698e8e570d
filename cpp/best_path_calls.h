// The XLA FFI call of the best path, as ffi_calls.h has those of the others.
#pragma once

#include "banded_calls.h"
#include "packed_calls.h"

namespace jax_rnnt {

ffi::Error decode(BestPath& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult score,
                  ffi::Result<Int32Buffer> label_frames, AnyResult workspace, int64_t topology,
                  bool final_blank, double delay_penalty);

// Of packed rows: whole lattices.
ffi::Error decode_packed(BestPath& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                         Int32Buffer offsets, Int32Buffer bounds, AnyResult score,
                         ffi::Result<Int32Buffer> label_frames, AnyResult workspace,
                         int64_t topology, bool final_blank, double delay_penalty);

// Divides the workspace among utterances and rows, if it is as large as the kernels need.
ffi::Error divide_workspace(BestPath& params, int64_t per_utterance, int64_t element_bytes);

template <class Context>
auto best_path_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()  // blank
      .template Arg<ffi::AnyBuffer>()  // label
      .template Arg<Int32Buffer>()     // starts, or offsets of packed rows
      .template Arg<Int32Buffer>()     // bounds
      .template Ret<ffi::AnyBuffer>()  // score
      .template Ret<Int32Buffer>()     // label_frames
      .template Ret<ffi::AnyBuffer>()  // workspace
      .template Attr<int64_t>("topology")
      .template Attr<bool>("final_blank")
      .template Attr<double>("delay_penalty");
}

template <class Context>
auto packed_best_path_signature() {
  return best_path_signature<Context>();
}

}  // namespace jax_rnnt
