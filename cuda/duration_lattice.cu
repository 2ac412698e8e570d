// The recursion over arcs with durations. An anti-diagonal t + u = n of the lattice, a front, can
// be computed at once: all arcs lead to later fronts. A block to the alphas of an utterance, and
// another one to its betas at the same time; posteriors come after, a thread to a cell.
//
// Numbers are as in cpp/duration_lattice.h. Where alphas would be there are their products with the
// arcs that leave their node, which are what later fronts and posteriors need.
#include <algorithm>

#include "extended.h"
#include "kernels.h"
#include "launch.h"

namespace jax_rnnt::cuda {
namespace {

inline constexpr int64_t kMostFrontThreads = 384;
inline constexpr int kPosteriorThreads = 256;

// Of an utterance's workspace, in numbers, which are two elements each.
struct DurationLayout {
  int64_t by_blank, by_label, beta;  // planes (T, W)
  int64_t likelihood;
  int64_t total;
};

inline DurationLayout duration_layout(int64_t frames, int64_t cells, bool with_posteriors) {
  const int64_t plane = frames * cells;
  const int64_t planes = with_posteriors ? 3 : 2;
  return {0, plane, 2 * plane, planes * plane, planes * plane + 1};
}

// With the mantissa in [1, 2); what falls out of range is zero.
template <class T>
__device__ __forceinline__ Extended<T> in_range(Extended<T> x) {
  return relative_to(normalised(x), Exponent<T>(0));
}

// One utterance; frames and label positions count from where it begins.
template <class T>
struct Utterance {
  bool valid;
  int frames, labels;
  int64_t cells;       // from one frame to the next
  int64_t plane_size;  // from one duration to the next
  int64_t first_cell;  // of the batch's planes
  int64_t first_duration;
  const T *blank, *label, *duration;
  Extended<T>*by_blank, *by_label, *beta, *likelihood;

  __device__ Utterance(const DurationLattice& p, const DurationLayout& layout, int64_t b) {
    const Bounds bounds = p.bounds[b];
    valid = bounds.valid(p.frames, p.cells - 1);
    frames = valid ? bounds.frame_end - bounds.frame_begin : 0;
    labels = valid ? bounds.label_end - bounds.label_begin : 0;
    cells = p.cells;
    plane_size = p.frames * p.cells;
    const int64_t first = valid ? bounds.frame_begin * cells + bounds.label_begin : 0;
    first_cell = b * plane_size + first;
    first_duration = b * plane_size * p.durations.number + first;
    blank = static_cast<const T*>(p.blank) + first_cell;
    label = static_cast<const T*>(p.label) + first_cell;
    duration = static_cast<const T*>(p.duration) + first_duration;
    Extended<T>* numbers =
        reinterpret_cast<Extended<T>*>(static_cast<T*>(p.workspace) + b * p.workspace_elements);
    by_blank = numbers + layout.by_blank;
    by_label = numbers + layout.by_label;
    beta = numbers + layout.beta;
    likelihood = numbers + layout.likelihood;
  }

  __device__ __forceinline__ int64_t cell(int t, int u) const { return t * cells + u; }
  __device__ __forceinline__ int fronts() const { return frames + labels; }
  // The probability of duration i in a cell.
  __device__ __forceinline__ Extended<T> duration_at(int i, int64_t cell) const {
    return exp_extended(duration[i * plane_size + cell]);
  }

  __device__ __forceinline__ bool has_node(int t, int u) const {
    return 0 <= t && t < frames && u <= labels;
  }
};

// Durations are taken as many at a time as models have: their loads are on the way together.
inline constexpr int kGroup = 5;

// The sum of a group's numbers.
template <class T, int kNumber>
__device__ __forceinline__ Extended<T> sum_of(const Extended<T> (&terms)[kNumber]) {
  Exponent<T> top = terms[0].exponent;
#pragma unroll
  for (int i = 1; i < kNumber; ++i) top = larger(top, terms[i].exponent);
  T sum = 0;
#pragma unroll
  for (int i = 0; i < kNumber; ++i) sum += terms[i].mantissa * exp2_int<T>(terms[i].exponent - top);
  return in_range(Extended<T>{sum, top});
}

// Front after front, the threads of a block side by side. `load(t, u)` reads what a node needs of
// the arcs, `finish(t, u, loaded)` computes it from that and earlier fronts. If each thread has one
// label position, it reads the arcs of the next front before it waits for the others.
template <int kStep, class T, class Load, class Finish>
__device__ __forceinline__ void run_fronts(const Utterance<T>& of, Load load, Finish finish) {
  const int u = int(threadIdx.x), fronts = of.fronts(), first = kStep > 0 ? 0 : fronts - 1;
  if (of.labels >= int(blockDim.x)) {
    for (int i = 0, n = first; i < fronts; ++i, n += kStep) {
      for (int v = u; v <= of.labels; v += int(blockDim.x)) {
        if (of.has_node(n - v, v)) finish(n - v, v, load(n - v, v));
      }
      __syncthreads();
    }
    return;
  }
  auto ahead = load(first - u, u);
  for (int i = 0, n = first; i < fronts; ++i, n += kStep) {
    const auto loaded = ahead;
    ahead = load(n + kStep - u, u);
    if (of.has_node(n - u, u)) finish(n - u, u, loaded);
    __syncthreads();
  }
}

// What alpha of a node needs of the arcs: its own, and the durations of those that lead to it.
template <class T>
struct ArcsOfAlpha {
  T blank, label;
  T of_blank[kGroup], of_label[kGroup];
};

template <class T>
__device__ __forceinline__ void run_alphas(const Utterance<T>& of, const Durations& durations) {
  constexpr T kNone = -Constants<T>::kInfinity;
  const auto load_durations = [&](int t, int u, int first, ArcsOfAlpha<T>& to) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      to.of_blank[k] = to.of_label[k] = kNone;
      const int i = first + k;
      if (i >= durations.number || durations.frames[i] > t) continue;
      const int d = durations.frames[i];
      const T* from = of.duration + i * of.plane_size + of.cell(t - d, u);
      if (d > 0) to.of_blank[k] = from[0];
      if (u > 0 && durations.labels_take(d)) to.of_label[k] = from[-1];
    }
  };
  const auto sum_over_durations = [&](int t, int u, int first, const ArcsOfAlpha<T>& arcs) {
    Extended<T> terms[2 * kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      Extended<T> by_blank = dead<T>(), by_label = dead<T>();
      const int i = first + k;
      if (i < durations.number && durations.frames[i] <= t) {
        const int d = durations.frames[i];
        const int64_t from = of.cell(t - d, u);
        if (d > 0) by_blank = of.by_blank[from];
        if (u > 0 && durations.labels_take(d)) by_label = of.by_label[from - 1];
      }
      terms[2 * k] = multiply(by_blank, exp_extended(arcs.of_blank[k]));
      terms[2 * k + 1] = multiply(by_label, exp_extended(arcs.of_label[k]));
    }
    return sum_of(terms);
  };
  const auto load = [&](int t, int u) {
    ArcsOfAlpha<T> arcs{kNone, kNone, {}, {}};
    if (!of.has_node(t, u)) return arcs;
    arcs.blank = of.blank[of.cell(t, u)];
    if (u < of.labels) arcs.label = of.label[of.cell(t, u)];
    load_durations(t, u, 0, arcs);
    return arcs;
  };
  run_fronts<1>(of, load, [&](int t, int u, ArcsOfAlpha<T> arcs) {
    Extended<T> alpha = t + u == 0 ? Extended<T>{T(1), 0} : sum_over_durations(t, u, 0, arcs);
    for (int first = kGroup; first < durations.number; first += kGroup) {
      load_durations(t, u, first, arcs);
      alpha = in_range(add(alpha, sum_over_durations(t, u, first, arcs)));
    }
    const int64_t here = of.cell(t, u);
    of.by_blank[here] = in_range(multiply(alpha, exp_extended(arcs.blank)));
    of.by_label[here] = in_range(multiply(alpha, exp_extended(arcs.label)));
  });
}

// The sum over the blanks that come to the end.
template <class T>
__device__ __forceinline__ Extended<T> likelihood_of(const Utterance<T>& of,
                                                     const Durations& durations) {
  Extended<T> sum = dead<T>();
  for (int i = 0; i < durations.number; ++i) {
    const int d = durations.frames[i];
    if (d == 0 || d > of.frames) continue;
    const int64_t from = of.cell(of.frames - d, of.labels);
    sum = add(sum, multiply(of.by_blank[from], of.duration_at(i, from)));
  }
  return in_range(sum);
}

// beta of the node that a blank comes to.
template <class T>
__device__ __forceinline__ Extended<T> beta_at(const Utterance<T>& of, int t, int u) {
  if (t < of.frames) return of.beta[of.cell(t, u)];
  return u == of.labels ? Extended<T>{T(1), 0} : dead<T>();
}

// What beta of a node needs of the arcs, all of which leave it.
template <class T>
struct ArcsOfBeta {
  T blank, label;
  T duration[kGroup];
};

template <class T>
__device__ __forceinline__ void run_betas(const Utterance<T>& of, const Durations& durations) {
  constexpr T kNone = -Constants<T>::kInfinity;
  const auto load_durations = [&](int t, int u, int first, ArcsOfBeta<T>& to) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const int i = first + k;
      const bool leads_on = i < durations.number && t + durations.frames[i] <= of.frames;
      to.duration[k] = leads_on ? of.duration[i * of.plane_size + of.cell(t, u)] : kNone;
    }
  };
  const auto sum_over_durations = [&](int t, int u, int first, const ArcsOfBeta<T>& arcs) {
    const Extended<T> blank = exp_extended(arcs.blank), label = exp_extended(arcs.label);
    Extended<T> terms[2 * kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      Extended<T> after_blank = dead<T>(), after_label = dead<T>();
      const int i = first + k;
      if (i < durations.number && t + durations.frames[i] <= of.frames) {
        const int d = durations.frames[i], to = t + d;
        if (d > 0) after_blank = beta_at(of, to, u);
        if (u < of.labels && to < of.frames && durations.labels_take(d)) {
          after_label = of.beta[of.cell(to, u + 1)];
        }
      }
      const Extended<T> duration = exp_extended(arcs.duration[k]);
      terms[2 * k] = multiply(in_range(multiply(blank, duration)), after_blank);
      terms[2 * k + 1] = multiply(in_range(multiply(label, duration)), after_label);
    }
    return sum_of(terms);
  };
  const auto load = [&](int t, int u) {
    ArcsOfBeta<T> arcs{kNone, kNone, {}};
    if (!of.has_node(t, u)) return arcs;
    arcs.blank = of.blank[of.cell(t, u)];
    if (u < of.labels) arcs.label = of.label[of.cell(t, u)];
    load_durations(t, u, 0, arcs);
    return arcs;
  };
  run_fronts<-1>(of, load, [&](int t, int u, ArcsOfBeta<T> arcs) {
    Extended<T> beta = sum_over_durations(t, u, 0, arcs);
    for (int first = kGroup; first < durations.number; first += kGroup) {
      load_durations(t, u, first, arcs);
      beta = in_range(add(beta, sum_over_durations(t, u, first, arcs)));
    }
    of.beta[of.cell(t, u)] = beta;
  });
}

// Even blocks have alphas, odd ones betas; without posteriors there are only alphas.
template <class T, bool kWithBetas>
__global__ void __launch_bounds__(kMostFrontThreads)
    duration_fronts_kernel(const DurationLattice p, const DurationLayout layout) {
  const int64_t b = kWithBetas ? blockIdx.x / 2 : blockIdx.x;
  const Utterance<T> of(p, layout, b);
  if (kWithBetas && blockIdx.x % 2 == 1) {
    run_betas(of, p.durations);
    return;
  }
  T& log_likelihood = static_cast<T*>(p.log_likelihood)[b];
  if (of.frames == 0) {
    if (threadIdx.x > 0) return;
    *of.likelihood = dead<T>();
    log_likelihood = !of.valid        ? not_a_number<T>()
                     : of.labels == 0 ? T(0)
                                      : -Constants<T>::kInfinity;
    return;
  }
  run_alphas(of, p.durations);
  if (threadIdx.x > 0) return;
  const Extended<T> likelihood = likelihood_of(of, p.durations);
  *of.likelihood = likelihood;
  constexpr T kLn2 = T(0.69314718055994530942);
  log_likelihood = likelihood.mantissa == 0
                       ? -Constants<T>::kInfinity
                       : multiply_add(T(likelihood.exponent), kLn2, log_of(likelihood.mantissa));
}

// x * rest / likelihood.
template <class T>
__device__ __forceinline__ T posterior(Extended<T> x, Extended<T> rest, Extended<T> likelihood) {
  // Floors that keep the sum from overflowing; what reaches them is 0 in any case.
  const Exponent<T> first = larger(x.exponent - likelihood.exponent, kDead<T>);
  const Exponent<T> exponent = first + larger(rest.exponent, kDead<T>);
  const Exponent<T> ceiling = Constants<T>::kExponentBias;
  return x.mantissa * rest.mantissa * exp2_int<T>(smaller(exponent, ceiling)) / likelihood.mantissa;
}

// A thread to each cell of the padded planes.
template <class T>
__global__ void __launch_bounds__(kPosteriorThreads)
    duration_posteriors_kernel(const DurationLattice p, const DurationLayout layout) {
  const int64_t plane_size = p.frames * p.cells;
  const int64_t index = int64_t(blockIdx.x) * kPosteriorThreads + threadIdx.x;
  const int64_t b = index / plane_size;
  if (b >= p.batch) return;
  const int64_t place = index - b * plane_size;
  const Bounds bounds = p.bounds[b];
  const Utterance<T> of(p, layout, b);
  const int t = int(place / p.cells) - bounds.frame_begin;
  const int u = int(place % p.cells) - bounds.label_begin;
  const Extended<T> likelihood = *of.likelihood;
  // Neither a zero nor NaN.
  const bool inside =
      likelihood.mantissa > 0 && 0 <= t && t < of.frames && 0 <= u && u <= of.labels;
  T* durations = static_cast<T*>(p.duration_posteriors) + b * plane_size * p.durations.number;
  T blanks = 0, labels = 0;
  for (int i = 0; i < p.durations.number; ++i) {
    const int d = p.durations.frames[i];
    T by_blank = 0, by_label = 0;
    if (inside && t + d <= of.frames) {
      const int64_t here = of.cell(t, u);
      const Extended<T> duration = of.duration_at(i, here);
      if (d > 0) {
        const Extended<T> rest = in_range(multiply(duration, beta_at(of, t + d, u)));
        by_blank = posterior(of.by_blank[here], rest, likelihood);
      }
      if (u < of.labels && t + d < of.frames && p.durations.labels_take(d)) {
        const Extended<T> after = of.beta[of.cell(t + d, u + 1)];
        by_label = posterior(of.by_label[here], in_range(multiply(duration, after)), likelihood);
      }
    }
    durations[i * plane_size + place] = by_blank + by_label;
    blanks += by_blank;
    labels += by_label;
  }
  static_cast<T*>(p.blank_posteriors)[index] = blanks;
  static_cast<T*>(p.label_posteriors)[index] = labels;
}

template <class T>
cudaError_t launch_duration_lattice(const DurationLattice& p, cudaStream_t stream) {
  const bool with_posteriors = p.blank_posteriors != nullptr;
  const DurationLayout layout = duration_layout(p.frames, p.cells, with_posteriors);
  const int threads = int(std::min((p.cells + kWarp - 1) / kWarp * kWarp, kMostFrontThreads));
  if (!with_posteriors) {
    return launch(duration_fronts_kernel<T, false>, Grid{p.batch, threads}, stream, p, layout);
  }
  const cudaError_t status =
      launch(duration_fronts_kernel<T, true>, Grid{2 * p.batch, threads}, stream, p, layout);
  if (status != cudaSuccess) return status;
  const int64_t cells = p.batch * p.frames * p.cells;
  const Grid grid{(cells + kPosteriorThreads - 1) / kPosteriorThreads, kPosteriorThreads};
  return launch(duration_posteriors_kernel<T>, grid, stream, p, layout);
}

}  // namespace

cudaError_t duration_lattice(const DurationLattice& p, DType dtype, cudaStream_t stream) {
  return dtype == DType::kF64 ? launch_duration_lattice<double>(p, stream)
                              : launch_duration_lattice<float>(p, stream);
}

int64_t duration_workspace_elements(int64_t frames, int64_t cells, bool with_posteriors) {
  return 2 * duration_layout(frames, cells, with_posteriors).total;
}

}  // namespace jax_rnnt::cuda
