"""Arcs of the additive joiner, whose logits `am[t] + lm[u]` are never stored, in pure JAX.

The denominators are matrix products of exponentials, of which a frame's largest and a label
position's largest are taken out before. Where the two peak at different classes, all products of a
cell may be too small for floating point; frames with such cells are computed again, exactly, one
frame at a time. That takes as long as it would with stored logits, for these frames alone.

The exponentials are computed for some frames at a time: nothing as large as `am` is stored beside
its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._native.jax_versions import align_varying_axes
from ._native.platforms import tile_bytes
from .per_shard import per_shard, tile_begins
from .reference import accumulator_dtype, axis_index, valid_bounds
from .types import Normalization

_TILE_BYTES = {"cpu": 4 * 2**20, "gpu": 64 * 2**20}
"""Of the exponentials of the frames that are computed at a time, where all of them are larger than
a plane of arcs, `(*batch, T, U+1)`."""

_EXPORTED_BATCH = 16
"""The tiles of a program that is exported for batches of any size are those of this one."""


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
      bounds: `(*batch, 4)` int32, see `reference`.

    Returns:
      `(blank, label, *Denominators)`: log-probabilities of the two arcs, `(*batch, T, U+1)`, -inf
      outside the bounds.
    """
    function = partial(_arcs_fwd, blank_id=blank_id, normalization=normalization)
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
        return _arcs_fwd(am, lm, None, bounds, **params)[:2]

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
    function = partial(_arcs_bwd, blank_id=blank_id, normalization=normalization)
    operands = (am, lm, labels, denominators, am_top, lm_top)
    weights = (blank_weights, label_weights, cotangents)
    return per_shard(function, am.ndim - 2, *operands, *weights)


def _arcs_fwd(
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
        am_rows, lm_rows = _rows(am, frames, excluded), _rows(lm, positions, excluded)
        denominators = _log_denominators(am_rows, lm_rows)
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
        label_ids = _label_ids(labels, V)
        at_label = jnp.broadcast_to(label_ids[:, None], (B, T, W))
        am_label = jnp.take_along_axis(am, at_label, axis=2).astype(dtype)
        lm_label = jnp.take_along_axis(lm, label_ids[..., None], axis=2)[:, None, :, 0]
        return am_label - am_top, lm_label.astype(dtype) - lm_top
    tops = (jnp.broadcast_to(x, shape) for x, shape in ((am_top, (B, T, 1)), (lm_top, (B, 1, W))))
    am_top, lm_top = tops
    lm_scores = _without_class(lm, blank_id) - jnp.swapaxes(lm_top, 1, 2)

    def one_frame(frame: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores, top = frame
        return jnp.max((scores.astype(dtype) - top)[:, None] + lm_scores, axis=2)

    best = lax.map(one_frame, (jnp.swapaxes(am, 0, 1), jnp.swapaxes(am_top, 0, 1)))
    return jnp.swapaxes(best, 0, 1), jnp.zeros_like(lm_top)


def _arcs_bwd(
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
    label_ids, cotangents = _label_ids(labels, V), cotangents[:, None, None]
    add_columns = jax.vmap(lambda plane, ids, columns: plane.at[:, ids].add(columns))

    def by_am(counts: jax.Array, *planes: jax.Array) -> jax.Array:
        """The gradient by some frames of `am`, in the memory of their expected counts."""
        label_weights, of_blank, active = planes
        gradient = add_columns(counts, label_ids, -label_weights)
        gradient = gradient.at[:, :, blank_id].add(jnp.sum(of_blank, axis=2))
        gradient = jnp.where(jnp.any(active, axis=2)[..., None], cotangents * gradient, 0)
        return gradient.astype(am.dtype)

    planes = label_weights, of_blank, active
    if normalization == "none":
        d_am, d_lm = by_am(jnp.zeros(am.shape, dtype), *planes), jnp.zeros(lm.shape, dtype)
    else:
        excluded = blank_id if normalization == "hat" else None
        am_rows = _used_rows(am, jnp.any(scale != 0, axis=2), am_top, excluded)
        lm_rows = _used_rows(lm, jnp.any(scale != 0, axis=1), lm_top, excluded)
        d_am, d_lm = _expected_counts(am_rows, lm_rows, by_am, denominators, scale, *planes)

    is_label = axis_index(3, -1, V) == label_ids[..., None]
    d_lm = d_lm - jnp.where(is_label, jnp.sum(label_weights, axis=1)[..., None], 0)
    d_lm = d_lm.at[:, :, blank_id].add(jnp.sum(of_blank, axis=1))
    d_lm = jnp.where(jnp.any(active, axis=1)[..., None], cotangents * d_lm, 0)
    return d_am, d_lm.astype(lm.dtype)


class _Rows(NamedTuple):
    """Scores relative to the largest of their row, computed where they are used: not stored."""

    scores: jax.Array  # (B, rows, V), as the caller gave them
    dead: jax.Array  # (B, rows, 1): rows that count as all -inf, whatever they hold
    top: jax.Array  # (B, rows, 1): the largest; 0 for dead rows, NaN for NaN and +inf
    excluded: int | None  # a class that counts as -inf

    def relative(self, *index: jax.Array) -> jax.Array:
        """All, or the rows of one utterance, or one row."""
        scores = _without_class(self.scores[index], self.excluded)
        return jnp.where(self.dead[index], -jnp.inf, scores - self.top[index])


def _rows(scores: jax.Array, used: jax.Array, excluded: int | None) -> _Rows:
    top = jnp.max(_without_class(scores, excluded), axis=2, keepdims=True)
    dead = ~used[..., None] | (top == -jnp.inf)
    top = jnp.where(dead, 0, jnp.where(top == jnp.inf, jnp.nan, top))
    return _Rows(scores, dead, top, excluded)


def _used_rows(scores: jax.Array, used: jax.Array, top: jax.Array, excluded: int | None) -> _Rows:
    dead = ~used[..., None]
    return _Rows(scores, dead, jnp.where(dead, 0, top[..., None]), excluded)


def _without_class(scores: jax.Array, excluded: int | None) -> jax.Array:
    scores = scores.astype(accumulator_dtype(scores.dtype))
    if excluded is None:
        return scores
    return jnp.where(axis_index(scores.ndim, -1, scores.shape[-1]) == excluded, -jnp.inf, scores)


def _log_denominators(am: _Rows, lm: _Rows) -> jax.Array:
    """log sum_v exp(am[t, v] + lm[u, v]), `(B, T, U+1)`."""
    lm_exp = jnp.exp(lm.relative())

    def one_tile(am: _Rows, own: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        del own
        sums = _products("btv,buv->btu", jnp.exp(am.relative()), lm_exp)
        dead = am.dead | jnp.swapaxes(lm.dead, 1, 2)
        inexact = jnp.any(~dead & (sums < _smallest_exact_sum(am)), axis=2)

        def one_frame(b: jax.Array, t: jax.Array, logs: jax.Array) -> jax.Array:
            terms = am.relative(b, t)[None] + lm.relative(b)
            top = jnp.max(terms, axis=1, keepdims=True)
            top = jnp.where(top == -jnp.inf, 0, top)
            row = top[:, 0] + jnp.log(jnp.sum(jnp.exp(terms - top), axis=1))
            return logs.at[b, t].set(row)

        return _for_each_frame(inexact, one_frame, jnp.log(sums)), carry

    results = jnp.zeros((*am.scores.shape[:2], lm.scores.shape[1]), am.top.dtype)
    return _in_tiles(one_tile, results, (), lm.scores.shape[1], am)[0]


def _expected_counts(
    am: _Rows,
    lm: _Rows,
    finish: Callable[..., jax.Array],
    denominators: jax.Array,
    weights: jax.Array,
    *planes: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Sums of weights[t, u] * exp(am[t, v] + lm[u, v] - denominators[t, u]).

    Returns:
      The sums over u, `(B, T, V)`, in the dtype of `am`, after `finish(sums, *planes)` of some
      frames at a time; and those over t, `(B, U+1, V)`.
    """
    lm_exp = jnp.exp(lm.relative())

    def one_tile(
        am: _Rows, own: jax.Array, over_t: jax.Array, *planes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        denominators, weights, *others = planes
        weights = jnp.where(own, weights, 0)
        logs = jnp.where(weights != 0, denominators, jnp.inf)
        inexact = jnp.any(logs < jnp.log(_smallest_exact_sum(am)), axis=2)
        factors = jnp.where(inexact[..., None], 0, weights * jnp.exp(-logs))
        am_exp = jnp.exp(am.relative())
        over_t += lm_exp * _products("btu,btv->buv", factors, am_exp)
        over_u = am_exp * _products("btu,buv->btv", factors, lm_exp)

        def one_frame(
            b: jax.Array, t: jax.Array, sums: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            over_u, over_t = sums
            terms = am.relative(b, t)[None] + lm.relative(b)
            counts = weights[b, t][:, None] * jnp.exp(terms - logs[b, t][:, None])
            return over_u.at[b, t].set(jnp.sum(counts, axis=0)), over_t.at[b].add(counts)

        over_u, over_t = _for_each_frame(inexact, one_frame, (over_u, over_t))
        return finish(over_u, *others), over_t

    results = jnp.zeros_like(am.scores)
    none = jnp.zeros_like(lm_exp)
    width = lm.scores.shape[1]
    return _in_tiles(one_tile, results, none, width, am, denominators, weights, *planes)


def _in_tiles(
    one_tile: Callable[..., tuple[jax.Array, Any]],
    results: jax.Array,
    carry: Any,
    width: int,
    am: _Rows,
    *planes: jax.Array,
) -> tuple[jax.Array, Any]:
    """`results, carry = one_tile(am, own, carry, *planes)` for some frames at a time.

    `own` `(frames, 1)` is false for frames of the last tile that the one before it has, too: it is
    the first one to be computed. `results` `(B, T, ...)` are zeros to put the results in, `width`
    is U + 1.
    """
    B, T, V = am.scores.shape
    utterances = B if isinstance(B, int) else _EXPORTED_BATCH
    frame_bytes = max(utterances * V * am.top.dtype.itemsize, 1)
    frames = min(max(tile_bytes(**_TILE_BYTES) // frame_bytes, 1), T)
    if width >= V:  # nothing is saved, and the planes need not be cut
        frames = T
    if frames == T:
        return one_tile(am, jnp.ones((T, 1), jnp.bool_), carry, *planes)

    def step(state: tuple[jax.Array, Any], begin: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        results, carry = state

        def tile(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(x, begin, frames, 1)

        of_tile = _Rows(tile(am.scores), tile(am.dead), tile(am.top), am.excluded)
        own = axis_index(2, 0, frames) >= begin - (T - frames)
        result, carry = one_tile(of_tile, own, carry, *map(tile, planes))
        return (lax.dynamic_update_slice_in_dim(results, result, begin, 1), carry), None

    _, results, carry = align_varying_axes(am.top, results, carry)
    begins = tile_begins(T, frames)
    return lax.scan(step, (results, carry), begins, reverse=True)[0]


def _products(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, precision=lax.Precision.HIGHEST)


def _smallest_exact_sum(rows: _Rows) -> jax.Array:
    """What V products that fall below the normal numbers change by no more than rounding does."""
    info = jnp.finfo(rows.top.dtype)
    return jnp.asarray(rows.scores.shape[2] * (float(info.tiny) / float(info.eps)), info.dtype)


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


def _log_ratio(am: jax.Array, lm: jax.Array, denominators: jax.Array) -> jax.Array:
    """Log-probability from relative scores; -inf for a forbidden class, also where all are."""
    forbidden = ((am == -jnp.inf) | (lm == -jnp.inf)) & ~jnp.isnan(denominators)
    return jnp.where(forbidden, -jnp.inf, (am + lm) - jnp.where(forbidden, 0, denominators))


def rows_inside(bounds: jax.Array, T: int, W: int) -> tuple[jax.Array, jax.Array]:
    """Frames `(*batch, T)` and label positions `(*batch, U+1)` of valid utterances."""
    valid = valid_bounds(bounds, T, W - 1)[..., None]
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))
    t, u = axis_index(bounds.ndim, -1, T), axis_index(bounds.ndim, -1, W)
    frames = valid & (frame_begin <= t) & (t < frame_end)
    return frames, valid & (label_begin <= u) & (u <= label_end)


def _label_ids(labels: jax.Array, V: int) -> jax.Array:
    """The label of each position, `(B, U+1)`, clipped to classes; the last one has none."""
    return jnp.clip(jnp.pad(labels, [(0, 0), (0, 1)]), 0, V - 1)
