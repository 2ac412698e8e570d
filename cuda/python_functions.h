// What Python needs of the CUDA kernels; also of their emulation in the tests.
#pragma once

#include <nanobind/stl/pair.h>

#include "../cpp/python_module.h"
#include "kernels.h"

namespace jax_rnnt::cuda {

inline void define_functions(nanobind::module_& m) {
  m.def("registrations", &jax_rnnt::registrations, "FFI target name to handler capsule.");
  m.def(
      "lattice_workspace_elements",
      [](int64_t frames, int64_t cells, int64_t topology, bool with_posteriors,
         int64_t element_bytes) {
        return lattice_workspace_elements(frames, cells, Topology(topology), with_posteriors,
                                          element_bytes == 8 ? DType::kF64 : DType::kF32);
      },
      nanobind::arg("frames"), nanobind::arg("cells"), nanobind::arg("topology"),
      nanobind::arg("with_posteriors"), nanobind::arg("element_bytes"),
      "Workspace of one utterance, in elements of the arcs' dtype.");
  m.def(
      "packed_workspace_elements",
      [](int64_t cells, int64_t /*topology*/, bool with_posteriors, int64_t element_bytes) {
        const auto [per_row, per_utterance] = packed_workspace(
            cells, with_posteriors, element_bytes == 8 ? DType::kF64 : DType::kF32);
        return std::pair(per_row, per_utterance);
      },
      nanobind::arg("cells"), nanobind::arg("topology"), nanobind::arg("with_posteriors"),
      nanobind::arg("element_bytes"),
      "Workspace of packed rows, in elements of the arcs' dtype: for each row, each utterance.");
  m.def(
      "banded_workspace_elements",
      [](int64_t frames, int64_t cells, int64_t num_labels, int64_t topology, bool with_posteriors,
         int64_t element_bytes) {
        return banded_workspace_elements(frames, cells, num_labels, Topology(topology),
                                         with_posteriors,
                                         element_bytes == 8 ? DType::kF64 : DType::kF32);
      },
      nanobind::arg("frames"), nanobind::arg("cells"), nanobind::arg("num_labels"),
      nanobind::arg("topology"), nanobind::arg("with_posteriors"), nanobind::arg("element_bytes"),
      "Workspace of one utterance of a band, in elements of the arcs' dtype.");
  m.def(
      "duration_workspace_elements",
      [](int64_t frames, int64_t cells, uint64_t, bool with_posteriors, int64_t) {
        return duration_workspace_elements(frames, cells, with_posteriors);
      },
      nanobind::arg("frames"), nanobind::arg("cells"), nanobind::arg("durations"),
      nanobind::arg("with_posteriors"), nanobind::arg("element_bytes"),
      "Workspace of one utterance whose arcs have durations, in elements of the arcs' dtype.");
  m.def(
      "best_path_workspace_elements",
      [](int64_t frames, int64_t cells, int64_t element_bytes) {
        const DType dtype = element_bytes == 8 ? DType::kF64 : DType::kF32;
        return best_path_workspace_elements(frames, cells, dtype);
      },
      nanobind::arg("frames"), nanobind::arg("cells"), nanobind::arg("element_bytes"),
      "Workspace of one utterance of a best path, in elements of the arcs' dtype.");
  m.def(
      "packed_best_path_elements",
      [](int64_t cells, int64_t) { return packed_best_path_elements(cells); },
      nanobind::arg("cells"), nanobind::arg("element_bytes"),
      "Workspace of each utterance of packed rows, beside a byte a row, in elements.");
  m.def(
      "factored_forward_elements", [](int64_t, int64_t) { return int64_t{0}; },
      nanobind::arg("cells"), nanobind::arg("classes"),
      "Workspace of one utterance of the additive joiner's arcs: none.");
  m.def(
      "factored_backward_elements",
      [](int64_t frames, int64_t cells, int64_t classes, int64_t) {
        return factored_backward_elements(frames, cells, classes);
      },
      nanobind::arg("frames"), nanobind::arg("cells"), nanobind::arg("classes"),
      nanobind::arg("element_bytes"),
      "Workspace of one utterance of their gradient, in elements of the arcs' dtype.");
}

}  // namespace jax_rnnt::cuda
