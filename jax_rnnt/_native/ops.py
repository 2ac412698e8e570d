"""The native ops: `arcs_fwd`, `arcs_bwd`, and the lattices of planes, packed rows and bands, which
are also there as `*_score`, without posteriors; `best_path` and `packed_best_path`. Those of the
additive joiner are in `factored_ops`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import (
    arcs_reference,
    banded_reference,
    best_path_reference,
    lattice_reference,
    packed_best_path_reference,
    packed_lattice_reference,
)
from ..numerics import accumulator_dtype
from ..types import Normalization, Topology
from .jax_versions import align_varying_axes
from .primitive import CoreType, native_primitive

_NORMALIZATION_CODES = {"softmax": 0, "none": 1, "hat": 2}
_TOPOLOGY_CODES = {"regular": 0, "modified": 1, "constrained": 2}


def arcs_attributes(blank_id: int, normalization: Normalization) -> dict[str, Any]:
    """FFI attributes of the arcs ops."""
    return {
        "blank_id": np.int64(blank_id),
        "normalization": np.int64(_NORMALIZATION_CODES[normalization]),
    }


def _lattice_attributes(
    topology: Topology, final_blank: bool, delay_penalty: float
) -> dict[str, Any]:
    return {
        "topology": np.int64(_TOPOLOGY_CODES[topology]),
        "final_blank": np.bool_(final_blank),
        "delay_penalty": np.float64(delay_penalty),
    }


def _packed_attributes(
    topology: Topology, final_blank: bool, delay_penalty: float, num_labels: int
) -> dict[str, Any]:
    return {
        **_lattice_attributes(topology, final_blank, delay_penalty),
        "num_labels": np.int64(num_labels),
    }


def _banded_attributes(topology: Topology, delay_penalty: float, num_labels: int) -> dict[str, Any]:
    return {
        "topology": np.int64(_TOPOLOGY_CODES[topology]),
        "delay_penalty": np.float64(delay_penalty),
        "num_labels": np.int64(num_labels),
    }


def known_sizes(*sizes: Any) -> tuple[int, ...]:
    """`sizes`, if all are integers; NotImplementedError if one is symbolic."""
    if not all(isinstance(size, int) for size in sizes):
        raise NotImplementedError(
            "the native kernels need T, U and V to be known when lowering, got sizes of "
            f"{', '.join(map(str, sizes))}. Export with symbolic batch dimensions only."
        )
    return sizes


def _lattice_workspace(
    kernels: ModuleType, blank: Any, topology: Topology, with_posteriors: bool
) -> list[CoreType]:
    code = _TOPOLOGY_CODES[topology]
    elements = kernels.lattice_workspace_elements(
        *known_sizes(*blank.shape), code, with_posteriors, blank.dtype.itemsize
    )
    return [((elements,), blank.dtype)]


def _packed_workspace(
    kernels: ModuleType,
    blank: Any,
    offsets: Any,
    topology: Topology,
    num_labels: int,
    with_posteriors: bool,
) -> list[CoreType]:
    per_row, per_utterance = kernels.packed_workspace_elements(
        num_labels + 1, _TOPOLOGY_CODES[topology], with_posteriors, blank.dtype.itemsize
    )
    return [((per_row * blank.shape[0] + per_utterance * offsets.shape[0],), blank.dtype)]


def _best_path_workspace(kernels: ModuleType, blank: Any) -> list[CoreType]:
    sizes = known_sizes(*blank.shape)
    return [((kernels.best_path_workspace_elements(*sizes, blank.dtype.itemsize),), blank.dtype)]


def _packed_best_path_workspace(
    kernels: ModuleType, blank: Any, offsets: Any, num_labels: int
) -> list[CoreType]:
    """Elements for each utterance, and a byte for each row."""
    element_bytes = blank.dtype.itemsize
    per_utterance = kernels.packed_best_path_elements(num_labels + 1, element_bytes)
    of_rows = (blank.shape[0] + element_bytes - 1) // element_bytes
    return [((per_utterance * offsets.shape[0] + of_rows,), blank.dtype)]


def _banded_workspace(
    kernels: ModuleType, blank: Any, topology: Topology, num_labels: int, with_posteriors: bool
) -> list[CoreType]:
    code = _TOPOLOGY_CODES[topology]
    elements = kernels.banded_workspace_elements(
        *known_sizes(*blank.shape), num_labels, code, with_posteriors, blank.dtype.itemsize
    )
    return [((elements,), blank.dtype)]


_arcs_fwd_p = native_primitive(
    "jax_rnnt_arcs_fwd",
    core_ndim=3,
    outputs=lambda logits, *_, **params: [(logits.shape[:2], accumulator_dtype(logits.dtype))] * 3,
    fallback=arcs_reference.arcs_fwd,
    attributes=arcs_attributes,
)

_arcs_bwd_p, _arcs_bwd_apart_p = (
    native_primitive(
        "jax_rnnt_arcs_bwd",
        core_ndim=3,
        outputs=lambda logits, *_, gradient_dtype, **params: [
            (logits.shape, gradient_dtype or logits.dtype)
        ],
        fallback=lambda *args, **params: [arcs_reference.arcs_bwd(*args, **params)],
        attributes=lambda clamp, gradient_dtype, **params: {
            **arcs_attributes(**params),
            "clamp": np.float64(clamp or 0.0),
        },
        in_place=in_place,
    )
    for in_place in (True, False)
)

_lattice_p = native_primitive(
    "jax_rnnt_lattice",
    core_ndim=2,
    outputs=lambda blank, *_, **params: [((), blank.dtype), *[(blank.shape, blank.dtype)] * 2],
    fallback=lattice_reference.lattice,
    attributes=_lattice_attributes,
    workspace=lambda kernels, blank, *_, topology, **params: _lattice_workspace(
        kernels, blank, topology, True
    ),
)

_lattice_score_p = native_primitive(
    "jax_rnnt_lattice_score",
    core_ndim=2,
    outputs=lambda blank, *_, **params: [((), blank.dtype)],
    fallback=lambda *args, **params: [lattice_reference.lattice_score(*args, **params)],
    attributes=_lattice_attributes,
    workspace=lambda kernels, blank, *_, topology, **params: _lattice_workspace(
        kernels, blank, topology, False
    ),
)

_packed_lattice_p = native_primitive(
    "jax_rnnt_packed_lattice",
    core_ndim=1,
    outputs=lambda blank, label, offsets, *_, **params: [
        (offsets.shape, blank.dtype),
        *[(blank.shape, blank.dtype)] * 2,
    ],
    fallback=packed_lattice_reference.packed_lattice,
    attributes=_packed_attributes,
    workspace=lambda kernels, blank, label, offsets, *_, topology, num_labels, **params: (
        _packed_workspace(kernels, blank, offsets, topology, num_labels, True)
    ),
)

_packed_lattice_score_p = native_primitive(
    "jax_rnnt_packed_lattice_score",
    core_ndim=1,
    outputs=lambda blank, label, offsets, *_, **params: [(offsets.shape, blank.dtype)],
    fallback=lambda *args, **params: [
        packed_lattice_reference.packed_lattice_score(*args, **params)
    ],
    attributes=_packed_attributes,
    workspace=lambda kernels, blank, label, offsets, *_, topology, num_labels, **params: (
        _packed_workspace(kernels, blank, offsets, topology, num_labels, False)
    ),
)

_banded_lattice_p = native_primitive(
    "jax_rnnt_banded_lattice",
    core_ndim=2,
    outputs=lambda blank, *_, **params: [((), blank.dtype), *[(blank.shape, blank.dtype)] * 2],
    fallback=lambda *args, num_labels, **params: banded_reference.banded_lattice(*args, **params),
    attributes=_banded_attributes,
    workspace=lambda kernels, blank, *_, topology, num_labels, **params: _banded_workspace(
        kernels, blank, topology, num_labels, True
    ),
)

_banded_lattice_score_p = native_primitive(
    "jax_rnnt_banded_lattice_score",
    core_ndim=2,
    outputs=lambda blank, *_, **params: [((), blank.dtype)],
    fallback=lambda *args, num_labels, **params: [
        banded_reference.banded_lattice_score(*args, **params)
    ],
    attributes=_banded_attributes,
    workspace=lambda kernels, blank, *_, topology, num_labels, **params: _banded_workspace(
        kernels, blank, topology, num_labels, False
    ),
)

_best_path_p = native_primitive(
    "jax_rnnt_best_path",
    core_ndim=2,
    outputs=lambda blank, *_, num_labels, **params: [
        ((), blank.dtype),
        ((num_labels,), jnp.int32),
    ],
    fallback=best_path_reference.best_path,
    attributes=lambda num_labels, **params: _lattice_attributes(**params),
    workspace=lambda kernels, blank, *_, **params: _best_path_workspace(kernels, blank),
)

_packed_best_path_p = native_primitive(
    "jax_rnnt_packed_best_path",
    core_ndim=1,
    outputs=lambda blank, label, offsets, *_, num_labels, **params: [
        (offsets.shape, blank.dtype),
        ((*offsets.shape, num_labels), jnp.int32),
    ],
    fallback=packed_best_path_reference.packed_best_path,
    attributes=lambda num_labels, **params: _lattice_attributes(**params),
    workspace=lambda kernels, blank, label, offsets, *_, num_labels, **params: (
        _packed_best_path_workspace(kernels, blank, offsets, num_labels)
    ),
)


def arcs_fwd(
    logits: jax.Array, labels: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`arcs_reference.arcs_fwd` by the native kernel."""
    return tuple(_arcs_fwd_p.bind(*align_varying_axes(logits, labels, bounds), **params))


def arcs_bwd(*operands: jax.Array, **params: Any) -> jax.Array:
    """`arcs_reference.arcs_bwd` by the native kernel, over the logits if nothing needs them."""
    return _arcs_bwd_p.bind(*align_varying_axes(*operands), **params)[0]


def arcs_bwd_apart(*operands: jax.Array, **params: Any) -> jax.Array:
    """`arcs_bwd`, never over the logits: where XLA would have to copy them first."""
    return _arcs_bwd_apart_p.bind(*align_varying_axes(*operands), **params)[0]


def lattice(
    blank: jax.Array, label: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`lattice_reference.lattice` by the native kernel."""
    return tuple(_lattice_p.bind(*align_varying_axes(blank, label, bounds), **params))


def lattice_score(
    blank: jax.Array, label: jax.Array, bounds: jax.Array, **params: Any
) -> jax.Array:
    """`lattice_reference.lattice_score` by the native kernel."""
    return _lattice_score_p.bind(*align_varying_axes(blank, label, bounds), **params)[0]


def packed_lattice(
    blank: jax.Array, label: jax.Array, offsets: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`packed_lattice_reference.packed_lattice` by the native kernel."""
    operands = align_varying_axes(blank, label, offsets, bounds)
    return tuple(_packed_lattice_p.bind(*operands, **params))


def packed_lattice_score(
    blank: jax.Array, label: jax.Array, offsets: jax.Array, bounds: jax.Array, **params: Any
) -> jax.Array:
    """`packed_lattice_reference.packed_lattice_score` by the native kernel."""
    operands = align_varying_axes(blank, label, offsets, bounds)
    return _packed_lattice_score_p.bind(*operands, **params)[0]


def banded_lattice(
    blank: jax.Array, label: jax.Array, starts: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`banded_reference.banded_lattice` by the native kernel.

    `num_labels` bounds the label positions.
    """
    operands = align_varying_axes(blank, label, starts, bounds)
    return tuple(_banded_lattice_p.bind(*operands, **params))


def banded_lattice_score(
    blank: jax.Array, label: jax.Array, starts: jax.Array, bounds: jax.Array, **params: Any
) -> jax.Array:
    """`banded_reference.banded_lattice_score` by the native kernel."""
    operands = align_varying_axes(blank, label, starts, bounds)
    return _banded_lattice_score_p.bind(*operands, **params)[0]


def best_path(
    blank: jax.Array, label: jax.Array, starts: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array]:
    """`best_path_reference.best_path` by the native kernel."""
    return tuple(_best_path_p.bind(*align_varying_axes(blank, label, starts, bounds), **params))


def packed_best_path(
    blank: jax.Array, label: jax.Array, offsets: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array]:
    """`packed_best_path_reference.packed_best_path` by the native kernel."""
    operands = align_varying_axes(blank, label, offsets, bounds)
    return tuple(_packed_best_path_p.bind(*operands, **params))
