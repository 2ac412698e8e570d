"""Arcs of the additive joiner, whose logits `am[t] + lm[u]` are never stored.

The denominators are matrix products of exponentials, of which a frame's largest and a label
position's largest are taken out before. Where the two peak at different classes, all products of a
cell may be too small for floating point; frames with such cells are computed again, exactly, one
frame at a time. That takes as long as it would with stored logits, for these frames alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .per_shard import per_shard
from .reference import accumulator_dtype, axis_index, valid_bounds
from .types import ArcsOptions, Normalization


def factored_arcs_fwd(
    options: ArcsOptions, am: jax.Array, lm: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arc log-probabilities of every cell, from the two halves of the logits.

    Args:
      options: `implementation` makes no difference yet: there is no kernel.
      am: `(*batch, T, V)`.
      lm: `(*batch, U+1, V)`, of the same dtype.
      labels: `(*batch, U)` int32.
      bounds: `(*batch, 4)` int32, see `reference`.

    Returns:
      `(blank, label, denominators)`, each `(*batch, T, U+1)`: log-probabilities of the two arcs,
      -inf outside the bounds, and the logarithm of the softmax denominator less the largest `am` of
      the frame and the largest `lm` of the label position.
    """
    function = partial(_arcs_fwd, blank_id=options.blank_id, normalization=options.normalization)
    blank, label, denominators = per_shard(function, am.ndim - 2, am, lm, labels, bounds)
    return blank, label, denominators


def factored_arcs_bwd(
    options: ArcsOptions,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `cotangents * loss` by `am` and `lm`, from the gradient by the arcs.

    Args:
      options, am, lm, labels: as for `factored_arcs_fwd`.
      denominators: from `factored_arcs_fwd`.
      blank_weights, label_weights: `(*batch, T, U+1)`, derivatives of the log-likelihood (minus the
        loss) by the arcs. Frames and label positions where all are zero get exact zeros.
      cotangents: `(*batch,)`, of the loss.

    Returns:
      `(d_am, d_lm)` in the dtype of `am` and `lm`.
    """
    function = partial(_arcs_bwd, blank_id=options.blank_id, normalization=options.normalization)
    operands = (am, lm, labels, denominators, blank_weights, label_weights, cotangents)
    d_am, d_lm = per_shard(function, am.ndim - 2, *operands)
    return d_am, d_lm


def _arcs_fwd(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`factored_arcs_fwd` with one batch dimension."""
    (_, T, V), W = am.shape, lm.shape[1]
    frames, positions = rows_inside(bounds, T, W)
    am, lm = _masked(am, frames), _masked(lm, positions)
    label_ids = _label_ids(labels, V)
    at_label = jnp.broadcast_to(label_ids[:, None], (am.shape[0], T, W))
    am_label = jnp.take_along_axis(am, at_label, axis=-1)
    lm_label = jnp.take_along_axis(lm, label_ids[..., None], axis=-1)[:, None, :, 0]
    am_blank, lm_blank = am[:, :, blank_id, None], lm[:, None, :, blank_id]
    if normalization == "none":
        blank, label = am_blank + lm_blank, am_label + lm_label
        denominators = jnp.zeros_like(blank)
    else:
        am_rows, lm_rows = _rows(am, blank_id, normalization), _rows(lm, blank_id, normalization)
        denominators = _log_denominators(am_rows, lm_rows)
        am_top, lm_top = am_rows.top, jnp.swapaxes(lm_rows.top, 1, 2)
        label = _log_ratio(am_label - am_top, lm_label - lm_top, denominators)
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
    )


def _arcs_bwd(
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    blank_weights: jax.Array,
    label_weights: jax.Array,
    cotangents: jax.Array,
    *,
    blank_id: int,
    normalization: Normalization,
) -> tuple[jax.Array, jax.Array]:
    """`factored_arcs_bwd` with one batch dimension."""
    V = am.shape[2]
    active = (blank_weights != 0) | (label_weights != 0)
    frames, positions = jnp.any(active, axis=2), jnp.any(active, axis=1)
    x, y = _masked(am, frames), _masked(lm, positions)

    if normalization == "hat":
        z = jnp.where(active, x[:, :, blank_id, None] + y[:, None, :, blank_id], 0)
        of_blank = label_weights * jax.nn.sigmoid(z) - blank_weights * jax.nn.sigmoid(-z)
        scale = label_weights
    else:
        of_blank = -blank_weights
        scale = blank_weights + label_weights
    if normalization == "none":
        d_am, d_lm = jnp.zeros_like(x), jnp.zeros_like(y)
    else:
        spread = scale != 0
        x = _masked(x, jnp.any(spread, axis=2))
        y = _masked(y, jnp.any(spread, axis=1))
        d_am, d_lm = _expected_counts(
            _rows(x, blank_id, normalization),
            _rows(y, blank_id, normalization),
            denominators,
            scale,
        )

    label_ids = _label_ids(labels, V)
    add_columns = jax.vmap(lambda plane, ids, columns: plane.at[:, ids].add(columns))
    d_am = add_columns(d_am, label_ids, -label_weights)
    d_am = d_am.at[:, :, blank_id].add(jnp.sum(of_blank, axis=2))
    is_label = axis_index(3, -1, V) == label_ids[..., None]
    d_lm = d_lm - jnp.where(is_label, jnp.sum(label_weights, axis=1)[..., None], 0)
    d_lm = d_lm.at[:, :, blank_id].add(jnp.sum(of_blank, axis=1))

    cotangents = cotangents[:, None, None]
    d_am = jnp.where(frames[..., None], cotangents * d_am, 0)
    d_lm = jnp.where(positions[..., None], cotangents * d_lm, 0)
    return d_am.astype(am.dtype), d_lm.astype(lm.dtype)


class _Rows(NamedTuple):
    """Scores less the largest of their row."""

    scores: jax.Array  # (B, rows, V), at most 0
    top: jax.Array  # (B, rows, 1); NaN where a score is NaN or +inf
    dead: jax.Array  # (B, rows): all scores are -inf


def _rows(scores: jax.Array, blank_id: int, normalization: Normalization) -> _Rows:
    """Of the classes that the denominator sums over."""
    if normalization == "hat":
        scores = jnp.where(axis_index(3, -1, scores.shape[-1]) == blank_id, -jnp.inf, scores)
    top = jnp.max(scores, axis=-1, keepdims=True)
    dead = top == -jnp.inf
    top = jnp.where(dead, 0, jnp.where(top == jnp.inf, jnp.nan, top))
    return _Rows(scores - top, top, dead[..., 0])


def _log_denominators(am: _Rows, lm: _Rows) -> jax.Array:
    """log sum_v exp(am[t, v] + lm[u, v]), `(B, T, U+1)`."""
    sums = _products("btv,buv->btu", jnp.exp(am.scores), jnp.exp(lm.scores))
    alive = ~(am.dead[:, :, None] | lm.dead[:, None, :])
    inexact = jnp.any(alive & (sums < _smallest_exact_sum(am.scores)), axis=2)

    def one_frame(b: jax.Array, t: jax.Array, logs: jax.Array) -> jax.Array:
        terms = am.scores[b, t][None] + lm.scores[b]
        top = jnp.max(terms, axis=-1, keepdims=True)
        top = jnp.where(top == -jnp.inf, 0, top)
        row = top[:, 0] + jnp.log(jnp.sum(jnp.exp(terms - top), axis=-1))
        return logs.at[b, t].set(row)

    return _for_each_frame(inexact, one_frame, jnp.log(sums))


def _expected_counts(
    am: _Rows, lm: _Rows, denominators: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums of weights[t, u] * exp(am[t, v] + lm[u, v] - denominators[t, u]).

    Returns:
      The sums over u, `(B, T, V)`, and over t, `(B, U+1, V)`.
    """
    used = weights != 0
    logs = jnp.where(used, denominators, jnp.inf)
    inexact = jnp.any(logs < jnp.log(_smallest_exact_sum(am.scores)), axis=2)
    factors = jnp.where(inexact[..., None], 0, weights * jnp.exp(-logs))
    am_exp, lm_exp = jnp.exp(am.scores), jnp.exp(lm.scores)
    over_u = am_exp * _products("btu,buv->btv", factors, lm_exp)
    over_t = lm_exp * _products("btu,btv->buv", factors, am_exp)

    def one_frame(
        b: jax.Array, t: jax.Array, sums: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        over_u, over_t = sums
        terms = am.scores[b, t][None] + lm.scores[b]
        counts = weights[b, t][:, None] * jnp.exp(terms - logs[b, t][:, None])
        return over_u.at[b, t].set(jnp.sum(counts, axis=0)), over_t.at[b].add(counts)

    return _for_each_frame(inexact, one_frame, (over_u, over_t))


def _products(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, precision=lax.Precision.HIGHEST)


def _smallest_exact_sum(x: jax.Array) -> jax.Array:
    """What V products that fall below the normal numbers change by no more than rounding does."""
    info = jnp.finfo(x.dtype)
    return jnp.asarray(x.shape[-1] * (float(info.tiny) / float(info.eps)), x.dtype)


def _for_each_frame(frames: jax.Array, function: Callable[..., Any], carry: Any) -> Any:
    """`carry = function(b, t, carry)` for each frame that is true in `frames`, `(B, T)` bool."""
    B, T = frames.shape
    if B == 0 or T == 0:
        return carry

    def step(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        left, carry = state
        first = jnp.argmax(left)
        return left.at[first].set(False), function(first // T, first % T, carry)

    return lax.while_loop(lambda state: jnp.any(state[0]), step, (frames.ravel(), carry))[1]


def _masked(scores: jax.Array, rows: jax.Array) -> jax.Array:
    """In the dtype of the arithmetic, and 0 in the other rows, whatever they hold."""
    return jnp.where(rows[..., None], scores.astype(accumulator_dtype(scores.dtype)), 0)


def _log_ratio(am: jax.Array, lm: jax.Array, denominators: jax.Array) -> jax.Array:
    """Log-probability from relative scores; -inf for a forbidden class, also where all are."""
    forbidden = ((am == -jnp.inf) | (lm == -jnp.inf)) & ~jnp.isnan(denominators)
    return jnp.where(forbidden, -jnp.inf, (am + lm) - jnp.where(forbidden, 0, denominators))


def rows_inside(bounds: jax.Array, T: int, W: int) -> tuple[jax.Array, jax.Array]:
    """Frames `(*batch, T)` and label positions `(*batch, U+1)` of valid utterances."""
    valid = valid_bounds(bounds, T, W)[..., None]
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))
    t, u = axis_index(bounds.ndim, -1, T), axis_index(bounds.ndim, -1, W)
    frames = valid & (frame_begin <= t) & (t < frame_end)
    return frames, valid & (label_begin <= u) & (u <= label_end)


def _label_ids(labels: jax.Array, V: int) -> jax.Array:
    """The label of each position, `(B, U+1)`, clipped to classes; the last one has none."""
    return jnp.clip(jnp.pad(labels, [(0, 0), (0, 1)]), 0, V - 1)
