"""The best path through packed rows in pure JAX: what `packed_lattice_reference` is to the sums."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._native.jax_versions import varying_zeros
from .best_path_reference import usable
from .numerics import axis_index, shift_right
from .packed_lattice_reference import PackedFronts, over_batch


def packed_best_path(
    blank: jax.Array,
    label: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
    *,
    num_labels: int,
    **params: Any,
) -> tuple[jax.Array, jax.Array]:
    """The best complete path of each packed utterance (Viterbi), and its score.

    A loop over the fronts and one back, which end when all utterances have.

    Args:
      blank, label, offsets, bounds, num_labels: as for
        `packed_lattice_reference.packed_lattice`, and so are the other parameters.

    Returns:
      `(score, frames)`: `(*batch, B)` in the arcs' dtype and `(*batch, B, num_labels)` int32, as
      `best_path_reference.best_path`.
    """

    def both(blank, label, offsets, bounds):
        fronts = PackedFronts(blank, label, offsets, bounds, num_labels=num_labels, **params)
        score, by_label = _scores(fronts)
        return score, jnp.where(jnp.isfinite(score)[:, None], _frames(fronts, by_label), -1)

    return over_batch(both, blank, label, offsets, bounds)


def _rows(fronts: PackedFronts, n: jax.Array, u: jax.Array) -> jax.Array:
    """Where it is stored by which arc node u of front n + 1 was reached; row N for those without.

    In the regular lattice that is the node's own row, which all nodes have but the last one. In the
    others it is the row of the frame before it, since all nodes have one.
    """
    t = n + 1 - u if fronts.regular else n + jnp.zeros_like(u)
    there = (t >= 0) & (t < fronts.frames) & (u <= fronts.labels) & (n < fronts.steps)
    return jnp.where(there, fronts.first + t * fronts.stride + u, fronts.N)


def _scores(fronts: PackedFronts) -> tuple[jax.Array, jax.Array]:
    """The best scores, and by which arc each node was reached: `(N + 1,)`, true for label."""

    def step(n, carry):
        row, score, bad, by_label = carry
        front = fronts.front(n)
        (blank, bad_blank), (label, bad_label) = (usable(x) for x in (front.blank, front.label))
        stayed = row + blank
        moved = shift_right(row + label, -jnp.inf)
        by_label = by_label.at[_rows(fronts, n, fronts.u)].set(moved > stayed)
        row = jnp.maximum(stayed, moved)
        at_end = jnp.max(jnp.where(fronts.u == fronts.labels, row, -jnp.inf), axis=-1)
        score = jnp.where(fronts.steps[:, 0] == n + 1, at_end, score)
        return row, score, bad | bad_blank | bad_label, by_label

    start = jnp.where(fronts.u == 0, 0, fronts.dead_row.mantissa - jnp.inf)
    dead = fronts.dead_row.mantissa[:, 0] - jnp.inf
    by_label = varying_zeros(fronts.blank, jnp.bool_)
    carry = (start, dead, dead > 0, by_label)
    _, score, bad, by_label = lax.fori_loop(0, fronts.num_fronts, step, carry)
    score = jnp.where(bad, jnp.nan, score)
    score = jnp.where(fronts.empty, fronts.trivial, score)
    return jnp.where(fronts.valid, score, jnp.nan), by_label


def _frames(fronts: PackedFronts, by_label: jax.Array) -> jax.Array:
    """Follows the best paths back: the frame of each label `(B, num_labels)`, -1 in padding."""
    position = axis_index(2, 1, fronts.u.shape[1] - 1)
    begin = fronts.label_begin

    def step(i, carry):
        u, frames = carry
        n = fronts.num_fronts - 1 - i
        # The last node of a regular lattice has no row, and is reached by blank.
        rows = _rows(fronts, n, u)
        by = by_label[rows] & (rows < fronts.N)
        u = jnp.where(by, u - 1, u)
        t = fronts.frame_begin + (n - u if fronts.regular else n)
        return u, jnp.where(by & (position == begin + u), t, frames)

    nowhere = jnp.where(position == begin, -1, -1)  # selected by an operand, as in `PackedFronts`
    carry = (fronts.labels, nowhere)
    return lax.fori_loop(0, fronts.num_fronts, step, carry)[1]
