"""The best path through arcs in pure JAX: what `lattice_reference` is to sums over all paths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from .banded_reference import Band, rotate
from .extended import EXCESSIVE_LOG_PROB, FORBIDDEN_LOG_PROB
from .numerics import axis_index, shift_right
from .types import Topology


def best_path(
    blank: jax.Array,
    label: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
    *,
    num_labels: int,
    topology: Topology,
    final_blank: bool,
    delay_penalty: float,
) -> tuple[jax.Array, jax.Array]:
    """The best complete path through a band (Viterbi), and its score.

    One scan step a frame, and one back. A whole lattice is the band with S = U+1 and all starts 0.

    Args:
      blank, label, starts, bounds, topology, delay_penalty: as for
        `banded_reference.banded_lattice`.
      num_labels: U.
      final_blank: modified only; the last frame has a blank arc only.

    Returns:
      `(score, frames)`: `(*batch,)` in the arcs' dtype, and `(*batch, U)` int32, the frame of each
      label, -1 in padding. Of equally good paths it is the one whose labels all come first. The
      score is -inf without a complete path and NaN for bad bounds or input; the frames are then -1.
    """
    band = Band(blank, label, starts, bounds, topology, delay_penalty, final_blank)
    score, by_label = _scores(band, is_whole=blank.shape[-1] == num_labels + 1)
    frames = _frames_of_labels(band, by_label, num_labels)
    u = axis_index(frames.ndim, -1, num_labels)
    exists = (band.label_begin <= u) & (u < band.label_end) & jnp.isfinite(score)[..., None]
    return score, jnp.where(exists, frames, -1)


def usable(arcs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arcs, forbidden and bad ones as -inf; which rows, along the last axis, have bad ones."""
    bad = ~(arcs <= EXCESSIVE_LOG_PROB)
    return jnp.where(bad | (arcs < FORBIDDEN_LOG_PROB), -jnp.inf, arcs), jnp.any(bad, axis=-1)


def _scores(band: Band, is_whole: bool) -> tuple[jax.Array, jax.Array]:
    """The best score, and by which arc each node was reached: `(T, *batch, S + 1)`, true for label.

    The nodes are those of a frame in a regular lattice, otherwise those after the frame.
    """
    (blank, bad_blank), (label, bad_label) = usable(band.blank), usable(band.label)
    bad = jnp.any(bad_blank | bad_label, axis=0)
    dead = band.dead_row.mantissa - jnp.inf

    def step(carry, frame):
        row, score = carry
        (t, start, distance), blank_arcs, label_arcs = frame
        here = (t == band.frame_begin) & (start + axis_index(start.ndim, -1, band.S) == begin)
        row = jnp.where(here, 0, row)
        if band.regular:
            moves = shift_right(label_arcs, -jnp.inf)
            moved = shift_right(_running_best(row, moves), -jnp.inf) + moves
            by_label = _above(moved > row, False)
            after = _above(jnp.maximum(row, moved) + blank_arcs, -jnp.inf)
        else:
            stayed = _above(row + blank_arcs, -jnp.inf)
            moved = shift_right(_above(row + label_arcs, -jnp.inf), -jnp.inf)
            by_label, after = moved > stayed, jnp.maximum(stayed, moved)
        # At the end only its node is alive.
        at_end = (band.frame_end == t + 1)[..., 0]
        score = jnp.where(at_end, jnp.max(after, axis=-1), score)
        if not is_whole:
            after = rotate(after, distance)
        return (after[..., :-1], score), by_label

    begin = band.label_begin
    (_, score), by_label = lax.scan(step, (dead, dead[..., 0]), (band.frames, blank, label))
    score = jnp.where(band.feasible, score, -jnp.inf)
    score = jnp.where(bad, jnp.nan, score)
    score = jnp.where(band.empty, jnp.where(band.unlabelled, 0, -jnp.inf), score)
    return jnp.where(band.valid, score, jnp.nan), by_label


def _frames_of_labels(band: Band, by_label: jax.Array, num_labels: int) -> jax.Array:
    """Follows the best path back: the frame of each label `(*batch, U)`."""

    def step(position, frame):
        t, start, by_label = frame
        position = jnp.where(band.frame_end == t + 1, band.label_end, position)
        s = axis_index(by_label.ndim, -1, by_label.shape[-1])
        slot = position - start
        if band.regular:
            # Down to the nearest node that was reached by blank.
            lowest = jnp.max(jnp.where((s <= slot) & ~by_label, s, 0), axis=-1, keepdims=True)
            before = start + lowest
        else:
            moved = jnp.any((s == slot) & by_label, axis=-1, keepdims=True)
            before = position - moved.astype(jnp.int32)
        inside = (band.frame_begin <= t) & (t < band.frame_end)
        return jnp.where(inside, before, position), jnp.where(inside, position, -1)

    t, starts, _ = band.frames
    # The label position with which the path leaves each frame, (T, *batch, 1); -1 in padding.
    _, left = lax.scan(step, band.label_end, (t, starts, by_label), reverse=True)
    # A label is emitted in the first frame that the path leaves above it.
    u = axis_index(left.ndim, -1, num_labels)
    return band.frame_begin + jnp.sum((left >= 0) & (left <= u), axis=0, dtype=jnp.int32)


def _running_best(terms: jax.Array, steps: jax.Array) -> jax.Array:
    """x(s) = max(terms(s), steps(s) + x(s-1)), by doubling as `banded_reference._running_sums`."""
    if not isinstance(terms.shape[-1], int):  # symbolic when exported: how often is unknown
        return _running_best_one_by_one(terms, steps)
    distance = 1
    while distance < terms.shape[-1]:
        pad = [(0, 0)] * (terms.ndim - 1) + [(distance, 0)]

        def below(x: jax.Array, pad=pad, distance=distance) -> jax.Array:
            return jnp.pad(x[..., :-distance], pad, constant_values=-jnp.inf)

        terms, steps = jnp.maximum(terms, steps + below(terms)), steps + below(steps)
        distance *= 2
    return terms


def _running_best_one_by_one(terms: jax.Array, steps: jax.Array) -> jax.Array:
    def step(below: jax.Array, here: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best = jnp.maximum(here[0], here[1] + below)
        return best, best

    along = (jnp.moveaxis(terms, -1, 0), jnp.moveaxis(steps, -1, 0))
    _, best = lax.scan(step, jnp.full_like(terms[..., 0], -jnp.inf), along)
    return jnp.moveaxis(best, 0, -1)


def _above(row: jax.Array, fill: float | bool) -> jax.Array:
    """With a slot above the band's cells."""
    return jnp.concatenate([row, jnp.full_like(row[..., :1], fill)], axis=-1)
