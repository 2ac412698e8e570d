// The best path through arcs with durations, of one utterance: what the kernels of a CPU and of
// CUDA have in common, so that they find the same path.
#pragma once

#include "kernels.h"

#define JAX_RNNT_MEMBER __attribute__((always_inline)) JAX_RNNT_HOST_DEVICE

namespace jax_rnnt {

// Frames and label positions count from where the utterance begins.
template <class T>
struct UtteranceWithDurations {
  int64_t frames, labels;
  int64_t cells;       // from one frame of a plane to the next
  int64_t plane_size;  // from one duration to the next
  const T *blank, *label, *duration;
  Durations durations;
  T* scores;          // of the best paths to the nodes
  uint8_t* arrivals;  // by which arc they come
  int32_t first_frame;
  int32_t *label_frames, *label_durations;

  // How a path comes to a node: by the blank (twice the number of its duration) or the label arc
  // (one more) of an earlier node.
  struct Arrival {
    static constexpr int kNone = 255;
    T score;
    int arc;
  };

  JAX_RNNT_MEMBER static UtteranceWithDurations of(const BestDurationPath& p, int64_t b) {
    const DurationLattice& lattice = p.lattice;
    const Bounds& bounds = lattice.bounds[b];
    const int64_t cells = lattice.cells, plane_size = lattice.frames * cells;
    const int64_t begin = bounds.frame_begin * cells + bounds.label_begin;
    const int64_t first = b * plane_size + begin,
                  first_label = b * (cells - 1) + bounds.label_begin;
    return {
        bounds.frame_end - bounds.frame_begin,
        bounds.label_end - bounds.label_begin,
        cells,
        plane_size,
        static_cast<const T*>(lattice.blank) + first,
        static_cast<const T*>(lattice.label) + first,
        static_cast<const T*>(lattice.duration) + b * plane_size * lattice.durations.number + begin,
        lattice.durations,
        static_cast<T*>(lattice.workspace) + first,
        p.arrivals + first,
        bounds.frame_begin,
        p.label_frames + first_label,
        p.label_durations + first_label};
  }

  // From nodes before it. Of equally good arrivals it is the one with the longest duration, by
  // label rather than by blank. NaN and excessive log-probabilities set `bad`.
  JAX_RNNT_MEMBER Arrival arrival_at(int64_t t, int64_t u, bool& bad) const {
    Arrival best{T(-__builtin_inf()), Arrival::kNone};
    if (t == 0 && u == 0) best.score = 0;
    const auto consider = [&](const T* arcs, int64_t from, int i,
                              int arc) __attribute__((always_inline)) {
      const T log_prob = usable(arcs[from], bad) + usable(duration[i * plane_size + from], bad);
      const T score = scores[from] + log_prob;
      if (score > best.score) best = {score, arc};
    };
    for (int i = durations.number - 1; i >= 0; --i) {
      const int d = durations.frames[i];
      if (d > t) continue;
      const int64_t below = (t - d) * cells + u;
      // By label no path comes to the end.
      if (u > 0 && t < frames && durations.labels_take(d)) consider(label, below - 1, i, 2 * i + 1);
      if (d > 0) consider(blank, below, i, 2 * i);
    }
    return best;
  }

  JAX_RNNT_MEMBER void visit(int64_t t, int64_t u, bool& bad) const {
    const Arrival best = arrival_at(t, u, bad);
    scores[t * cells + u] = best.score;
    arrivals[t * cells + u] = uint8_t(best.arc);
  }

  // Writes frame and duration of each label, from the last to the first.
  JAX_RNNT_MEMBER void trace_back(Arrival end) const {
    int64_t t = frames, u = labels;
    for (int arc = end.arc; arc != Arrival::kNone; arc = arrivals[t * cells + u]) {
      const int d = durations.frames[arc / 2];
      t -= d;
      if (arc % 2 == 0) continue;
      --u;
      label_frames[u] = first_frame + int32_t(t);
      label_durations[u] = d;
    }
  }

 private:
  // Forbidden and bad ones become -inf.
  JAX_RNNT_MEMBER static T usable(T x, bool& bad) {
    bad |= !(x <= T(kExcessive));
    return x >= T(kForbidden) && x <= T(kExcessive) ? x : T(-__builtin_inf());
  }
};

}  // namespace jax_rnnt

#undef JAX_RNNT_MEMBER
