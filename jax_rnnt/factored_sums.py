"""Sums of exp(am[t] + lm[u]) over classes, and with weights over frames and label positions: the
denominators of the additive joiner, and its expected counts, in pure JAX.

They are matrix products of exponentials, of which a frame's largest and a label position's largest
are taken out before. Where the two peak at different classes, all products of a cell may be too
small for floating point; frames with such cells are computed again, exactly, one frame at a time.
That takes as long as it would with stored logits, for these frames alone.

The exponentials are computed for some frames at a time: nothing as large as `am` is stored beside
its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._native.jax_versions import align_varying_axes
from ._native.platforms import tile_bytes
from .numerics import accumulator_dtype, axis_index
from .per_shard import tile_begins

_TILE_BYTES = {"cpu": 4 * 2**20, "gpu": 64 * 2**20}
"""Of the exponentials of the frames that are computed at a time, where all of them are larger than
a plane of arcs, `(*batch, T, U+1)`."""

_EXPORTED_BATCH = 16
"""The tiles of a program that is exported for batches of any size are those of this one."""


class RelativeRows(NamedTuple):
    """Scores relative to the largest of their row, computed where they are used: not stored."""

    scores: jax.Array  # (B, rows, V), as the caller gave them
    dead: jax.Array  # (B, rows, 1): rows that count as all -inf, whatever they hold
    top: jax.Array  # (B, rows, 1): the largest; 0 for dead rows, NaN for NaN and +inf
    excluded: int | None  # a class that counts as -inf

    def relative(self, *index: jax.Array) -> jax.Array:
        """All, or the rows of one utterance, or one row."""
        scores = without_class(self.scores[index], self.excluded)
        return jnp.where(self.dead[index], -jnp.inf, scores - self.top[index])


def relative_rows(scores: jax.Array, used: jax.Array, excluded: int | None) -> RelativeRows:
    """Rows of scores `(B, rows, V)`, of which those not used, `(B, rows)` bool, are dead."""
    top = jnp.max(without_class(scores, excluded), axis=2, keepdims=True)
    dead = ~used[..., None] | (top == -jnp.inf)
    top = jnp.where(dead, 0, jnp.where(top == jnp.inf, jnp.nan, top))
    return RelativeRows(scores, dead, top, excluded)


def rows_relative_to(
    top: jax.Array, scores: jax.Array, used: jax.Array, excluded: int | None
) -> RelativeRows:
    """The same with tops `(B, rows)` that are known."""
    dead = ~used[..., None]
    return RelativeRows(scores, dead, jnp.where(dead, 0, top[..., None]), excluded)


def without_class(scores: jax.Array, excluded: int | None) -> jax.Array:
    """Scores in the dtype of arcs, -inf for a class that is excluded."""
    scores = scores.astype(accumulator_dtype(scores.dtype))
    if excluded is None:
        return scores
    return jnp.where(axis_index(scores.ndim, -1, scores.shape[-1]) == excluded, -jnp.inf, scores)


def log_denominators(am: RelativeRows, lm: RelativeRows) -> jax.Array:
    """log sum_v exp(am[t, v] + lm[u, v]), `(B, T, U+1)`."""
    lm_exp = jnp.exp(lm.relative())

    def one_tile(am: RelativeRows, own: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        del own
        sums = products("btv,buv->btu", jnp.exp(am.relative()), lm_exp)
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


def expected_counts(
    am: RelativeRows,
    lm: RelativeRows,
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
        am: RelativeRows, own: jax.Array, over_t: jax.Array, *planes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        denominators, weights, *others = planes
        weights = jnp.where(own, weights, 0)
        logs = jnp.where(weights != 0, denominators, jnp.inf)
        inexact = jnp.any(logs < jnp.log(_smallest_exact_sum(am)), axis=2)
        factors = jnp.where(inexact[..., None], 0, weights * jnp.exp(-logs))
        am_exp = jnp.exp(am.relative())
        over_t += lm_exp * products("btu,btv->buv", factors, am_exp)
        over_u = am_exp * products("btu,buv->btv", factors, lm_exp)

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
    am: RelativeRows,
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

        of_tile = RelativeRows(tile(am.scores), tile(am.dead), tile(am.top), am.excluded)
        own = axis_index(2, 0, frames) >= begin - (T - frames)
        result, carry = one_tile(of_tile, own, carry, *map(tile, planes))
        return (lax.dynamic_update_slice_in_dim(results, result, begin, 1), carry), None

    _, results, carry = align_varying_axes(am.top, results, carry)
    begins = tile_begins(T, frames)
    return lax.scan(step, (results, carry), begins, reverse=True)[0]


def products(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An einsum without the shortcuts that accelerators take with float32."""
    return jnp.einsum(subscripts, x, y, precision=lax.Precision.HIGHEST)


def _smallest_exact_sum(rows: RelativeRows) -> jax.Array:
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
