// The best path through arcs with durations, node by node.
#pragma once

#include "best_duration_path.h"

namespace jax_rnnt::JAX_RNNT_TARGET {

template <class T>
void best_duration_path_utterance(const BestDurationPath& p, int64_t b) {
  const int64_t labels = p.lattice.cells - 1;
  for (int64_t i = b * labels; i < (b + 1) * labels; ++i) {
    p.label_frames[i] = p.label_durations[i] = -1;
  }
  T& score = static_cast<T*>(p.lattice.log_likelihood)[b];
  score = T(__builtin_nan(""));
  const Bounds& bounds = p.lattice.bounds[b];
  if (!bounds.valid(p.lattice.frames, labels)) return;
  const auto of = UtteranceWithDurations<T>::of(p, b);
  if (of.frames == 0) {
    score = of.labels == 0 ? T(0) : T(-__builtin_inf());
    return;
  }
  bool bad = false;
  for (int64_t t = 0; t < of.frames; ++t) {
    for (int64_t u = 0; u <= of.labels; ++u) of.visit(t, u, bad);
  }
  const auto end = of.arrival_at(of.frames, of.labels, bad);
  if (bad) return;
  score = end.score;
  of.trace_back(end);
}

}  // namespace jax_rnnt::JAX_RNNT_TARGET
