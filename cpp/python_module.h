// What the Python modules of all platforms define.
#pragma once

#include <nanobind/nanobind.h>

#include "ffi_handlers.h"

namespace jax_rnnt {

inline nanobind::dict registrations() {
  nanobind::dict capsules;
  for (const auto& [target, handler] : handlers()) {
    capsules[target] = nanobind::capsule(reinterpret_cast<void*>(handler));
  }
  return capsules;
}

}  // namespace jax_rnnt
