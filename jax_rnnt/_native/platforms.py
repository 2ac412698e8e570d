"""The platforms that have kernels, and the extension module of each."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import jax

from . import _cpu

# By JAX's platform name.
KERNELS: dict[str, ModuleType] = {"cpu": _cpu}
_CUDA_MODULE = f"{__package__}._cuda"
if find_spec(_CUDA_MODULE) is not None:  # else built without a CUDA compiler
    KERNELS["cuda"] = import_module(_CUDA_MODULE)

HOW_TO_GET_CUDA = (
    "this installation of jax_rnnt was built without a CUDA compiler. Install it again from a "
    "clone where nvcc is on the PATH or named by CUDACXX: pip install --force-reinstall --no-deps "
    ". -Ccmake.define.JAX_RNNT_CUDA=ON (README, Install, says how to get nvcc from PyPI)"
)

_XLA_PLATFORM = {"cpu": "cpu", "cuda": "CUDA"}
_MOST_CORES = 16
"""Tiles grow with the number of cores up to this many, to bound memory."""

for _platform, _module in KERNELS.items():
    for _name, _handler in _module.registrations().items():
        jax.ffi.register_ffi_target(_name, _handler, platform=_XLA_PLATFORM[_platform])
for _name in _cpu.registrations():
    jax.ffi.register_ffi_target_as_batch_partitionable(_name)


def platforms_with(target: str) -> list[str]:
    """The platforms that have a kernel of this name."""
    return [name for name, module in KERNELS.items() if target in module.registrations()]


def tile_bytes(*, cpu: int, gpu: int) -> int:
    """How much to compute at a time, on the platform that programs are compiled for by default."""
    return cpu if jax.default_backend() == "cpu" else gpu


def cores_of_tile() -> int:
    """How many cores share a tile, each of which may have as much as one alone would.

    Starting an operation on all of them takes as long whatever its size.
    """
    if jax.default_backend() != "cpu":
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(cores, _MOST_CORES)
