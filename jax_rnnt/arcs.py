"""Scores to arcs, forward and backward, by the implementation that the caller chose."""

from __future__ import annotations

import jax

from . import arcs_reference
from ._native import ops
from .types import ArcsOptions


def arcs_fwd(
    options: ArcsOptions, logits: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `arcs_reference.arcs_fwd`."""
    params = {"blank_id": options.blank_id, "normalization": options.normalization}
    if options.implementation == "xla":
        return arcs_reference.arcs_fwd(logits, labels, bounds, **params)
    native = options.implementation == "native"
    return ops.arcs_fwd(logits, labels, bounds, native=native, **params)


def arcs_bwd(options: ArcsOptions, *operands: jax.Array) -> jax.Array:
    """See `arcs_reference.arcs_bwd`."""
    params = {
        "blank_id": options.blank_id,
        "normalization": options.normalization,
        "clamp": options.clamp,
    }
    if options.implementation == "xla":
        return arcs_reference.arcs_bwd(*operands, **params)
    return ops.arcs_bwd(*operands, native=options.implementation == "native", **params)
