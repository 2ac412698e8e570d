"""Arcs of the additive joiner, whose logits `am[t] + lm[u]` are never stored, in pure JAX.

A cell's arcs are a few scores, less its denominator; all sums are in `factored_sums`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .bounds import rows_inside
from .factored_sums import (
    expected_counts,
    log_denominators,
    products,
    relative_rows,
    rows_relative_to,
    without_class,
)
from .numerics import accumulator_dtype, axis_index
from .per_shard import per_shard
from .types import Normalization


def factored_fwd(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, ...]:
    """Arc log-probabilities of every cell, from the two halves of the logits.

    Args:
      am: `(*batch, T, V)`.
      lm: `(*batch, U+1, V)`, of the same dtype.
      labels: `(*batch, U)` int32.
      bounds: `(*batch, 4)` int32, see the module `bounds`.

    Returns:
      `(blank, label, *Denominators)`: log-probabilities of the two arcs, `(*batch, T, U+1)`, -inf
      outside the bounds.
    """
    function = partial(arcs_of_batch, blank_id=blank_id, normalization=normalization)
    return per_shard(function, am.ndim - 2, am, lm, labels, bounds)


def factored_best(
    am: jax.Array,
    lm: jax.Array,
    bounds: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, ...]:
    """As the first two of `factored_fwd`, label arcs with the best class other than blank.

    It takes O(T U V) time, and memory of one frame's logits: one frame is computed after another.
    """

    def function(am: jax.Array, lm: jax.Array, bounds: jax.Array) -> tuple[jax.Array, ...]:
        params: Any = {"blank_id": blank_id, "normalization": normalization}
        return arcs_of_batch(am, lm, None, bounds, **params)[:2]

    return per_shard(function, am.ndim - 2, am, lm, bounds)


def factored_bwd(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    am_top: jax.Array,
    lm_top: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, ...]:
    """Gradients of `cotangents * loss` by `am` and `lm`, from the gradient by the arcs.

    Args:
      am, lm, labels: as for `factored_fwd`.
      denominators, am_top, lm_top: from `factored_fwd`.
      blank_weights, label_weights: `(*batch, T, U+1)`, derivatives of the log-likelihood (minus the
        loss) by the arcs. Frames and label positions where all are zero get exact zeros.
      cotangents: `(*batch,)`, of the loss.

    Returns:
      `(d_am, d_lm)` in the dtype of `am` and `lm`.
    """
    function = partial(gradients_of_batch, blank_id=blank_id, normalization=normalization)
    operands = (am, lm, labels, denominators, am_top, lm_top)
    weights = (blank_weights, label_weights, cotangents)
    return per_shard(function, am.ndim - 2, *operands, *weights)


def arcs_of_batch(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array | None,
    bounds: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, ...]:
    """`factored_fwd` with one batch dimension; `factored_best` without labels."""
    (B, T, _), W = am.shape, lm.shape[1]
    dtype = accumulator_dtype(am.dtype)
    am_blank = am[:, :, blank_id, None].astype(dtype)
    lm_blank = lm[:, None, :, blank_id].astype(dtype)
    frames, positions = rows_inside(bounds, T, W)
    if normalization == "none":
        no_top = jnp.zeros((), dtype)
        blank = am_blank + lm_blank
        label = sum(_label_scores(am, lm, labels, blank_id, no_top, no_top), no_top)
        denominators = jnp.zeros_like(blank)
        tops = jnp.zeros_like(blank[:, :, 0]), jnp.zeros_like(blank, shape=(B, W))
    else:
        excluded = blank_id if normalization == "hat" else None
        am_rows = relative_rows(am, frames, excluded)
        lm_rows = relative_rows(lm, positions, excluded)
        denominators = log_denominators(am_rows, lm_rows)
        am_top, lm_top = am_rows.top, jnp.swapaxes(lm_rows.top, 1, 2)
        tops = am_rows.top[..., 0], lm_rows.top[..., 0]
        label_scores = _label_scores(am, lm, labels, blank_id, am_top, lm_top)
        label = _log_ratio(*label_scores, denominators)
        if normalization == "softmax":
            blank = _log_ratio(am_blank - am_top, lm_blank - lm_top, denominators)
        else:
            z = am_blank + lm_blank
            z = jnp.where(z == jnp.inf, jnp.nan, z)
            blank, label = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z) + label
    inside = frames[:, :, None] & positions[:, None, :]
    has_label = inside & (axis_index(3, -1, W) < bounds[:, 3, None, None])
    return (
        jnp.where(inside, blank, -jnp.inf),
        jnp.where(has_label, label, -jnp.inf),
        jnp.where(inside, denominators, 0),
        *tops,
    )


def _label_scores(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array | None,
    blank_id: int,
    am_top: jax.Array,
    lm_top: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The label arcs' two halves `(B, T, U+1)`, less the tops; without labels the best sum, and 0.

    Tops are `(B, T, 1)` and `(B, 1, U+1)`, or scalars.
    """
    (B, T, V), W = am.shape, lm.shape[1]
    dtype = accumulator_dtype(am.dtype)
    if labels is not None:
        ids = label_ids(labels, V)
        at_label = jnp.broadcast_to(ids[:, None], (B, T, W))
        am_label = jnp.take_along_axis(am, at_label, axis=2).astype(dtype)
        lm_label = jnp.take_along_axis(lm, ids[..., None], axis=2)[:, None, :, 0]
        return am_label - am_top, lm_label.astype(dtype) - lm_top
    tops = (jnp.broadcast_to(x, shape) for x, shape in ((am_top, (B, T, 1)), (lm_top, (B, 1, W))))
    am_top, lm_top = tops
    lm_scores = without_class(lm, blank_id) - jnp.swapaxes(lm_top, 1, 2)

    def one_frame(frame: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores, top = frame
        return jnp.max((scores.astype(dtype) - top)[:, None] + lm_scores, axis=2)

    best = lax.map(one_frame, (jnp.swapaxes(am, 0, 1), jnp.swapaxes(am_top, 0, 1)))
    return jnp.swapaxes(best, 0, 1), jnp.zeros_like(lm_top)


def gradients_of_batch(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    am_top: jax.Array,
    lm_top: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, jax.Array]:
    """`factored_bwd` with one batch dimension."""
    V, dtype = am.shape[2], accumulator_dtype(am.dtype)
    active = (blank_weights != 0) | (label_weights != 0)
    scale, of_blank = blank_weights + label_weights, -blank_weights
    if normalization == "hat":
        z = am[:, :, blank_id, None].astype(dtype) + lm[:, None, :, blank_id].astype(dtype)
        z = jnp.where(active, z, 0)
        of_blank = label_weights * jax.nn.sigmoid(z) - blank_weights * jax.nn.sigmoid(-z)
        scale = label_weights
    ids, cotangents = label_ids(labels, V), cotangents[:, None, None]
    # Positions with the same label are summed first, since a GPU's scatter adds in any order.
    first = lax.argmax(ids[:, :, None] == ids[:, None, :], 1, jnp.int32)
    positions = axis_index(2, 1, ids.shape[1])
    to_first = (first[..., None] == positions[:, None]).astype(dtype)
    columns = jnp.where(first == positions, ids, V)  # V is dropped
    add_columns = jax.vmap(
        lambda plane, at, more: plane.at[:, at].add(more, mode="drop", unique_indices=True)
    )

    def by_am(counts: jax.Array, *planes: jax.Array) -> jax.Array:
        """The gradient by some frames of `am`, in the memory of their expected counts."""
        label_weights, of_blank, active = planes
        gradient = add_columns(counts, columns, -products("btu,buw->btw", label_weights, to_first))
        gradient = gradient.at[:, :, blank_id].add(jnp.sum(of_blank, axis=2))
        gradient = jnp.where(jnp.any(active, axis=2)[..., None], cotangents * gradient, 0)
        return gradient.astype(am.dtype)

    planes = label_weights, of_blank, active
    if normalization == "none":
        d_am, d_lm = by_am(jnp.zeros(am.shape, dtype), *planes), jnp.zeros(lm.shape, dtype)
    else:
        excluded = blank_id if normalization == "hat" else None
        am_rows = rows_relative_to(am_top, am, jnp.any(scale != 0, axis=2), excluded)
        lm_rows = rows_relative_to(lm_top, lm, jnp.any(scale != 0, axis=1), excluded)
        d_am, d_lm = expected_counts(am_rows, lm_rows, by_am, denominators, scale, *planes)

    is_label = axis_index(3, -1, V) == ids[..., None]
    d_lm = d_lm - jnp.where(is_label, jnp.sum(label_weights, axis=1)[..., None], 0)
    d_lm = d_lm.at[:, :, blank_id].add(jnp.sum(of_blank, axis=1))
    d_lm = jnp.where(jnp.any(active, axis=1)[..., None], cotangents * d_lm, 0)
    return d_am, d_lm.astype(lm.dtype)


def _log_ratio(am: jax.Array, lm: jax.Array, denominators: jax.Array) -> jax.Array:
    """Log-probability from relative scores; -inf for a forbidden class, also where all are."""
    forbidden = ((am == -jnp.inf) | (lm == -jnp.inf)) & ~jnp.isnan(denominators)
    return jnp.where(forbidden, -jnp.inf, (am + lm) - jnp.where(forbidden, 0, denominators))


def label_ids(labels: jax.Array, V: int) -> jax.Array:
    """The label of each position, `(*batch, U+1)`, clipped to classes; the last one has none."""
    return jnp.clip(jnp.pad(labels, [*[(0, 0)] * (labels.ndim - 1), (0, 1)]), 0, V - 1)
