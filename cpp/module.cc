// The Python module jax_rnnt._native._cpu.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dispatch.h"
#include "python_module.h"

namespace nb = nanobind;

namespace {

nb::dict registrations() {
  jax_rnnt::active_kernels();  // A bad JAX_RNNT_CPU_TARGET is an exception here, not in a call.
  return jax_rnnt::registrations();
}

// Counted in elements of the arcs' dtype, for one utterance. Arguments without a name are for
// platforms whose kernels need them.
int64_t lattice_workspace_elements(int64_t frames, int64_t cells, int64_t topology,
                                   bool with_posteriors, int64_t /*element_bytes*/) {
  return jax_rnnt::lattice_workspace_elements(frames, cells, jax_rnnt::Topology(topology),
                                              with_posteriors);
}

std::pair<int64_t, int64_t> packed_workspace_elements(int64_t cells, int64_t /*topology*/,
                                                      bool with_posteriors,
                                                      int64_t /*element_bytes*/) {
  const auto [per_row, per_utterance] = jax_rnnt::packed_workspace(cells, with_posteriors);
  return {per_row, per_utterance};
}

int64_t banded_workspace_elements(int64_t frames, int64_t cells, int64_t /*num_labels*/,
                                  int64_t /*topology*/, bool with_posteriors,
                                  int64_t /*element_bytes*/) {
  return jax_rnnt::banded_workspace_elements(frames, cells, with_posteriors);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of jax_rnnt, as XLA FFI handlers.";
  m.def("registrations", &registrations, "FFI target name to handler capsule.");
  m.def("lattice_workspace_elements", &lattice_workspace_elements, nb::arg("frames"),
        nb::arg("cells"), nb::arg("topology"), nb::arg("with_posteriors"), nb::arg("element_bytes"),
        "Workspace of one utterance, in elements of the arcs' dtype.");
  m.def("packed_workspace_elements", &packed_workspace_elements, nb::arg("cells"),
        nb::arg("topology"), nb::arg("with_posteriors"), nb::arg("element_bytes"),
        "Workspace of packed rows, in elements of the arcs' dtype: for each row, each utterance.");
  m.def("banded_workspace_elements", &banded_workspace_elements, nb::arg("frames"),
        nb::arg("cells"), nb::arg("num_labels"), nb::arg("topology"), nb::arg("with_posteriors"),
        nb::arg("element_bytes"),
        "Workspace of one utterance of a band, in elements of the arcs' dtype.");
  m.def(
      "duration_workspace_elements",
      [](int64_t frames, int64_t cells, uint64_t durations, bool, int64_t) {
        return jax_rnnt::duration_workspace_elements(frames, cells,
                                                     jax_rnnt::Durations::of_bits(durations));
      },
      nb::arg("frames"), nb::arg("cells"), nb::arg("durations"), nb::arg("with_posteriors"),
      nb::arg("element_bytes"),
      "Workspace of one utterance whose arcs have durations, in elements of the arcs' dtype.");
  m.def("best_path_workspace_elements", &jax_rnnt::best_path_workspace_elements, nb::arg("frames"),
        nb::arg("cells"), nb::arg("element_bytes"),
        "Workspace of one utterance of a best path, in elements of the arcs' dtype.");
  m.def(
      "packed_best_path_elements",
      [](int64_t cells, int64_t) { return jax_rnnt::packed_best_path_elements(cells); },
      nb::arg("cells"), nb::arg("element_bytes"),
      "Workspace of each utterance of packed rows, beside a byte a row, in elements.");
  m.def(
      "factored_forward_elements", &jax_rnnt::factored_forward_elements, nb::arg("cells"),
      nb::arg("classes"),
      "Workspace of one utterance of the additive joiner, in elements of the accumulator's dtype.");
  m.def("factored_backward_elements", &jax_rnnt::factored_backward_elements, nb::arg("frames"),
        nb::arg("cells"), nb::arg("classes"), nb::arg("element_bytes"),
        "Likewise of its gradient.");
  m.def("available_targets", &jax_rnnt::available_targets,
        "Instruction sets that this build and this processor have, widest first.");
  m.def(
      "active_target", [] { return std::string(jax_rnnt::active_kernels().name); },
      "The instruction set that the kernels run with.");
  m.def("select_target", &jax_rnnt::select_kernels, nb::arg("name"),
        "Makes the kernels run with one of `available_targets` from the next call on.");
}
