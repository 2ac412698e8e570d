// One utterance's trellis in (front, u) coordinates: see cpp/lattice_kernels.h for the recursion.
//
// A band's trellis is wound around S slots, u modulo S: of the nodes that complete paths visit on
// one front, no two share a slot. Its arcs have been prepared front by front (see banded.cu), those
// on no complete path as -inf.
#pragma once

#include "../cpp/kernels.h"
#include "device.h"

namespace jax_rnnt::cuda {

// `count` fronts from `first` on.
struct Fronts {
  int first, count;

  __device__ __forceinline__ bool contains(int n) const {
    return unsigned(n - first) < unsigned(count);
  }
};

template <class T, bool kWound = false>
struct Trellis {
  int frames, labels, fronts;
  int slots;                  // of nodes on a front: labels + 1, or the width of the band
  int first_node, last_node;  // slots in which paths begin and end
  bool regular, constrained, last_arc_is_blank;
  T delay_penalty, delay_center;  // the label arcs of frame t get penalty * (center - t)
  int64_t plane_stride;
  const T *blank, *label;    // of cell (0, 0)
  T *blank_out, *label_out;  // likewise
  bool feasible;             // of a band
  T trivial_log_likelihood;  // where there is nothing to sweep

  // On how many fronts in turn complete paths can take a slot's blank.
  __device__ __forceinline__ int slack() const { return fronts - labels - last_arc_is_blank; }
  __device__ __forceinline__ bool has_paths() const {
    return fronts > 0 && (kWound ? feasible : slack() >= 0);
  }

  __device__ __forceinline__ int frame_of(int n, int u) const { return regular ? n - u : n; }
  // Where complete paths can take the arcs that leave slot u: of a whole lattice.
  __device__ __forceinline__ Fronts blank_lives(int u) const {
    return {u, u == labels ? fronts - labels : slack()};
  }
  __device__ __forceinline__ Fronts label_lives(int u) const {
    return {u, 0 <= u && u < labels ? slack() + 1 : 0};
  }
  // The slots that label arcs come from and lead to; outside of [0, slots) there are none.
  __device__ __forceinline__ int slot_before(int u) const {
    return kWound && u == 0 ? slots - 1 : u - 1;
  }
  __device__ __forceinline__ int slot_after(int u) const {
    return kWound && u == slots - 1 ? 0 : u + 1;
  }
  // Whether label arcs are what their plane has, with nothing added.
  __device__ __forceinline__ bool labels_as_stored() const {
    return !constrained && delay_penalty == T(0);
  }
  __device__ __forceinline__ T delay(int t) const { return delay_penalty * (delay_center - T(t)); }
};

template <class T>
__device__ __forceinline__ Trellis<T> trellis_of(const Lattice& p, int64_t b) {
  const Bounds bounds = p.bounds[b];
  Trellis<T> trellis{};
  if (!p.valid(b)) {
    trellis.trivial_log_likelihood = not_a_number<T>();
    return trellis;
  }
  const int64_t stride = p.stride(bounds);
  const int64_t first = p.first_cell(b) + bounds.frame_begin * stride + bounds.label_begin;
  trellis.frames = bounds.frame_end - bounds.frame_begin;
  trellis.labels = bounds.label_end - bounds.label_begin;
  trellis.slots = trellis.labels + 1;
  trellis.first_node = 0;
  trellis.last_node = trellis.labels;
  trellis.regular = p.topology == Topology::kRegular;
  trellis.constrained = p.topology == Topology::kConstrained;
  // A regular lattice without frames has no arcs at all.
  trellis.fronts = trellis.frames + (trellis.regular && trellis.frames > 0 ? trellis.labels : 0);
  trellis.last_arc_is_blank = trellis.regular || p.final_blank;
  trellis.delay_penalty = T(p.delay_penalty);
  trellis.delay_center = (T(bounds.frame_end) - 1) / 2 - T(bounds.frame_begin);
  trellis.plane_stride = stride;
  trellis.blank = static_cast<const T*>(p.blank) + first;
  trellis.label = static_cast<const T*>(p.label) + first;
  if (p.blank_posteriors != nullptr) {
    trellis.blank_out = static_cast<T*>(p.blank_posteriors) + first;
    trellis.label_out = static_cast<T*>(p.label_posteriors) + first;
  }
  trellis.trivial_log_likelihood =
      trellis.fronts == 0 && trellis.labels == 0 ? T(0) : -Constants<T>::kInfinity;
  return trellis;
}

}  // namespace jax_rnnt::cuda
