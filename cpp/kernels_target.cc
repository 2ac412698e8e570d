// All kernels for one instruction set. The build compiles this file several times, with
// JAX_RNNT_TARGET (a namespace), JAX_RNNT_VECTOR_BYTES and the compiler flags that belong to them.
#include "arcs_backward.h"
#include "arcs_forward.h"
#include "banded_kernels.h"
#include "best_duration_path_kernel.h"
#include "best_path_kernels.h"
#include "duration_lattice.h"
#include "factored_backward.h"
#include "factored_forward.h"
#include "lattice_kernels.h"
#include "row_sums.h"

#define JAX_RNNT_STRING(x) #x
#define JAX_RNNT_NAME(x) JAX_RNNT_STRING(x)

namespace jax_rnnt::JAX_RNNT_TARGET {
namespace {

// Calls run(In{}) for the storage type of a dtype.
template <class Run>
void with_storage_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::kF32: return run(float{});
    case DType::kF64: return run(double{});
    case DType::kBF16: return run(BFloat16{});
    case DType::kF16: return run(Float16{});
  }
}

void arcs_forward(const ArcsForward& p, DType dtype, int64_t begin, int64_t end) {
  with_storage_type(dtype, [&](auto in) {
    using In = decltype(in);
    if (p.frames == 1 && p.cells == 1 && p.labels_per_utterance == 1) {
      return arcs_forward_rows<In>(p, begin, end);
    }
    for (int64_t item = begin; item < end; ++item) arcs_forward_frame<In>(p, item);
  });
}

void arcs_backward(const ArcsBackward& p, DType dtype, int64_t begin, int64_t end) {
  with_storage_type(dtype, [&](auto in) {
    with_storage_type(p.gradient_dtype, [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      if constexpr (kIsGradientType<In, Out>) {
        const bool hat = p.normalization == Normalization::kHat, clamp = p.clamp > 0;
        const auto run = hat     ? clamp ? arcs_backward_frames<true, true, In, Out>
                                         : arcs_backward_frames<true, false, In, Out>
                         : clamp ? arcs_backward_frames<false, true, In, Out>
                                 : arcs_backward_frames<false, false, In, Out>;
        run(p, begin, end);
      }
    });
  });
}

// `run(real, item)` for all of them, `real` of the type in which a recursion over arcs of `dtype`
// computes.
template <class Run>
void for_each_recursion(DType dtype, int64_t begin, int64_t end, Run run) {
  for (int64_t item = begin; item < end; ++item) {
    if (dtype == DType::kF64) {
      run(double{}, item);
    } else {
      run(float{}, item);
    }
  }
}

void lattice(const Lattice& p, DType dtype, int64_t begin, int64_t end) {
  for_each_recursion(dtype, begin, end,
                     [&](auto real, int64_t item) { lattice_utterance<decltype(real)>(p, item); });
}

void lattice_step(const Lattice& p, DType dtype, int64_t utterance, LatticeStep step) {
  for_each_recursion(dtype, utterance, utterance + 1, [&](auto real, int64_t item) {
    step_of_utterance<decltype(real)>(p, item, step);
  });
}

void banded_lattice(const BandedLattice& p, DType dtype, int64_t begin, int64_t end) {
  for_each_recursion(dtype, begin, end, [&](auto real, int64_t item) {
    using Real = decltype(real);
    banded_lattice_group<Real>(p, item * kLanes<Real>);
  });
}

void duration_lattice(const DurationLattice& p, DType dtype, int64_t begin, int64_t end) {
  for_each_recursion(dtype, begin, end, [&](auto real, int64_t item) {
    duration_lattice_utterance<decltype(real)>(p, item);
  });
}

void best_path(const BestPath& p, DType dtype, int64_t begin, int64_t end) {
  for_each_recursion(dtype, begin, end, [&](auto real, int64_t item) {
    best_path_utterance<decltype(real)>(p, item);
  });
}

void best_duration_path(const BestDurationPath& p, DType dtype, int64_t begin, int64_t end) {
  for_each_recursion(dtype, begin, end, [&](auto real, int64_t item) {
    best_duration_path_utterance<decltype(real)>(p, item);
  });
}

// `run(in, item)` for all of them, `in` of the storage type.
template <class Run>
void for_each_item(DType dtype, int64_t begin, int64_t end, Run run) {
  with_storage_type(dtype, [&](auto in) {
    for (int64_t item = begin; item < end; ++item) run(in, item);
  });
}

void factored_positions(const FactoredForward& p, DType dtype, int64_t begin, int64_t end) {
  for_each_item(dtype, begin, end,
                [&](auto in, int64_t item) { factored_positions_block<decltype(in)>(p, item); });
}

void factored_frames(const FactoredForward& p, DType dtype, int64_t begin, int64_t end) {
  for_each_item(dtype, begin, end,
                [&](auto in, int64_t item) { factored_frames_block<decltype(in)>(p, item); });
}

void factored_sums(const FactoredBackward& p, DType dtype, int64_t begin, int64_t end) {
  for_each_item(dtype, begin, end,
                [&](auto in, int64_t item) { factored_sums_utterance<decltype(in)>(p, item); });
}

void factored_classes(const FactoredBackward& p, DType dtype, int64_t begin, int64_t end) {
  for_each_item(dtype, begin, end,
                [&](auto in, int64_t item) { factored_classes_block<decltype(in)>(p, item); });
}

void row_sums(const RowSums& p, DType dtype, int64_t begin, int64_t end) {
  with_storage_type(dtype, [&](auto in) { sum_rows<decltype(in)>(p, begin, end); });
}

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels table{JAX_RNNT_NAME(JAX_RNNT_TARGET),
                                 JAX_RNNT_VECTOR_BYTES,
                                 arcs_forward,
                                 arcs_backward,
                                 lattice,
                                 lattice_step,
                                 banded_lattice,
                                 duration_lattice,
                                 best_path,
                                 best_duration_path,
                                 factored_positions,
                                 factored_frames,
                                 factored_sums,
                                 factored_classes,
                                 row_sums};
  return table;
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
