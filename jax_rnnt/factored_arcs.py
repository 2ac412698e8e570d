"""Arcs of the additive joiner, whose logits `am[t] + lm[u]` are never stored, by the implementation
that the caller chose.
"""

from __future__ import annotations

from typing import Any

import jax

from . import factored_reference
from ._native import factored_ops
from .types import ArcsOptions, Denominators


def factored_arcs_fwd(
    options: ArcsOptions, am: jax.Array, lm: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, Denominators]:
    """See `factored_reference.factored_fwd`."""
    params: Any = {"blank_id": options.blank_id, "normalization": options.normalization}
    in_jax = options.implementation == "xla"
    function = factored_reference.factored_fwd if in_jax else factored_ops.factored_fwd
    blank, label, *denominators = function(am, lm, labels, bounds, **params)
    return blank, label, Denominators(*denominators)


def factored_best_arcs(
    options: ArcsOptions, am: jax.Array, lm: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `factored_reference.factored_best`; there is no kernel."""
    params: Any = {"blank_id": options.blank_id, "normalization": options.normalization}
    blank, label = factored_reference.factored_best(am, lm, bounds, **params)
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
    params: Any = {"blank_id": options.blank_id, "normalization": options.normalization}
    in_jax = options.implementation == "xla"
    function = factored_reference.factored_bwd if in_jax else factored_ops.factored_bwd
    d_am, d_lm = function(am, lm, labels, *denominators, *weights_and_cotangents, **params)
    return d_am, d_lm
