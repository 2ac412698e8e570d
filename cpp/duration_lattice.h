// The recursion over arcs with durations, forward and backward, frame by frame: vectors of label
// positions, but for the label arcs of duration 0, which stay in their frame and are taken one
// after another.
//
// Numbers are mantissa * 2^exponent, with exponents that are not made relative to anything: a path
// may be 5e8 nats below certainty, in float.
#pragma once

#include "duration_layout.h"
#include "extended.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

// One utterance; frames and label positions count from where it begins.
template <class T>
struct DurationUtterance {
  int64_t frames, cells;  // cells of its own
  int64_t stride;         // from one frame of a plane to the next
  int64_t plane_size;     // from one duration to the next
  const T *blank, *label, *duration;
  Durations durations;
  DurationLayout layout;
  T* memory;

  Row<T> row_at(int64_t part, int64_t row) const {
    T* mantissa = memory + part + row * 2 * layout.stride;
    return {mantissa, reinterpret_cast<Int<T>*>(mantissa + layout.stride)};
  }
  Row<T> alpha(int64_t t) const { return row_at(layout.alphas, t); }
  Row<T> beta(int64_t t) const { return row_at(layout.betas, t % layout.beta_rows); }
  Row<T> blank_arcs() const { return row_at(layout.blank, 0); }
  Row<T> label_arcs() const { return row_at(layout.label, 0); }
  Row<T> duration_row(int i) const { return row_at(layout.durations, i); }
  Row<T> still_arcs() const { return row_at(layout.still, 0); }

  bool has_still_arcs() const { return durations.frames[0] == 0; }
  // The first of the durations that lead to another frame.
  int first_moving() const { return has_still_arcs() ? 1 : 0; }
  void make_dead(Row<T> row) const {
    for (int64_t u = 0; u < layout.stride; u += kLanes<T>) store_row(row, u, dead<T>());
  }
};

// One number, where Extended has those of a vector.
template <class T>
struct ExtendedNumber {
  T mantissa;
  Int<T> exponent;
};

template <class T>
JAX_RNNT_INLINE ExtendedNumber<T> number_at(Row<T> row, int64_t u) {
  return {row.mantissa[u], row.exponent[u]};
}

template <class T>
JAX_RNNT_INLINE T exp2_of(Int<T> n) {
  using C = Traits<T>;
  const Int<T> floored = n < -C::kExponentBias ? -C::kExponentBias : n;
  return bits<T>((floored + C::kExponentBias) << C::kMantissaBits);
}

// x + y * z, which is not normalised.
template <class T>
JAX_RNNT_INLINE ExtendedNumber<T> multiply_add(ExtendedNumber<T> x, ExtendedNumber<T> y,
                                               ExtendedNumber<T> z) {
  const Int<T> exponent = y.exponent + z.exponent;
  const Int<T> top = x.exponent > exponent ? x.exponent : exponent;
  return {x.mantissa * exp2_of<T>(x.exponent - top) +
              (y.mantissa * z.mantissa) * exp2_of<T>(exponent - top),
          top};
}

// An arc with a duration.
template <class T>
JAX_RNNT_INLINE Extended<T> arc_at(Row<T> arcs, Row<T> duration, int64_t u) {
  return in_range(multiply(load_row(arcs, u), load_row(duration, u)));
}

// Arcs and durations of a frame; what is beyond the utterance is dead, and so is its last label
// arc.
template <class T>
void load_arcs(const DurationUtterance<T>& of, int64_t t) {
  const T minus_inf = T(-__builtin_inf());
  const auto load = [&](const T* plane, int64_t cells, Row<T> to) __attribute__((always_inline)) {
    for (int64_t u = 0; u < of.layout.stride; u += kLanes<T>) {
      const LaneRange lanes = lanes_between<T>(u, 0, cells);
      const T* from = plane + t * of.stride + (lanes.end == 0 ? 0 : u);
      store_row(to, u, exp_extended<T>(load_some(from, 0, lanes.end, minus_inf)));
    }
  };
  load(of.blank, of.cells, of.blank_arcs());
  load(of.label, of.cells - 1, of.label_arcs());
  for (int i = 0; i < of.durations.number; ++i) {
    load(of.duration + i * of.plane_size, of.cells, of.duration_row(i));
  }
  if (!of.has_still_arcs()) return;
  for (int64_t u = 0; u < of.layout.stride; u += kLanes<T>) {
    store_row(of.still_arcs(), u, arc_at(of.label_arcs(), of.duration_row(0), u));
  }
}

// Takes the arcs that stay in their frame: from label position to label position, each that it
// comes to gets its share of the one before. The row is normalised before and after.
//
// In between, numbers are so after every vector only: a step is a chain of operations, each of
// which waits for the one before, and as many steps cannot take a mantissa out of range.
template <class T, int kStep>
void add_still_arcs(const DurationUtterance<T>& of, Row<T> row) {
  constexpr int64_t L = kLanes<T>;
  const Row<T> arcs = of.still_arcs();
  const int64_t vectors = (of.cells + L - 1) / L;
  ExtendedNumber<T> x{T(0), kDead<T>};
  for (int64_t n = 0; n < vectors; ++n) {
    const int64_t begin = (kStep > 0 ? n : vectors - 1 - n) * L;
    const int64_t end = begin + L < of.cells ? begin + L : of.cells;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t u = kStep > 0 ? i : begin + end - 1 - i;
      // Below the first position there is none, and no label arc leaves the last one.
      const int64_t arc = kStep > 0 ? (u == 0 ? of.cells : u - 1) : u;
      x = multiply_add(number_at(row, u), x, number_at(arcs, arc));
      row.mantissa[u] = x.mantissa;
      row.exponent[u] = x.exponent;
    }
    store_row(row, begin, normalised(load_row(row, begin)));
    x = number_at(row, kStep > 0 ? end - 1 : begin);
  }
}

// Alphas of all frames, and the likelihood, which is returned.
template <class T>
ExtendedNumber<T> run_forward_durations(const DurationUtterance<T>& of) {
  const int64_t longest = of.durations.longest();
  for (int64_t t = 0; t < longest && t <= of.frames; ++t) of.make_dead(of.alpha(t));
  of.alpha(0).mantissa[0] = 1;
  of.alpha(0).exponent[0] = 0;
  for (int64_t t = 0; t < of.frames; ++t) {
    if (t + longest <= of.frames) of.make_dead(of.alpha(t + longest));
    load_arcs(of, t);
    const Row<T> alpha = of.alpha(t);
    for (int64_t u = 0; u < of.cells; u += kLanes<T>) {
      store_row(alpha, u, normalised(load_row(alpha, u)));
    }
    if (of.has_still_arcs()) add_still_arcs<T, 1>(of, alpha);
    for (int i = of.first_moving(); i < of.durations.number; ++i) {
      const int64_t to = t + of.durations.frames[i];
      if (to > of.frames) break;
      const Row<T> target = of.alpha(to), duration = of.duration_row(i);
      const auto add_arcs = [&](Row<T> arcs, int64_t step) __attribute__((always_inline)) {
        for (int64_t u = 0; u < of.cells; u += kLanes<T>) {
          const Extended<T> x = multiply(load_row(alpha, u), arc_at(arcs, duration, u));
          store_row(target, u + step, add(load_row(target, u + step), x));
        }
      };
      // One after the other: a load that reaches over the end of a store has to wait for it.
      add_arcs(of.blank_arcs(), 0);
      // By label no path comes to the end.
      if (to < of.frames && of.durations.labels_take(to - t)) add_arcs(of.label_arcs(), 1);
    }
  }
  const Row<T> end = of.alpha(of.frames);
  const int64_t u = (of.cells - 1) / kLanes<T> * kLanes<T>;
  store_row(end, u, normalised(load_row(end, u)));
  return number_at(end, of.cells - 1);
}

// Where posteriors of an utterance go.
template <class T>
struct DurationPosteriors {
  T *blank, *label, *duration;
};

// Betas, and with them the posteriors.
template <class T>
void run_backward_durations(const DurationUtterance<T>& of, ExtendedNumber<T> likelihood,
                            const DurationPosteriors<T>& to) {
  constexpr int L = kLanes<T>;
  for (int64_t row = 0; row < of.layout.beta_rows; ++row) of.make_dead(of.beta(row));
  const Row<T> end = of.beta(of.frames);
  end.mantissa[of.cells - 1] = 1;
  end.exponent[of.cells - 1] = 0;
  const IntVec<T> exponent = IntVec<T>{} - likelihood.exponent;
  const T scale = 1 / likelihood.mantissa;
  for (int64_t t = of.frames - 1; t >= 0; --t) {
    load_arcs(of, t);
    const Row<T> alpha = of.alpha(t), beta = of.beta(t);
    // What follows the blank arc and the label arc of duration i, by any path.
    const auto rest = [&](int i, int64_t u, Extended<T>& blank,
                          Extended<T>& label) __attribute__((always_inline)) {
      const int64_t next = t + of.durations.frames[i];
      blank = label = dead<T>();
      if (next > of.frames) return;
      const Row<T> row = of.beta(next), duration = of.duration_row(i);
      if (next > t) {
        blank = in_range(multiply(load_row(row, u), arc_at(of.blank_arcs(), duration, u)));
      }
      if (next < of.frames && of.durations.labels_take(next - t)) {
        label = in_range(multiply(load_row(row, u + 1), arc_at(of.label_arcs(), duration, u)));
      }
    };
    for (int64_t u = 0; u < of.cells; u += L) {
      Extended<T> sum = dead<T>(), blank, label;
      for (int i = of.first_moving(); i < of.durations.number; ++i) {
        rest(i, u, blank, label);
        sum = add(sum, add(blank, label));
      }
      store_row(beta, u, normalised(sum));
    }
    if (of.has_still_arcs()) add_still_arcs<T, -1>(of, beta);
    for (int64_t u = 0; u < of.cells; u += L) {
      const int lanes = lanes_between<T>(u, 0, of.cells).end;
      const int64_t cell = t * of.stride + u;
      const Extended<T> a = load_row(alpha, u);
      Vec<T> blanks{}, labels{};
      for (int i = 0; i < of.durations.number; ++i) {
        Extended<T> blank, label;
        rest(i, u, blank, label);
        const Vec<T> by_blank = posterior(a, blank, exponent) * scale;
        const Vec<T> by_label = posterior(a, label, exponent) * scale;
        store_some(to.duration + i * of.plane_size + cell, 0, lanes, by_blank + by_label);
        blanks += by_blank;
        labels += by_label;
      }
      store_some(to.blank + cell, 0, lanes, blanks);
      store_some(to.label + cell, 0, lanes, labels);
    }
  }
}

template <class T>
void duration_lattice_utterance(const DurationLattice& p, int64_t b) {
  const int64_t plane_size = p.frames * p.cells, plane = b * plane_size;
  const int64_t durations = plane * p.durations.number;
  DurationPosteriors<T> to{};
  if (p.blank_posteriors != nullptr) {
    to = {static_cast<T*>(p.blank_posteriors) + plane, static_cast<T*>(p.label_posteriors) + plane,
          static_cast<T*>(p.duration_posteriors) + durations};
    __builtin_memset(to.blank, 0, plane_size * sizeof(T));
    __builtin_memset(to.label, 0, plane_size * sizeof(T));
    __builtin_memset(to.duration, 0, p.durations.number * plane_size * sizeof(T));
  }
  T& log_likelihood = static_cast<T*>(p.log_likelihood)[b];
  const Bounds& bounds = p.bounds[b];
  if (!bounds.valid(p.frames, p.cells - 1)) {
    log_likelihood = T(__builtin_nan(""));
    return;
  }
  const int64_t frames = bounds.frame_end - bounds.frame_begin;
  if (frames == 0) {
    log_likelihood = bounds.label_begin == bounds.label_end ? T(0) : T(-__builtin_inf());
    return;
  }
  const int64_t first = bounds.frame_begin * p.cells + bounds.label_begin;
  DurationUtterance<T> of{};
  of.frames = frames;
  of.cells = bounds.label_end - bounds.label_begin + 1;
  of.stride = p.cells;
  of.plane_size = plane_size;
  of.blank = static_cast<const T*>(p.blank) + plane + first;
  of.label = static_cast<const T*>(p.label) + plane + first;
  of.duration = static_cast<const T*>(p.duration) + durations + first;
  of.durations = p.durations;
  of.layout = duration_layout(frames, of.cells, p.durations);
  of.memory = static_cast<T*>(p.workspace) + b * p.workspace_elements;
  const ExtendedNumber<T> likelihood = run_forward_durations(of);
  log_likelihood = likelihood.mantissa == 0
                       ? T(-__builtin_inf())
                       : T(__builtin_log(double(likelihood.mantissa)) +
                           double(likelihood.exponent) * 0.69314718055994530942);
  if (p.blank_posteriors == nullptr || !__builtin_isfinite(log_likelihood)) return;
  to.blank += first, to.label += first, to.duration += first;
  run_backward_durations(of, likelihood, to);
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
