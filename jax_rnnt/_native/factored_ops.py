"""The native ops of the additive joiner: `factored_fwd` and `factored_bwd`, its arcs and their
gradient, and the same of smoothed arcs, `smoothed_fwd` and `smoothed_bwd`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive

from .. import factored_reference, smoothed_reference
from ..numerics import accumulator_dtype
from .jax_versions import align_varying_axes
from .ops import arcs_attributes, known_sizes
from .platforms import platforms_with
from .primitive import CoreType, native_primitive


def _factored_outputs(am: Any, lm: Any, *_: Any, **params: Any) -> list[CoreType]:
    (frames, _), (cells, _) = am.shape, lm.shape
    dtype = accumulator_dtype(am.dtype)
    return [(shape, dtype) for shape in [*[(frames, cells)] * 3, (frames,), (cells,)]]


def _factored_fwd_workspace(kernels: ModuleType, am: Any, lm: Any) -> list[CoreType]:
    elements = kernels.factored_forward_elements(*known_sizes(*lm.shape))
    return [((elements,), accumulator_dtype(am.dtype))]


def _factored_bwd_workspace(kernels: ModuleType, am: Any, lm: Any) -> list[CoreType]:
    dtype = accumulator_dtype(am.dtype)
    sizes = known_sizes(am.shape[0], *lm.shape)
    return [((kernels.factored_backward_elements(*sizes, dtype.itemsize),), dtype)]


_factored_fwd_p = native_primitive(
    "jax_rnnt_factored_fwd",
    core_ndim=2,
    outputs=_factored_outputs,
    fallback=factored_reference.factored_fwd,
    attributes=arcs_attributes,
    workspace=lambda kernels, am, lm, *_, **params: _factored_fwd_workspace(kernels, am, lm),
)

_factored_bwd_p = native_primitive(
    "jax_rnnt_factored_bwd",
    core_ndim=2,
    outputs=lambda am, lm, *_, **params: [(am.shape, am.dtype), (lm.shape, lm.dtype)],
    fallback=factored_reference.factored_bwd,
    attributes=arcs_attributes,
    workspace=lambda kernels, am, lm, *_, **params: _factored_bwd_workspace(kernels, am, lm),
)


def _smoothed_attributes(blank_id: int, joint_share: float, am_share: float) -> dict[str, Any]:
    return {
        "blank_id": np.int64(blank_id),
        "joint_share": np.float64(joint_share),
        "am_share": np.float64(am_share),
    }


def _smoothed_fwd_outputs(am: Any, lm: Any, *_: Any, **params: Any) -> list[CoreType]:
    return [*_factored_outputs(am, lm), (am.shape[:1], accumulator_dtype(am.dtype))]


def _smoothed_bwd_outputs(am: Any, lm: Any, *_: Any, **params: Any) -> list[CoreType]:
    dtype = accumulator_dtype(am.dtype)
    shapes = [lm.shape, lm.shape[1:], *[lm.shape[:1]] * 2]
    return [(am.shape, am.dtype), *((shape, dtype) for shape in shapes)]


_smoothed_fwd_p = native_primitive(
    "jax_rnnt_smoothed_fwd",
    core_ndim=2,
    outputs=_smoothed_fwd_outputs,
    fallback=smoothed_reference.smoothed_fwd,
    attributes=_smoothed_attributes,
    workspace=lambda kernels, am, lm, *_, **params: _factored_fwd_workspace(kernels, am, lm),
)

_smoothed_bwd_p = native_primitive(
    "jax_rnnt_smoothed_bwd",
    core_ndim=2,
    outputs=_smoothed_bwd_outputs,
    fallback=smoothed_reference.smoothed_bwd,
    attributes=_smoothed_attributes,
    workspace=lambda kernels, am, lm, *_, **params: _factored_bwd_workspace(kernels, am, lm),
)


def factored_fwd(*operands: jax.Array, native: bool, **params: Any) -> tuple[jax.Array, ...]:
    """`factored_reference.factored_fwd` by a kernel; unless `native`, if there is one."""
    return _kernel_or(factored_reference.factored_fwd, _factored_fwd_p, operands, native, params)


def factored_bwd(*operands: jax.Array, native: bool, **params: Any) -> tuple[jax.Array, ...]:
    """`factored_reference.factored_bwd` by a kernel; unless `native`, if there is one."""
    return _kernel_or(factored_reference.factored_bwd, _factored_bwd_p, operands, native, params)


def smoothed_fwd(*operands: jax.Array, native: bool, **params: Any) -> tuple[jax.Array, ...]:
    """`smoothed_reference.smoothed_fwd` by a kernel; unless `native`, if there is one."""
    return _kernel_or(smoothed_reference.smoothed_fwd, _smoothed_fwd_p, operands, native, params)


def smoothed_bwd(*operands: jax.Array, native: bool, **params: Any) -> tuple[jax.Array, ...]:
    """`smoothed_reference.smoothed_bwd` by a kernel; unless `native`, if there is one."""
    return _kernel_or(smoothed_reference.smoothed_bwd, _smoothed_bwd_p, operands, native, params)


def _kernel_or(
    in_jax: Callable[..., tuple[jax.Array, ...]],
    primitive: Primitive,
    operands: tuple[jax.Array, ...],
    native: bool,
    params: dict[str, Any],
) -> tuple[jax.Array, ...]:
    """Chosen when lowering. Not by the primitive's own fallback: what `per_shard` needs to know of
    devices is only there for what the program shows.
    """

    def kernel(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(primitive.bind(*align_varying_axes(*operands), native=native, **params))

    def default(*operands: jax.Array) -> tuple[jax.Array, ...]:
        # Branches have to agree, also about what is empty, of which no operand is a part.
        return align_varying_axes(operands[0], *in_jax(*operands, **params))[1:]

    if native:
        return kernel(*operands)
    platforms = platforms_with(primitive.name)
    return jax.lax.platform_dependent(
        *operands, default=default, **dict.fromkeys(platforms, kernel)
    )
