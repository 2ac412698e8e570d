// Decodes and checks XLA FFI calls, then runs the kernels on XLA's thread pool. Shapes and dtypes
// are checked here because a wrong one would be a memory error; data values never give an error
// (another device could be left waiting in a collective), the kernels turn bad ones into NaN.
#include "ffi_handlers.h"

#include <string>

#include "dispatch.h"
#include "memory.h"
#include "parallel.h"

namespace jax_rnnt {
namespace {

namespace ffi = xla::ffi;
using Int32Buffer = ffi::Buffer<ffi::S32>;
using Dimensions = ffi::Span<const int64_t>;

// The kernels see all leading dimensions as one batch.
int64_t product(Dimensions dims, size_t count) {
  int64_t size = 1;
  for (size_t i = 0; i < count; ++i) size *= dims[i];
  return size;
}

int64_t elements(Dimensions dims) { return product(dims, dims.size()); }

ffi::Error shape_error(const char* what, Dimensions dims, const std::string& expected) {
  std::string message = std::string("jax_rnnt: ") + what + " has shape (";
  for (size_t i = 0; i < dims.size(); ++i) message += (i ? ", " : "") + std::to_string(dims[i]);
  return ffi::Error::InvalidArgument(message + "), expected " + expected);
}

bool decode_dtype(ffi::DataType type, DType& dtype) {
  switch (type) {
    case ffi::F32: dtype = DType::kF32; return true;
    case ffi::F64: dtype = DType::kF64; return true;
    case ffi::BF16: dtype = DType::kBF16; return true;
    case ffi::F16: dtype = DType::kF16; return true;
    default: return false;
  }
}

ffi::DataType accumulator_type(DType dtype) { return dtype == DType::kF64 ? ffi::F64 : ffi::F32; }

// Sizes shared by the arcs calls, read off the logits' shape and checked against the other
// operands.
struct ArcsSizes {
  int64_t batch, frames, cells, labels_per_utterance, classes;
  DType dtype;

  ffi::Error decode(const ffi::AnyBuffer& logits, const Int32Buffer& labels, int64_t blank_id) {
    const Dimensions dims = logits.dimensions();
    if (dims.size() < 3) return shape_error("logits", dims, "(*batch, T, U+1, V)");
    const size_t leading = dims.size() - 3;
    batch = product(dims, leading);
    frames = dims[leading], cells = dims[leading + 1], classes = dims[leading + 2];
    if (!decode_dtype(logits.element_type(), dtype)) {
      return ffi::Error::InvalidArgument("jax_rnnt: logits must be f32, f64, bf16 or f16");
    }
    if (cells < 1) return shape_error("logits", dims, "U+1 >= 1 cells a frame");
    if (blank_id < 0 || blank_id >= classes) {
      return ffi::Error::InvalidArgument(
          "jax_rnnt: blank_id " + std::to_string(blank_id) +
          " is not a class of logits with V = " + std::to_string(classes));
    }
    const int64_t labels_given = elements(labels.dimensions());
    labels_per_utterance = labels_given == batch * cells ? cells : cells - 1;
    if (labels_given != batch * labels_per_utterance) {
      return shape_error("labels", labels.dimensions(), "(*batch, U) or (*batch, U+1)");
    }
    return ffi::Error::Success();
  }

  ffi::Error check_plane(const char* name, Dimensions dims, ffi::DataType type) const {
    if (elements(dims) != batch * frames * cells || type != accumulator_type(dtype)) {
      return shape_error(name, dims, "(*batch, T, U+1) in the accumulator's dtype");
    }
    return ffi::Error::Success();
  }
};

// Exported programs may come from another version.
template <class Enum>
ffi::Error check_code(const char* name, int64_t code, Enum last) {
  if (code < 0 || code > static_cast<int64_t>(last)) {
    return ffi::Error::InvalidArgument("jax_rnnt: unknown " + std::string(name) + " code " +
                                       std::to_string(code));
  }
  return ffi::Error::Success();
}

ffi::Error check_bounds(const Int32Buffer& bounds, int64_t batch) {
  static_assert(sizeof(Bounds) == 4 * sizeof(int32_t));
  if (elements(bounds.dimensions()) != batch * 4) {
    return shape_error("bounds", bounds.dimensions(), "(*batch, 4)");
  }
  return ffi::Error::Success();
}

#define JAX_RNNT_RETURN_IF_ERROR(expression)                            \
  do {                                                                  \
    if (ffi::Error error = (expression); error.failure()) return error; \
  } while (false)

ffi::Error arcs_fwd(ffi::ThreadPool pool, ffi::AnyBuffer logits, Int32Buffer labels,
                    Int32Buffer bounds, ffi::Result<ffi::AnyBuffer> blank,
                    ffi::Result<ffi::AnyBuffer> label, ffi::Result<ffi::AnyBuffer> denominators,
                    int64_t blank_id, int64_t normalization) {
  ArcsSizes s;
  JAX_RNNT_RETURN_IF_ERROR(s.decode(logits, labels, blank_id));
  JAX_RNNT_RETURN_IF_ERROR(check_code("normalization", normalization, Normalization::kHat));
  JAX_RNNT_RETURN_IF_ERROR(check_bounds(bounds, s.batch));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("blank", blank->dimensions(), blank->element_type()));
  JAX_RNNT_RETURN_IF_ERROR(s.check_plane("label", label->dimensions(), label->element_type()));
  JAX_RNNT_RETURN_IF_ERROR(
      s.check_plane("denominators", denominators->dimensions(), denominators->element_type()));
  const ArcsForward p{
      .batch = s.batch,
      .frames = s.frames,
      .cells = s.cells,
      .labels_per_utterance = s.labels_per_utterance,
      .classes = s.classes,
      .blank_id = blank_id,
      .normalization = Normalization(normalization),
      .logits = logits.untyped_data(),
      .labels = labels.typed_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .blank = blank->untyped_data(),
      .label = label->untyped_data(),
      .denominators = denominators->untyped_data(),
  };
  const Kernels& kernels = active_kernels();
  const int64_t frame_bytes = logits.size_bytes() / std::max<int64_t>(1, s.batch * s.frames);
  parallel_for(pool, s.batch * s.frames, frame_bytes,
               [&](int64_t begin, int64_t end) { kernels.arcs_forward(p, s.dtype, begin, end); });
  return ffi::Error::Success();
}

ffi::Error arcs_bwd(ffi::ThreadPool pool, ffi::AnyBuffer logits, Int32Buffer labels,
                    ffi::AnyBuffer denominators, ffi::AnyBuffer blank_weights,
                    ffi::AnyBuffer label_weights, ffi::AnyBuffer cotangents,
                    ffi::Result<ffi::AnyBuffer> gradient, int64_t blank_id, int64_t normalization,
                    double clamp) {
  ArcsSizes s;
  JAX_RNNT_RETURN_IF_ERROR(s.decode(logits, labels, blank_id));
  JAX_RNNT_RETURN_IF_ERROR(check_code("normalization", normalization, Normalization::kHat));
  for (const auto& [name, plane] :
       {std::pair<const char*, const ffi::AnyBuffer&>{"denominators", denominators},
        {"blank_weights", blank_weights},
        {"label_weights", label_weights}}) {
    JAX_RNNT_RETURN_IF_ERROR(s.check_plane(name, plane.dimensions(), plane.element_type()));
  }
  if (elements(cotangents.dimensions()) != s.batch ||
      cotangents.element_type() != accumulator_type(s.dtype)) {
    return shape_error("cotangents", cotangents.dimensions(),
                       "(*batch,) in the accumulator's dtype");
  }
  if (elements(gradient->dimensions()) != elements(logits.dimensions()) ||
      gradient->element_type() != logits.element_type()) {
    return shape_error("gradient", gradient->dimensions(), "logits' shape and dtype");
  }
  const ArcsBackward p{
      .batch = s.batch,
      .frames = s.frames,
      .cells = s.cells,
      .labels_per_utterance = s.labels_per_utterance,
      .classes = s.classes,
      .blank_id = blank_id,
      .normalization = Normalization(normalization),
      .clamp = clamp,
      .logits = logits.untyped_data(),
      .labels = labels.typed_data(),
      .denominators = denominators.untyped_data(),
      .blank_weights = blank_weights.untyped_data(),
      .label_weights = label_weights.untyped_data(),
      .cotangents = cotangents.untyped_data(),
      .gradient = gradient->untyped_data(),
  };
  prefer_huge_pages(gradient->untyped_data(), gradient->size_bytes());
  const Kernels& kernels = active_kernels();
  const int64_t frame_bytes = 2 * logits.size_bytes() / std::max<int64_t>(1, s.batch * s.frames);
  parallel_for(pool, s.batch * s.frames, frame_bytes,
               [&](int64_t begin, int64_t end) { kernels.arcs_backward(p, s.dtype, begin, end); });
  return ffi::Error::Success();
}

struct LatticeOptions {
  int64_t topology;
  bool final_blank;
  double delay_penalty;
};

// `posteriors` is null, or points to the two planes.
ffi::Error run_lattice(ffi::ThreadPool& pool, const ffi::AnyBuffer& blank,
                       const ffi::AnyBuffer& label, const Int32Buffer& bounds,
                       ffi::AnyBuffer& log_likelihood, ffi::AnyBuffer* posteriors,
                       ffi::AnyBuffer& workspace, const LatticeOptions& options) {
  const Dimensions dims = blank.dimensions();
  const ffi::DataType type = blank.element_type();
  if (dims.size() < 2 || dims.back() < 1) return shape_error("blank", dims, "(*batch, T, U+1)");
  if (type != ffi::F32 && type != ffi::F64) {
    return ffi::Error::InvalidArgument("jax_rnnt: arcs must be f32 or f64");
  }
  const size_t leading = dims.size() - 2;
  const int64_t batch = product(dims, leading), frames = dims[leading], cells = dims[leading + 1];
  const auto is_plane = [&](const ffi::AnyBuffer& plane) {
    return elements(plane.dimensions()) == elements(dims) && plane.element_type() == type;
  };
  if (!is_plane(label)) return shape_error("label", label.dimensions(), "blank's shape and dtype");
  JAX_RNNT_RETURN_IF_ERROR(check_bounds(bounds, batch));
  if (elements(log_likelihood.dimensions()) != batch || log_likelihood.element_type() != type) {
    return shape_error("log_likelihood", log_likelihood.dimensions(), "(*batch,)");
  }
  if (posteriors != nullptr && !(is_plane(posteriors[0]) && is_plane(posteriors[1]))) {
    return shape_error("posteriors", posteriors[0].dimensions(), "blank's shape and dtype");
  }
  JAX_RNNT_RETURN_IF_ERROR(check_code("topology", options.topology, Topology::kConstrained));
  const Topology topology = Topology(options.topology);
  const int64_t needed = lattice_workspace_elements(frames, cells, topology, posteriors != nullptr);
  const int64_t given = elements(workspace.dimensions()) / std::max<int64_t>(1, batch);
  if (workspace.element_type() != type || given < needed) {
    return shape_error("workspace", workspace.dimensions(),
                       "(*batch, " + std::to_string(needed) + ") in the arcs' dtype");
  }
  const Lattice p{
      .batch = batch,
      .frames = frames,
      .cells = cells,
      .topology = topology,
      .final_blank = options.final_blank,
      .delay_penalty = options.delay_penalty,
      .blank = blank.untyped_data(),
      .label = label.untyped_data(),
      .bounds = reinterpret_cast<const Bounds*>(bounds.typed_data()),
      .log_likelihood = log_likelihood.untyped_data(),
      .blank_posteriors = posteriors ? posteriors[0].untyped_data() : nullptr,
      .label_posteriors = posteriors ? posteriors[1].untyped_data() : nullptr,
      .workspace = workspace.untyped_data(),
      .workspace_elements = given,
  };
  prefer_huge_pages(workspace.untyped_data(), workspace.size_bytes());
  if (posteriors != nullptr) {
    prefer_huge_pages(posteriors[0].untyped_data(), posteriors[0].size_bytes());
    prefer_huge_pages(posteriors[1].untyped_data(), posteriors[1].size_bytes());
  }
  const DType dtype = type == ffi::F64 ? DType::kF64 : DType::kF32;
  const Kernels& kernels = active_kernels();
  // A cell costs a few nanoseconds, as much as streaming some tens of bytes.
  parallel_for(pool, batch, frames * cells * 64,
               [&](int64_t begin, int64_t end) { kernels.lattice(p, dtype, begin, end); });
  return ffi::Error::Success();
}

ffi::Error lattice(ffi::ThreadPool pool, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                   Int32Buffer bounds, ffi::Result<ffi::AnyBuffer> log_likelihood,
                   ffi::Result<ffi::AnyBuffer> blank_posteriors,
                   ffi::Result<ffi::AnyBuffer> label_posteriors,
                   ffi::Result<ffi::AnyBuffer> workspace, int64_t topology, bool final_blank,
                   double delay_penalty) {
  ffi::AnyBuffer posteriors[2] = {*blank_posteriors, *label_posteriors};
  return run_lattice(pool, blank, label, bounds, *log_likelihood, posteriors, *workspace,
                     {topology, final_blank, delay_penalty});
}

ffi::Error lattice_score(ffi::ThreadPool pool, ffi::AnyBuffer blank, ffi::AnyBuffer label,
                         Int32Buffer bounds, ffi::Result<ffi::AnyBuffer> log_likelihood,
                         ffi::Result<ffi::AnyBuffer> workspace, int64_t topology, bool final_blank,
                         double delay_penalty) {
  return run_lattice(pool, blank, label, bounds, *log_likelihood, nullptr, *workspace,
                     {topology, final_blank, delay_penalty});
}

}  // namespace
}  // namespace jax_rnnt

namespace ffi = xla::ffi;

XLA_FFI_DEFINE_HANDLER_SYMBOL(jax_rnnt_arcs_fwd_cpu, jax_rnnt::arcs_fwd,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()         // logits
                                  .Arg<ffi::Buffer<ffi::S32>>()  // labels
                                  .Arg<ffi::Buffer<ffi::S32>>()  // bounds
                                  .Ret<ffi::AnyBuffer>()         // blank
                                  .Ret<ffi::AnyBuffer>()         // label
                                  .Ret<ffi::AnyBuffer>()         // denominators
                                  .Attr<int64_t>("blank_id")
                                  .Attr<int64_t>("normalization"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jax_rnnt_arcs_bwd_cpu, jax_rnnt::arcs_bwd,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()         // logits
                                  .Arg<ffi::Buffer<ffi::S32>>()  // labels
                                  .Arg<ffi::AnyBuffer>()         // denominators
                                  .Arg<ffi::AnyBuffer>()         // blank_weights
                                  .Arg<ffi::AnyBuffer>()         // label_weights
                                  .Arg<ffi::AnyBuffer>()         // cotangents
                                  .Ret<ffi::AnyBuffer>()         // gradient
                                  .Attr<int64_t>("blank_id")
                                  .Attr<int64_t>("normalization")
                                  .Attr<double>("clamp"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jax_rnnt_lattice_cpu, jax_rnnt::lattice,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()         // blank
                                  .Arg<ffi::AnyBuffer>()         // label
                                  .Arg<ffi::Buffer<ffi::S32>>()  // bounds
                                  .Ret<ffi::AnyBuffer>()         // log_likelihood
                                  .Ret<ffi::AnyBuffer>()         // blank_posteriors
                                  .Ret<ffi::AnyBuffer>()         // label_posteriors
                                  .Ret<ffi::AnyBuffer>()         // workspace
                                  .Attr<int64_t>("topology")
                                  .Attr<bool>("final_blank")
                                  .Attr<double>("delay_penalty"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jax_rnnt_lattice_score_cpu, jax_rnnt::lattice_score,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()         // blank
                                  .Arg<ffi::AnyBuffer>()         // label
                                  .Arg<ffi::Buffer<ffi::S32>>()  // bounds
                                  .Ret<ffi::AnyBuffer>()         // log_likelihood
                                  .Ret<ffi::AnyBuffer>()         // workspace
                                  .Attr<int64_t>("topology")
                                  .Attr<bool>("final_blank")
                                  .Attr<double>("delay_penalty"));
