"""The best path through arcs with durations in pure JAX: what `duration_reference` is to sums over
all paths."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .duration_reference import DurationFronts, only_one
from .extended import FORBIDDEN_LOG_PROB
from .numerics import axis_index, shift_right

_NONE = -1


class _Nodes(NamedTuple):
    """How the best paths come to the nodes of a front: `(*batch, W)`."""

    score: jax.Array
    arrival: jax.Array  # by blank: twice the number of its duration; by label: one more; or `_NONE`


def best_duration_path(
    blank: jax.Array,
    label: jax.Array,
    duration: jax.Array,
    bounds: jax.Array,
    *,
    durations: tuple[int, ...],
    labels_stay: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best complete path (Viterbi).

    One scan step a front, and one back.

    Args:
      blank, label, duration, bounds, durations, labels_stay: as in
        `duration_reference.duration_lattice`.

    Returns:
      `(score, frames, durations)`: `(*batch,)` in the arcs' dtype, and frame and duration of each
      label, `(*batch, U)` int32, -1 in padding. Of equally good paths to a node it is the one whose
      last arc has the longest duration, by label rather than by blank. The score is -inf without a
      complete path and NaN for bad bounds or input; the others are then -1.
    """
    fronts = DurationFronts(blank, label, duration, bounds, durations, labels_stay)
    end, arrivals = _forward(fronts)
    score = jnp.where(fronts.empty, jnp.where(fronts.unlabelled, 0, -jnp.inf), end.score)
    score = jnp.where(fronts.valid, score, jnp.nan)
    found = jnp.isfinite(score)[..., None]
    of_labels = _trace_back(fronts, end.arrival, arrivals, bounds)
    frames, of_labels_durations = (jnp.where(found, x, _NONE) for x in of_labels)
    return score, frames, of_labels_durations


def _better(of: _Nodes, score: jax.Array, arrival: int) -> _Nodes:
    better = score > of.score
    return _Nodes(jnp.where(better, score, of.score), jnp.where(better, arrival, of.arrival))


def _forward(fronts: DurationFronts) -> tuple[_Nodes, jax.Array]:
    """The end, `(*batch,)`, and the arrivals of each front, `(n, *batch, W)`."""
    dead = _Nodes(fronts.dead_row.mantissa - jnp.inf, 0 * fronts.dead_row.exponent + _NONE)
    allowed = fronts.fronts._replace(
        blank=_allowed(fronts.fronts.blank),
        label=_allowed(fronts.fronts.label),
        duration=_allowed(fronts.fronts.duration),
    )

    def step(carry, front):
        (row, *later), end = carry
        start = (fronts.start == front.n) & fronts.at_start
        row = row._replace(score=jnp.where(start, 0, row.score))
        later = [*later, dead]
        # Later nodes take what comes to them from the earliest front first, and by blank first:
        # that with the longest duration, by label rather than by blank of the same.
        for i, d in enumerate(fronts.durations):
            if d == 0:
                continue
            score = row.score + (front.blank + front.duration[i])
            to_end = (front.frames_left == d) & fronts.at_end
            score = jnp.where((front.frames_left > d) | to_end, score, -jnp.inf)
            later[d - 1] = _better(later[d - 1], score, 2 * i)
        for i, d in enumerate(fronts.durations):
            if d > 0 and fronts.labels_stay:
                continue
            score = row.score + (front.label + front.duration[i])
            score = jnp.where(front.frames_left > d, score, -jnp.inf)
            later[d] = _better(later[d], shift_right(score, -jnp.inf), 2 * i + 1)
        here = (fronts.end == front.n + 1) & fronts.at_end
        end = _Nodes(*(jnp.where(here, x, y) for x, y in zip(later[0], end, strict=True)))
        return (tuple(later), end), row.arrival

    rows = (dead,) * (fronts.durations[-1] + 1)
    (_, end), arrivals = lax.scan(step, (rows, dead), allowed)
    return _Nodes(*(only_one(fronts.at_end, x) for x in end)), arrivals


def _allowed(log_probs: jax.Array) -> jax.Array:
    return jnp.where(log_probs < FORBIDDEN_LOG_PROB, -jnp.inf, log_probs)


def _trace_back(
    fronts: DurationFronts, arrival: jax.Array, arrivals: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Frames and durations of the labels, `(*batch, U)`."""
    width = arrivals.shape[-1]
    position = axis_index(bounds.ndim, -1, width)

    def before(front, u, arrival):
        """The node that the arc comes from, whether it is a label's, and its duration."""
        taken = 0 * arrival  # zeros that are divided among devices as the operand is
        for i, d in enumerate(fronts.durations):
            taken = jnp.where(arrival // 2 == i, d, taken)
        by_label = arrival % 2
        return front - taken - by_label, u - by_label, by_label > 0, taken

    def step(carry, of_front):
        front, u, frames, durations = carry
        n, row = of_front
        arrival = only_one(position == u[..., None], row)
        here = (n == front) & (arrival != _NONE)
        earlier, below, by_label, taken = before(front, u, arrival)
        labelled = (here & by_label)[..., None] & (position[..., :-1] == below[..., None])
        return (
            jnp.where(here, earlier, front),
            jnp.where(here, below, u),
            jnp.where(labelled, (earlier - below)[..., None], frames),
            jnp.where(labelled, taken[..., None], durations),
        ), None

    front, u, *_ = before(fronts.end[..., 0], bounds[..., 3], arrival)
    none = 0 * (bounds[..., :1] + position[..., :-1]) + _NONE
    start = front, u, none, none
    (*_, frames, durations), _ = lax.scan(step, start, (fronts.fronts.n, arrivals), reverse=True)
    return frames, durations
