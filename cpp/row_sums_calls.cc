#include "row_sums_calls.h"

#include "ffi_decode.h"

namespace jax_rnnt {

ffi::Error decode(RowSums& params, DType& dtype, ffi::AnyBuffer values, Int32Buffer numbers,
                  AnyResult sums) {
  const Dimensions dims = values.dimensions(), sum_dims = sums->dimensions();
  if (dims.size() < 2) return shape_error("values", dims, "(*batch, N, C)");
  if (!decode_dtype(values.element_type(), dtype)) {
    return ffi::Error::InvalidArgument("jax_rnnt: values must be f32, f64, bf16 or f16");
  }
  const size_t batch_dims = dims.size() - 2;
  const int64_t batch = product(dims, batch_dims), rows = dims[batch_dims], columns = dims.back();
  if (elements(numbers.dimensions()) != batch * rows) {
    return shape_error("numbers", numbers.dimensions(), "(*batch, N)");
  }
  if (sum_dims.size() != dims.size() || product(sum_dims, batch_dims) != batch ||
      sum_dims.back() != columns || sums->element_type() != values.element_type()) {
    return shape_error("sums", sum_dims, "(*batch, R, C) of the values' dtype");
  }
  const int64_t sums_per_batch = sum_dims[batch_dims];
  if (sums_per_batch > INT32_MAX) return shape_error("sums", sum_dims, "less than 2^31 a batch");
  params = {
      .batch = batch,
      .rows = rows,
      .columns = columns,
      .sums_per_batch = sums_per_batch,
      .values = values.untyped_data(),
      .numbers = numbers.typed_data(),
      .sums = sums->untyped_data(),
  };
  return ffi::Error::Success();
}

}  // namespace jax_rnnt
