// The FFI call of sums of rows, as ffi_calls.h has those of the others.
#pragma once

#include "ffi_calls.h"

namespace jax_rnnt {

ffi::Error decode(RowSums& params, DType& dtype, ffi::AnyBuffer values, Int32Buffer numbers,
                  AnyResult sums);

template <class Context>
auto row_sums_signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()   // values
      .template Arg<Int32Buffer>()      // numbers
      .template Ret<ffi::AnyBuffer>();  // sums
}

}  // namespace jax_rnnt
