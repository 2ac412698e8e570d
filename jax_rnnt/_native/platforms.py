"""The platforms that have kernels, and the extension module of each."""

from __future__ import annotations

from types import ModuleType

import jax

from . import _cpu

try:
    from . import _cuda
except ImportError:  # built without a CUDA compiler
    _cuda = None

# By JAX's platform name.
KERNELS: dict[str, ModuleType] = {"cpu": _cpu}
if _cuda is not None:
    KERNELS["cuda"] = _cuda

HOW_TO_GET_CUDA = (
    "this installation of jax_rnnt was built without a CUDA compiler. Install it again from a "
    "clone where nvcc is on the PATH or named by CUDACXX: pip install --force-reinstall --no-deps "
    ". -Ccmake.define.JAX_RNNT_CUDA=ON (README, Install, says how to get nvcc from PyPI)"
)

_XLA_PLATFORM = {"cpu": "cpu", "cuda": "CUDA"}

for _platform, _module in KERNELS.items():
    for _name, _handler in _module.registrations().items():
        jax.ffi.register_ffi_target(_name, _handler, platform=_XLA_PLATFORM[_platform])
for _name in _cpu.registrations():
    jax.ffi.register_ffi_target_as_batch_partitionable(_name)
