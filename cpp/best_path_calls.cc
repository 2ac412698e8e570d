#include "best_path_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {

ffi::Error decode(BestPath& params, DType& dtype, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                  Int32Buffer starts, Int32Buffer bounds, AnyResult score,
                  ffi::Result<Int32Buffer> label_frames, AnyResult workspace, int64_t topology,
                  bool final_blank, double delay_penalty) {
  const Dimensions dims = label_frames->dimensions();
  if (dims.size() < 1) return shape_error("label_frames", dims, "(*batch, U)");
  JAX_RNNT_RETURN_IF_ERROR(decode(params.band, dtype, blank, label, starts, bounds, score,
                                  workspace, topology, delay_penalty, dims.back()));
  if (product(dims, dims.size() - 1) != params.band.batch) {
    return shape_error("label_frames", dims, "(*batch, U)");
  }
  params.final_blank = final_blank;
  params.label_frames = label_frames->typed_data();
  return ffi::Error::Success();
}

}  // namespace jax_rnnt
