"""Arcs of the additive joiner, whose logits `am[t] + lm[u]` are never stored, by the implementation
that the caller chose.
"""

from __future__ import annotations

from typing import Any

import jax

from . import factored_reference
from ._native import factored_ops
from .implementation import chosen
from .types import ArcsOptions, Denominators


def _params(options: ArcsOptions) -> dict[str, Any]:
    return {"blank_id": options.blank_id, "normalization": options.normalization}


def factored_arcs_fwd(
    options: ArcsOptions, am: jax.Array, lm: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, Denominators]:
    """See `factored_reference.factored_fwd`."""
    in_jax, native = factored_reference.factored_fwd, factored_ops.factored_fwd
    op = chosen(options.implementation, in_jax, native)
    blank, label, *denominators = op(am, lm, labels, bounds, **_params(options))
    return blank, label, Denominators(*denominators)


def factored_best_arcs(
    options: ArcsOptions, am: jax.Array, lm: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `factored_reference.factored_best`; there is no kernel."""
    blank, label = factored_reference.factored_best(am, lm, bounds, **_params(options))
    return blank, label


def factored_arcs_bwd(
    options: ArcsOptions,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    denominators: Denominators,
    *weights_and_cotangents: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """See `factored_reference.factored_bwd`."""
    in_jax, native = factored_reference.factored_bwd, factored_ops.factored_bwd
    op = chosen(options.implementation, in_jax, native)
    d_am, d_lm = op(am, lm, labels, *denominators, *weights_and_cotangents, **_params(options))
    return d_am, d_lm
