// How much workspace each kernel needs, whatever its instruction set.
#include "banded_layout.h"
#include "best_path_layout.h"
#include "duration_layout.h"
#include "factored_layout.h"
#include "kernels.h"
#include "lattice_layout.h"

namespace jax_rnnt {

int64_t lattice_workspace_elements(int64_t frames, int64_t cells, Topology topology,
                                   bool with_posteriors) {
  return lattice_layout(frames, cells, topology == Topology::kRegular, with_posteriors).total;
}

PackedWorkspace packed_workspace(int64_t cells, bool with_posteriors) {
  return packed_lattice_workspace(cells, with_posteriors);
}

int64_t banded_workspace_elements(int64_t frames, int64_t cells, bool with_posteriors) {
  return banded_layout(1, frames, cells, with_posteriors).total;
}

int64_t duration_workspace_elements(int64_t frames, int64_t cells, const Durations& durations) {
  return duration_layout(frames, cells, durations).total;
}

int64_t best_path_workspace_elements(int64_t frames, int64_t cells, int64_t element_bytes) {
  return best_path_layout(frames, cells, kCorridorRows, element_bytes).total;
}

int64_t packed_best_path_elements(int64_t cells) {
  return kBestPathRows * best_path_row_stride(cells);
}

int64_t factored_forward_elements(int64_t cells, int64_t classes) {
  return factored_forward_layout(cells, classes).total;
}

int64_t factored_backward_elements(int64_t frames, int64_t cells, int64_t classes,
                                   int64_t element_bytes) {
  return factored_backward_layout(frames, cells, classes, element_bytes).total;
}

}  // namespace jax_rnnt
