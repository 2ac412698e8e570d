"""Programs compiled for an NVIDIA H200 where there is none.

XLA's compiler for CUDA takes a description of the card in the place of a device. The programs are
those that the card would run: with our kernels' custom calls, XLA's own kernels, the plan of their
memory, and how they are put into command buffers; they cannot run here. It needs the packages
`jax-cuda13-plugin` and `jax-cuda13-pjrt`, in the version of jaxlib, and `JAX_PLATFORMS=cpu`: they
would look for a GPU. `make gpu-compiler` installs them apart from the others.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CARD = "NVIDIA H200"

_DESCRIPTION = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
gpu_device_info {
  name: "NVIDIA H200"
  cuda_compute_capability { major: 9 }
  core_count: 132
  clock_rate_ghz: 1.98
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
"""

_OPTIONS: dict[str, Any] = {
    "xla_gpu_autotune_level": 0,  # it would run kernels
    "xla_gpu_enable_triton_gemm": False,  # which not all versions of XLA have without the former
}


def has_compiler() -> bool:
    """Whether the packages are there."""
    return any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


@functools.cache
def mesh(size: int = 1) -> Mesh:
    """That many cards of one machine, along the axis `batch`."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_DESCRIPTION, topology=f"1x1x{size}"
    )
    return Mesh(np.array(topology.devices), ("batch",))


@dataclass(frozen=True)
class Program:
    """A compiled program: XLA's text of it, and bytes of memory on each card."""

    text: str
    temporaries: int
    peak: int
    """With operands and results."""
    thunks: str | None = None
    """What is launched, in order, where it was asked for."""


def compile_for_gpu(
    function: Callable[..., Any],
    *operands: Any,
    donate: int | tuple[int, ...] = (),
    thunks: bool = False,
    **options: Any,
) -> Program:
    """Compiles a function of `jax.ShapeDtypeStruct`s, or of pytrees of them.

    Those without a sharding are on the first card. `options` are XLA's.
    """
    single = NamedSharding(mesh(), PartitionSpec())
    operands = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or single), operands
    )
    # The size of tiles depends on the platform that programs are compiled for by default.
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        lowered = jax.jit(function, donate_argnums=donate).lower(*operands)
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder} if thunks else {}
        compiled = lowered.compile(compiler_options=_OPTIONS | options | dump)
        pattern = "*.thunk_sequence_after_thunk_passes.txt"
        sequence = "".join(path.read_text() for path in Path(folder).glob(pattern))
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    return Program(
        text,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        sequence if thunks else None,
    )


def sharded(size: int, *spec: str | None) -> NamedSharding:
    """Over so many cards, along the axis `batch`."""
    return NamedSharding(mesh(size), PartitionSpec(*spec))
