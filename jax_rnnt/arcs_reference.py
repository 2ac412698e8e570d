"""Scores to arc log-probabilities and back to gradients in pure JAX: what runs on TPU and wherever
there is no kernel.

Both functions take any number of leading batch dimensions and need no particular platform; the
native kernels compute the same. The module `bounds` says what bounds are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .bounds import arcs_inside
from .numerics import accumulator_dtype, axis_index, log_denominator, log_ratio
from .types import Normalization


def arcs_fwd(
    logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arc log-probabilities of every cell, from the logits.

    Args:
      logits: `(*batch, T, U+1, V)`.
      labels: `(*batch, U)` int32; or `(*batch, U+1)`, if also the last cell of a frame can have a
        label arc: the cells are then a band, which ends before the labels do.
      bounds: `(*batch, 4)`.
      blank_id: the blank class, in [0, V).
      normalization: `"softmax"`, `"none"` or `"hat"` (arXiv 2003.07705, equations 4 to 6).

    Returns:
      `(blank, label, denominators)`, each `(*batch, T, U+1)`: log-probabilities of the two arcs,
      -inf outside the bounds, and the logarithm of the softmax denominator.
    """
    *_, T, W, V = logits.shape
    dtype = accumulator_dtype(logits.dtype)
    inside, has_label = arcs_inside(bounds, T, W, labels.shape[-1])
    x = jnp.where(inside[..., None], logits.astype(dtype), 0)
    label_ids = _label_ids(labels, W, V)
    blank_score = x[..., blank_id]
    label_score = jnp.take_along_axis(x, label_ids, axis=-1)[..., 0]
    if normalization == "none":
        blank, label, denominators = blank_score, label_score, jnp.zeros_like(blank_score)
    elif normalization == "softmax":
        top, log_sum = log_denominator(x)
        denominators = top + log_sum
        blank = log_ratio(blank_score, top, log_sum)
        label = log_ratio(label_score, top, log_sum)
    else:
        others = jnp.where(axis_index(x.ndim, -1, V) == blank_id, -jnp.inf, x)
        top, log_sum = log_denominator(others)
        denominators = top + log_sum
        bad = ~(blank_score < jnp.inf)
        z = jnp.where(bad, 0, blank_score)  # whose derivative is zero, not NaN
        blank = jnp.where(bad, jnp.nan, jax.nn.log_sigmoid(z))
        label = log_ratio(label_score, top, log_sum)
        label = jnp.where(bad, jnp.nan, jax.nn.log_sigmoid(-z) + label)
    return (
        jnp.where(inside, blank, -jnp.inf),
        jnp.where(has_label, label, -jnp.inf),
        jnp.where(inside, denominators, 0),
    )


def arcs_bwd(
    logits: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
    clamp: float | None,
    gradient_dtype: Any = None,
) -> jax.Array:
    """Gradient of `cotangents * loss` by the logits, from the gradient by the arcs.

    Args:
      logits, labels, blank_id, normalization: as for `arcs_fwd`.
      denominators: `(*batch, T, U+1)`, from `arcs_fwd`.
      blank_weights, label_weights: `(*batch, T, U+1)`, derivatives of the log-likelihood (minus the
        loss) by the arcs. A cell where both are zero gets an exact zero, whatever its logits.
      cotangents: `(*batch,)`, of the loss.
      clamp: bound on each element of the gradient before it is multiplied by the cotangent.
      gradient_dtype: None is the logits' dtype; bfloat16 or float16, if that is float32.

    Returns:
      `(*batch, T, U+1, V)` in that dtype.
    """
    *_, W, V = logits.shape
    active = ((blank_weights != 0) | (label_weights != 0))[..., None]
    x = jnp.where(active, logits.astype(accumulator_dtype(logits.dtype)), 0)
    blank, label = blank_weights[..., None], label_weights[..., None]
    classes = axis_index(x.ndim, -1, V)
    is_blank, is_label = classes == blank_id, classes == _label_ids(labels, W, V)
    hits = jnp.where(is_blank, blank, 0) + jnp.where(is_label, label, 0)
    scale = blank + label if normalization == "softmax" else label
    spread = active & (scale != 0)
    # Where only blank has weight, "hat" has no use for the other classes, which may be anything.
    probabilities = jnp.exp(jnp.where(spread, x - denominators[..., None], -jnp.inf))
    if normalization == "none":
        unit = -hits
    elif normalization == "softmax":
        unit = scale * probabilities - hits
    else:
        z = x[..., blank_id, None]
        blank_unit = label * jax.nn.sigmoid(z) - blank * jax.nn.sigmoid(-z)
        unit = jnp.where(is_blank, blank_unit, scale * jnp.where(is_blank, 0, probabilities) - hits)
    if clamp is not None and clamp > 0:
        unit = jnp.clip(unit, -clamp, clamp)
    gradient = jnp.where(active, cotangents[..., None, None, None] * unit, 0)
    return gradient.astype(gradient_dtype or logits.dtype)


def _label_ids(labels: jax.Array, W: int, V: int) -> jax.Array:
    """Class of each cell's label arc, `(*batch, 1, U+1, 1)`; any class in a cell without label."""
    padding = [(0, 0)] * (labels.ndim - 1) + [(0, W - labels.shape[-1])]
    return jnp.pad(jnp.clip(labels, 0, V - 1), padding)[..., None, :, None]
