"""Scores to arcs, forward and backward, by the implementation that the caller chose."""

from __future__ import annotations

from typing import Any

import jax

from . import arcs_reference
from ._native import ops
from .implementation import chosen
from .types import ArcsOptions


def arcs_fwd(
    options: ArcsOptions, logits: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `arcs_reference.arcs_fwd`."""
    op = chosen(options.implementation, arcs_reference.arcs_fwd, ops.arcs_fwd)
    params = {"blank_id": options.blank_id, "normalization": options.normalization}
    return op(logits, labels, bounds, **params)


def arcs_bwd(
    options: ArcsOptions,
    *operands: jax.Array,
    gradient_dtype: Any = None,
    may_overwrite_logits: bool = True,
) -> jax.Array:
    """See `arcs_reference.arcs_bwd`."""
    native = ops.arcs_bwd if may_overwrite_logits else ops.arcs_bwd_apart
    op = chosen(options.implementation, arcs_reference.arcs_bwd, native)
    return op(
        *operands,
        blank_id=options.blank_id,
        normalization=options.normalization,
        clamp=options.clamp,
        gradient_dtype=gradient_dtype,
    )
