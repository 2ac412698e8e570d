"""Arcs of the smoothed additive joiner (arXiv 2206.13236, section 2.3).

An arc's log-probability is a mixture, linear in log-probabilities, with l = lm_only_scale and
a = am_only_scale, of the additive joiner's, of the predictor's by itself, and of the encoder's with
the predictor's average p over the batch:

    (1 - a - l) log_softmax(am[t] + lm[u]) + l log_softmax(lm[u]) + a log_softmax(am[t] + log p)

What is of the size of `am` is done together with the joiner's arcs, in `smoothed_reference` or in a
kernel: it needs the average and scores of the label positions. The predictor's part is here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import smoothed_reference
from ._native import factored_ops
from ._native.jax_versions import with_batch_sharding_of
from .bounds import rows_inside
from .factored_reference import label_ids
from .implementation import chosen
from .numerics import accumulator_dtype, log_denominator, log_ratio
from .smoothed_reference import weights_by_class
from .types import ArcsOptions, Denominators, Smoothing


class SmoothedResiduals(NamedTuple):
    """What the gradient of smoothed arcs needs of them."""

    denominators: Denominators
    encoder_logs: jax.Array  # (*batch, T)
    clean: jax.Array  # (*batch,): no score of the utterance is NaN or +inf


def smoothed_arcs_fwd(
    options: ArcsOptions,
    smoothing: Smoothing,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
) -> tuple[jax.Array, jax.Array, SmoothedResiduals]:
    """`factored_arcs_fwd`, smoothed.

    The average p is over the label positions of all utterances with frames and without NaN or +inf.
    """
    rows = _rows(smoothing, am, lm, bounds)
    clean = _all_legal(am, rows.frames) & _all_legal(lm, rows.positions)
    predictor = _predictor_alone(smoothing, lm, rows, clean)
    scores = jnp.zeros_like(predictor.scores)
    if smoothing.lm_only_scale:  # not 0 * -inf
        scores += smoothing.lm_only_scale * predictor.scores
    if smoothing.am_only_scale:
        scores += smoothing.am_only_scale * predictor.average
    at_label = label_ids(labels, lm.shape[-1])[..., None]
    in_jax, native = smoothed_reference.smoothed_fwd, factored_ops.smoothed_fwd
    blank, label, *denominators, encoder_logs = chosen(options.implementation, in_jax, native)(
        am,
        lm,
        _average_of_each(smoothing, am, predictor.average),
        scores[..., options.blank_id],
        jnp.take_along_axis(scores, at_label, axis=-1)[..., 0],
        labels,
        bounds,
        **_params(options, smoothing),
    )
    return blank, label, SmoothedResiduals(Denominators(*denominators), encoder_logs, clean)


def smoothed_arcs_bwd(
    options: ArcsOptions,
    smoothing: Smoothing,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    residuals: SmoothedResiduals,
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
    kept = residuals.clean & finite
    cotangents = jnp.where(kept, cotangents, 0)
    rows = _rows(smoothing, am, lm, bounds)
    predictor = _predictor_alone(smoothing, lm, rows, residuals.clean)
    in_jax, native = smoothed_reference.smoothed_bwd, factored_ops.smoothed_bwd
    d_am, d_lm, d_average, *sums = chosen(options.implementation, in_jax, native)(
        am,
        lm,
        _average_of_each(smoothing, am, predictor.average),
        labels,
        *residuals.denominators,
        residuals.encoder_logs,
        blank_weights,
        label_weights,
        cotangents,
        **_params(options, smoothing),
    )
    of_blank, of_label = (jnp.where(kept[..., None], cotangents[..., None] * x, 0) for x in sums)
    weights = weights_by_class(of_blank, of_label, labels, options.blank_id, lm.shape[-1])
    d_scores = -smoothing.lm_only_scale * weights
    if smoothing.am_only_scale:
        of_scores = smoothing.am_only_scale * _sum_of_rows(weights)
        d_average = _sum_of_rows(d_average[..., None, :]) - of_scores
        d_scores += predictor.share_in_average * d_average
    softmax = jnp.exp(predictor.scores)
    d_lm += d_scores - softmax * jnp.sum(d_scores, axis=-1, keepdims=True)
    d_lm = jnp.where((rows.positions & kept[..., None])[..., None], d_lm, 0)
    return d_am, d_lm.astype(lm.dtype)


class _Rows(NamedTuple):
    frames: jax.Array  # (*batch, T): frames of the utterance
    positions: jax.Array  # (*batch, U+1): label positions that have an effect


def _rows(smoothing: Smoothing, am: jax.Array, lm: jax.Array, bounds: jax.Array) -> _Rows:
    frames, positions = rows_inside(bounds, am.shape[-2], lm.shape[-2])
    return _Rows(frames, jnp.ones_like(positions) if smoothing.average_padding else positions)


def _all_legal(scores: jax.Array, rows: jax.Array) -> jax.Array:
    """Whether no score of an utterance's rows is NaN or +inf, `(*batch,)`."""
    # One sum of a row is many times faster than a comparison of each score. It is below +inf where
    # all scores are, as it is too small to overflow; XLA's maximum loses NaN on some CPUs.
    sums = jnp.sum(scores.astype(accumulator_dtype(scores.dtype)) * 2.0**-64, axis=-1)
    return jnp.all((sums < jnp.inf) | ~rows, axis=-1)


class _Predictor(NamedTuple):
    scores: jax.Array  # (*batch, U+1, V): log-probabilities; finite where there is no effect
    average: jax.Array  # (1, ..., 1, V): the logarithm of p
    share_in_average: jax.Array  # (*batch, U+1, V): its derivatives by the scores


def _predictor_alone(
    smoothing: Smoothing, lm: jax.Array, rows: _Rows, clean: jax.Array
) -> _Predictor:
    used = rows.positions[..., None]
    top, log_sum = log_denominator(jnp.where(used, lm.astype(accumulator_dtype(lm.dtype)), 0))
    scores = log_ratio(jnp.where(used, lm, 0).astype(top.dtype), top[..., None], log_sum[..., None])
    counted = rows.positions & clean[..., None]
    if not smoothing.average_padding:
        counted &= jnp.any(rows.frames, axis=-1, keepdims=True)
    in_average = jnp.where(counted[..., None], scores, -jnp.inf)
    total = _log_sum_exp_of_rows(in_average)
    count = jnp.maximum(jnp.sum(counted), 1).astype(scores.dtype)
    share = jnp.exp(in_average - jnp.where(total == -jnp.inf, 0, total))
    return _Predictor(scores, total - jnp.log(count), share)


def _average_of_each(smoothing: Smoothing, am: jax.Array, average: jax.Array) -> jax.Array:
    """The average for every utterance, `(*batch, V)`; any one where none is mixed in."""
    average = average if smoothing.am_only_scale else jnp.zeros_like(average)
    shape = *am.shape[:-2], average.shape[-1]
    return with_batch_sharding_of(am, am.ndim - 2, jnp.broadcast_to(average[..., 0, :], shape))


def _log_sum_exp_of_rows(scores: jax.Array) -> jax.Array:
    """`(1, ..., 1, V)`; -inf for classes that are -inf in all rows."""
    top = jnp.max(scores, axis=_axes_of_rows(scores), keepdims=True, initial=-jnp.inf)
    top = jnp.where(top == -jnp.inf, 0, top)
    return top + jnp.log(_sum_of_rows(jnp.exp(scores - top)))


def _sum_of_rows(x: jax.Array) -> jax.Array:
    """`(1, ..., 1, V)`."""
    return jnp.sum(x, axis=_axes_of_rows(x), keepdims=True)


def _axes_of_rows(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


def _params(options: ArcsOptions, smoothing: Smoothing) -> dict[str, Any]:
    return {
        "blank_id": options.blank_id,
        "joint_share": smoothing.joint_scale,
        "am_share": smoothing.am_only_scale,
    }
