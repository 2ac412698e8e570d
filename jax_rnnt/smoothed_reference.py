"""Smoothed arcs of the additive joiner in pure JAX, from the predictor's average and its scores.

They are, with `P` the joiner's probabilities and `scores` of the label positions,

    joint_share log P[t, u, v] + am_share (am[t, v] - log sum_k exp(am[t, k] + average[k])) + scores

Beside what `factored_reference` does, that takes of each frame a logarithm of a sum and the scores
of blank and of the labels; and of the gradient by `am`, the weights' share is larger than that of
the joiner's softmax, which a shift of the denominators brings about.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .bounds import rows_inside
from .factored_reference import arcs_of_batch, gradients_of_batch, label_ids
from .numerics import accumulator_dtype, axis_index, log_denominator
from .per_shard import per_shard


def smoothed_fwd(
    am: jax.Array,
    lm: jax.Array,
    average: jax.Array,
    blank_scores: jax.Array,
    label_scores: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    *,
    blank_id: int,
    joint_share: float,
    am_share: float,
) -> tuple[jax.Array, ...]:
    """Arc log-probabilities of every cell.

    Args:
      am, lm, labels, bounds: as for `factored_reference.factored_fwd`.
      average: `(*batch, V)` float32 or float64, logarithms of probabilities.
      blank_scores, label_scores: `(*batch, U+1)`, of the two arcs.
      joint_share, am_share: see above.

    Returns:
      `(blank, label, *Denominators, encoder_logs)`: the first five as from `factored_fwd`;
      encoder_logs `(*batch, T)` are those of the encoder's sums, relative to the frame's largest.
    """
    params: Any = {"blank_id": blank_id, "joint_share": joint_share, "am_share": am_share}
    operands = am, lm, average, blank_scores, label_scores, labels, bounds
    return per_shard(partial(_arcs, **params), am.ndim - 2, *operands)


def smoothed_bwd(
    am: jax.Array,
    lm: jax.Array,
    average: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    am_top: jax.Array,
    lm_top: jax.Array,
    encoder_logs: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    *,
    blank_id: int,
    joint_share: float,
    am_share: float,
) -> tuple[jax.Array, ...]:
    """Gradients of `cotangents * loss`, from the gradient by the arcs.

    Args:
      am, lm, average, labels, joint_share, am_share: as for `smoothed_fwd`.
      denominators, am_top, lm_top, encoder_logs: from `smoothed_fwd`.
      blank_weights, label_weights, cotangents: as for `factored_reference.factored_bwd`. Also
        utterances whose cotangent is zero get exact zeros.

    Returns:
      `(d_am, d_lm, d_average, blank_sums, label_sums)`: d_am in the dtype of `am`, the others in
      float32 or float64. d_lm `(*batch, U+1, V)` is that of the joiner alone; d_average
      `(*batch, V)` is by the average in the sums, not in the scores; the sums `(*batch, U+1)` are
      of the weights, over frames, without the cotangent.
    """
    params: Any = {"blank_id": blank_id, "joint_share": joint_share, "am_share": am_share}
    arcs = labels, denominators, am_top, lm_top, encoder_logs
    weights = blank_weights, label_weights, cotangents
    return per_shard(partial(_gradients, **params), am.ndim - 2, am, lm, average, *arcs, *weights)


def weights_by_class(
    of_blank: jax.Array, of_label: jax.Array, labels: jax.Array, blank_id: int, V: int
) -> jax.Array:
    """Weights of the two arcs of each label position, `(*batch, U+1)`, as `(*batch, U+1, V)`."""
    classes, ids = axis_index(of_blank.ndim + 1, -1, V), label_ids(labels, V)[..., None]
    at_blank = jnp.where(classes == blank_id, of_blank[..., None], 0)
    return at_blank + jnp.where(classes == ids, of_label[..., None], 0)


def _arcs(
    am: jax.Array,
    lm: jax.Array,
    average: jax.Array,
    blank_scores: jax.Array,
    label_scores: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    *,
    blank_id: int,
    joint_share: float,
    am_share: float,
) -> tuple[jax.Array, ...]:
    """`smoothed_fwd` with one batch dimension."""
    blank, label, denominators, am_top, lm_top = arcs_of_batch(
        am, lm, labels, bounds, blank_id=blank_id, normalization="softmax"
    )
    dtype, top = am_top.dtype, am_top[..., None]
    inside, _ = rows_inside(bounds, am.shape[-2], lm.shape[-2])
    largest, rest = log_denominator((am.astype(dtype) - top) + average[:, None])
    encoder_logs = jnp.where(inside, largest + rest, 0)
    ids = jnp.broadcast_to(label_ids(labels, am.shape[2])[:, None], label.shape)

    def mixed(joint: jax.Array, am_scores: jax.Array, scores: jax.Array) -> jax.Array:
        scores = scores[:, None]
        alone = am_share * ((am_scores.astype(dtype) - top) - encoder_logs[..., None]) + scores
        # A class that the average forbids stays so where it forbids all; NaN stays, too.
        forbidden = (joint == -jnp.inf) | ((scores == -jnp.inf) & ~jnp.isnan(joint))
        return jnp.where(forbidden, -jnp.inf, joint_share * joint + alone)

    blank = mixed(blank, am[..., blank_id, None], blank_scores)
    label = mixed(label, jnp.take_along_axis(am, ids, axis=-1), label_scores)
    return blank, label, denominators, am_top, lm_top, encoder_logs


def _gradients(
    am: jax.Array,
    lm: jax.Array,
    average: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    am_top: jax.Array,
    lm_top: jax.Array,
    encoder_logs: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    *,
    blank_id: int,
    joint_share: float,
    am_share: float,
) -> tuple[jax.Array, ...]:
    """`smoothed_bwd` with one batch dimension."""
    dtype = accumulator_dtype(am.dtype)
    scores, arcs_share = am.astype(dtype), joint_share + am_share
    d_am, d_lm = gradients_of_batch(
        scores,
        lm.astype(dtype),
        labels,
        denominators + math.log(arcs_share / joint_share),
        am_top,
        lm_top,
        blank_weights,
        label_weights,
        cotangents,
        blank_id=blank_id,
        normalization="softmax",
    )
    kept = (cotangents != 0)[:, None, None]
    of_frame = jnp.sum(blank_weights + label_weights, axis=-1)[..., None]
    softmax = jnp.exp((scores - am_top[..., None]) + (average[:, None] - encoder_logs[..., None]))
    factors = am_share * cotangents[:, None, None] * of_frame
    spread = jnp.where((of_frame != 0) & kept, factors * softmax, 0)
    d_am = jnp.where(kept, arcs_share * d_am + spread, 0)

    blank_sums, label_sums = (jnp.sum(x, axis=-2) for x in (blank_weights, label_weights))
    weights = weights_by_class(blank_sums, label_sums, labels, blank_id, lm.shape[2])
    d_lm = arcs_share * d_lm + am_share * (cotangents[:, None, None] * weights)
    d_lm = jnp.where(kept, d_lm, 0)
    return d_am.astype(am.dtype), d_lm, jnp.sum(spread, axis=-2), blank_sums, label_sums
