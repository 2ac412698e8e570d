"""Arcs of the smoothed additive joiner (arXiv 2206.13236, section 2.3).

An arc's log-probability is a mixture, linear in log-probabilities, with l = lm_only_scale and
a = am_only_scale, of the additive joiner's, of the predictor's by itself, and of the encoder's with
the predictor's average p over the batch:

    (1 - a - l) log_softmax(am[t] + lm[u]) + l log_softmax(lm[u]) + a log_softmax(am[t] + log p)

The last two terms are a sum of a score per frame and one per label position, which makes them arcs
of an additive joiner without denominators.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .bounds import rows_inside
from .factored_arcs import factored_arcs_bwd, factored_arcs_fwd
from .numerics import accumulator_dtype, log_denominator, log_ratio
from .types import ArcsOptions, Denominators, Smoothing


def smoothed_arcs_fwd(
    options: ArcsOptions,
    smoothing: Smoothing,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
) -> tuple[jax.Array, jax.Array, Denominators]:
    """`factored_arcs_fwd`, smoothed.

    The average p is over the label positions of all utterances with frames and without NaN or +inf.
    """
    am, lm = _accurate(am, lm)
    blank, label, denominators = factored_arcs_fwd(options, am, lm, labels, bounds)
    rows = _rows(smoothing, am, lm, bounds)
    alone = _scores_alone(
        smoothing,
        jnp.where(rows.frames[..., None], am, 0),
        jnp.where(rows.positions[..., None], lm, 0),
        rows.counted,
    )
    alone_blank, alone_label, _ = factored_arcs_fwd(_without(options), *alone, labels, bounds)
    share = smoothing.joint_scale
    return share * blank + alone_blank, share * label + alone_label, denominators


def smoothed_arcs_bwd(
    options: ArcsOptions,
    smoothing: Smoothing,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    denominators: Denominators,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    finite: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`factored_arcs_bwd`, smoothed: the gradient flows through the average p, too.

    Args:
      finite: `(*batch,)` bool, utterances with a finite loss. The others get exact zeros, although
        the losses of all depend on their label positions, if these are counted in p.
    """
    dtypes = am.dtype, lm.dtype
    am, lm = _accurate(am, lm)
    share = smoothing.joint_scale
    d_am, d_lm = factored_arcs_bwd(
        options,
        am,
        lm,
        labels,
        denominators,
        share * blank_weights,
        share * label_weights,
        cotangents,
    )
    rows = _rows(smoothing, am, lm, bounds)
    clean_am = jnp.where((rows.frames & rows.clean)[..., None], am, 0)
    clean_lm = jnp.where((rows.positions & rows.clean)[..., None], lm, 0)
    (am_alone, lm_alone), pull_back = jax.vjp(
        lambda am, lm: _scores_alone(smoothing, am, lm, rows.counted), clean_am, clean_lm
    )
    d_alone = factored_arcs_bwd(
        _without(options),
        am_alone,
        lm_alone,
        labels,
        denominators,
        blank_weights,
        label_weights,
        cotangents,
    )
    gradients = (
        jnp.where((inside & rows.clean & finite[..., None])[..., None], joint + rest, 0)
        for inside, joint, rest in zip(
            (rows.frames, rows.positions), (d_am, d_lm), pull_back(d_alone), strict=True
        )
    )
    d_am, d_lm = (x.astype(dtype) for x, dtype in zip(gradients, dtypes, strict=True))
    return d_am, d_lm


class _Masks(NamedTuple):
    frames: jax.Array  # (*batch, T): frames of the utterance
    positions: jax.Array  # (*batch, U+1): label positions that have an effect
    clean: jax.Array  # (*batch, 1): no score of the utterance is NaN or +inf
    counted: jax.Array  # (*batch, U+1): label positions that the average is over


def _rows(smoothing: Smoothing, am: jax.Array, lm: jax.Array, bounds: jax.Array) -> _Masks:
    frames, positions = rows_inside(bounds, am.shape[-2], lm.shape[-2])
    if smoothing.average_padding:
        positions = jnp.ones_like(positions)

    def all_legal(scores: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.all((scores < jnp.inf) | ~rows[..., None], axis=(-2, -1))[..., None]

    clean = all_legal(am, frames) & all_legal(lm, positions)
    counted = positions & clean
    if not smoothing.average_padding:
        counted &= jnp.any(frames, axis=-1, keepdims=True)
    return _Masks(frames, positions, clean, counted)


def _scores_alone(
    smoothing: Smoothing, am: jax.Array, lm: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The scaled log-probabilities of the encoder with the average, and of the predictor."""
    lm_alone = _log_softmax(lm)
    if smoothing.am_only_scale == 0:
        scores = jnp.zeros_like(am)  # not 0 * -inf
    else:
        average = _log_mean_exp(lm_alone, counted)
        am_alone = _log_softmax(am + average.reshape(*[1] * (am.ndim - 1), -1))
        scores = smoothing.am_only_scale * am_alone
    if smoothing.lm_only_scale == 0:
        return scores, jnp.zeros_like(lm)
    return scores, smoothing.lm_only_scale * lm_alone


def _log_softmax(scores: jax.Array) -> jax.Array:
    """-inf for forbidden classes, also where all are."""
    top, log_sum = log_denominator(scores)
    return log_ratio(scores, top[..., None], log_sum[..., None])


def _log_mean_exp(scores: jax.Array, rows: jax.Array) -> jax.Array:
    """Logarithm of the mean of exp(scores) over `rows`, `(V,)`; -inf for what none of them has."""
    axes = tuple(range(rows.ndim))
    scores = jnp.where(rows[..., None], scores, -jnp.inf)
    top = lax.stop_gradient(jnp.max(scores, axis=axes, keepdims=True, initial=-jnp.inf))
    top = jnp.where(top == -jnp.inf, 0, top)
    total = jnp.sum(jnp.exp(scores - top), axis=axes)
    count = jnp.maximum(jnp.sum(rows), 1).astype(scores.dtype)
    log_total = jnp.log(jnp.where(total == 0, 1, total)) + (top.reshape(-1) - jnp.log(count))
    return jnp.where(total == 0, -jnp.inf, log_total)


def _without(options: ArcsOptions) -> ArcsOptions:
    """For scores that are log-probabilities."""
    return replace(options, normalization="none")


def _accurate(*arrays: jax.Array) -> list[jax.Array]:
    return [x.astype(accumulator_dtype(x.dtype)) for x in arrays]
