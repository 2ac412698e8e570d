// The Python module _cuda_emulated: the CUDA handlers, running on the CPU, and the emulation's
// settings.
#include <nanobind/nanobind.h>

#include "emulation/host_api.h"
#include "python_functions.h"

namespace nb = nanobind;

namespace {

void set_device(int shared_memory_per_block_optin, int compute_capability_major,
                int compute_capability_minor, int multiprocessors) {
  emulation::set_device({shared_memory_per_block_optin, compute_capability_major,
                         compute_capability_minor, multiprocessors});
}

}  // namespace

NB_MODULE(_cuda_emulated, m) {
  const emulation::Device device;
  m.doc() = "CUDA kernels of jax_rnnt, emulated on the CPU, as XLA FFI handlers.";
  jax_rnnt::cuda::define_functions(m);
  m.def("set_device", &set_device,
        nb::arg("shared_memory_per_block_optin") = device.shared_memory_per_block_optin,
        nb::arg("compute_capability_major") = device.compute_capability_major,
        nb::arg("compute_capability_minor") = device.compute_capability_minor,
        nb::arg("multiprocessors") = device.multiprocessors,
        "The device that launches find; without arguments an H100.");
  m.def("set_shuffle", &emulation::set_shuffle, nb::arg("seed"),
        "Runs blocks and threads in a random order; 0 is by index.");
  m.def("launches", &emulation::launches, "How many kernels have been launched.");
}
