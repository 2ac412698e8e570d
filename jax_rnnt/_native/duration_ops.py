"""The native recursion over arcs with durations, also without posteriors."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np

from .. import best_duration_path_reference
from .. import duration_reference as in_jax
from .jax_versions import align_varying_axes
from .ops import known_sizes
from .primitive import CoreType, native_primitive


def _bits(durations: tuple[int, ...]) -> int:
    return sum(1 << d for d in durations)


def _attributes(durations: tuple[int, ...], labels_stay: bool) -> dict[str, Any]:
    return {"durations": np.int64(_bits(durations)), "labels_stay": np.bool_(labels_stay)}


def _workspace(
    with_posteriors: bool,
    kernels: ModuleType,
    blank: Any,
    *_: Any,
    durations: tuple[int, ...],
    labels_stay: bool,
) -> list[CoreType]:
    del labels_stay
    elements = kernels.duration_workspace_elements(
        *known_sizes(*blank.shape), _bits(durations), with_posteriors, blank.dtype.itemsize
    )
    return [((elements,), blank.dtype)]


_duration_lattice_p = native_primitive(
    "jax_rnnt_duration_lattice",
    core_ndim=2,
    outputs=lambda blank, label, duration, *_, **params: [
        ((), blank.dtype),
        *((x.shape, blank.dtype) for x in (blank, label, duration)),
    ],
    fallback=in_jax.duration_lattice,
    attributes=_attributes,
    workspace=partial(_workspace, True),
)

_duration_lattice_score_p = native_primitive(
    "jax_rnnt_duration_lattice_score",
    core_ndim=2,
    outputs=lambda blank, *_, **params: [((), blank.dtype)],
    fallback=lambda *args, **params: [in_jax.duration_lattice_score(*args, **params)],
    attributes=_attributes,
    workspace=partial(_workspace, False),
)


_best_duration_path_p = native_primitive(
    "jax_rnnt_best_duration_path",
    core_ndim=2,
    outputs=lambda blank, *_, **params: [
        ((), blank.dtype),
        *[((blank.shape[1] - 1,), np.dtype(np.int32))] * 2,
    ],
    fallback=best_duration_path_reference.best_duration_path,
    attributes=_attributes,
    workspace=lambda kernels, blank, *_, **params: [
        (known_sizes(*blank.shape), blank.dtype),  # scores of nodes
        (blank.shape, np.dtype(np.uint8)),  # the arcs that they come by
    ],
)


def duration_lattice(
    blank: jax.Array, label: jax.Array, duration: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`duration_reference.duration_lattice` by the native kernel."""
    operands = align_varying_axes(blank, label, duration, bounds)
    return tuple(_duration_lattice_p.bind(*operands, **params))


def duration_lattice_score(
    blank: jax.Array, label: jax.Array, duration: jax.Array, bounds: jax.Array, **params: Any
) -> jax.Array:
    """`duration_reference.duration_lattice_score` by the native kernel."""
    operands = align_varying_axes(blank, label, duration, bounds)
    return _duration_lattice_score_p.bind(*operands, **params)[0]


def best_duration_path(
    blank: jax.Array, label: jax.Array, duration: jax.Array, bounds: jax.Array, **params: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`best_duration_path_reference.best_duration_path` by the native kernel."""
    operands = align_varying_axes(blank, label, duration, bounds)
    return tuple(_best_duration_path_p.bind(*operands, **params))
