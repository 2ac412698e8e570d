"""The recursion over bands of cells in pure JAX: what `lattice_reference` is to whole lattices.

A band has S cells in each frame, those of label positions `starts[t]` to `starts[t] + S - 1`. All
functions take any number of leading batch dimensions and need O(T S) memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import extended
from .extended import Extended
from .lattice_reference import with_delay_penalty, without_bad_arcs
from .numerics import axis_index, shift_left, shift_right, two_sum
from .types import Topology

_FAR = 2**30  # beyond any label position


def banded_lattice(
    blank: jax.Array,
    label: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
    *,
    topology: Topology,
    delay_penalty: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-likelihood and arc posteriors of the alignments that stay in the band.

    An alignment moves by a blank arc from `(t, u)` to `(t+1, u)`, by a label arc to `(t, u+1)`
    (regular) or `(t+1, u+1)` (modified, constrained), if the cell that it comes to is in the band
    of its frame; the node at which alignments end always is. A constrained label arc has the blank
    arc of cell `(t, u+1)` in it, which must be in the band.

    One scan step a frame, with numbers as in `lattice_reference.lattice`. Posteriors are normalised
    by the sum over the arcs that lead to the next frame, of which every complete path takes one.

    Args:
      blank, label: arc log-probabilities, `(*batch, T, S)` float32 or float64.
      starts: `(*batch, T)` int32, label position of each frame's first cell.
      bounds: `(*batch, 4)` int32: frame begin and end, label begin and end.
      topology: `"regular"`, `"modified"` or `"constrained"` (arXiv 2206.13236).
      delay_penalty: added to label arcs, times `(frame_end - 1) / 2 - t` (arXiv 2211.00490).

    Returns:
      `(log_likelihood, blank_posteriors, label_posteriors)`: `(*batch,)`, then twice
      `(*batch, T, S)`. The log-likelihood is -inf without a complete path and NaN for bad bounds or
      input; the posteriors are then zero.
    """
    band = Band(blank, label, starts, bounds, topology, delay_penalty)
    log_likelihood, alphas = band.forward()
    blank_posteriors, label_posteriors = band.posteriors(alphas)
    finite = jnp.isfinite(log_likelihood)[..., None, None]
    if topology == "constrained":
        # A constrained label arc is l(t, u) + b(t, u + 1): it is an occurrence of both.
        blank_posteriors = blank_posteriors + shift_right(label_posteriors, 0)
    return (
        log_likelihood,
        jnp.where(finite, blank_posteriors, 0),
        jnp.where(finite, label_posteriors, 0),
    )


def banded_lattice_score(
    blank: jax.Array,
    label: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
    *,
    topology: Topology,
    delay_penalty: float,
) -> jax.Array:
    """The log-likelihood of `banded_lattice` alone, `(*batch,)`."""
    return Band(blank, label, starts, bounds, topology, delay_penalty).forward()[0]


class _Interval(NamedTuple):
    """Label positions [low, high]; empty if low > high."""

    low: jax.Array
    high: jax.Array

    def intersect(self, other: _Interval) -> _Interval:
        low, high = jnp.maximum(self.low, other.low), jnp.minimum(self.high, other.high)
        return _Interval(low, high)

    def empty(self) -> jax.Array:
        return self.low > self.high


class Band:
    """Arcs by frame, -inf where they are on no complete path, whatever was given for them.

    Nodes of a frame are in S + 1 slots, slot s for label position `start + s`: a label arc to the
    next frame may leave the band at its upper end, if the next band is higher.
    """

    def __init__(
        self,
        blank: jax.Array,
        label: jax.Array,
        starts: jax.Array,
        bounds: jax.Array,
        topology: Topology,
        delay_penalty: float,
        final_blank: bool = False,
    ):
        *batch, T, S = blank.shape
        self.T, self.S, self.topology = T, S, topology
        self.regular, self.final_blank = topology == "regular", final_blank
        if topology == "constrained":
            label = label + shift_left(blank, -jnp.inf)
        label = with_delay_penalty(label, bounds, delay_penalty)

        self.frame_begin, self.frame_end = bounds[..., 0, None], bounds[..., 1, None]
        self.label_begin, self.label_end = bounds[..., 2, None], bounds[..., 3, None]
        self.starts = starts
        blank_arcs, label_arcs, feasible = self._corridor()

        labels_good = (self.label_begin >= 0) & (self.label_begin <= self.label_end)
        frames_good = (self.frame_begin >= 0) & (self.frame_begin <= self.frame_end)
        self.valid = (labels_good & frames_good & (self.frame_end <= T))[..., 0]
        self.empty = (self.frame_end <= self.frame_begin)[..., 0]
        self.unlabelled = (self.label_end <= self.label_begin)[..., 0]
        self.feasible = feasible

        position = starts[..., None] + axis_index(len(batch) + 2, -1, S)

        def arcs(plane: jax.Array, alive: _Interval) -> jax.Array:
            inside = (alive.low[..., None] <= position) & (position <= alive.high[..., None])
            return jnp.moveaxis(jnp.where(inside, plane, -jnp.inf), -2, 0)

        arcs_by_frame = arcs(blank, blank_arcs), arcs(label, label_arcs)
        self.blank, self.label, good = without_bad_arcs(*arcs_by_frame)
        self.valid &= good | ~feasible
        distance = jnp.concatenate([starts[..., 1:], starts[..., -1:]], axis=-1) - starts
        # Selected by an operand, though they are constant: inside shard_map the carries of a scan
        # must vary along the same mesh axes as what is added to them.
        any_row = self.label_begin == axis_index(len(batch) + 1, -1, S)
        self.dead_row = Extended(
            jnp.where(any_row, 0, 0).astype(blank.dtype),
            jnp.where(any_row, extended.DEAD, extended.DEAD).astype(jnp.int32),
        )
        self.frames = (
            jnp.arange(T, dtype=jnp.int32),
            jnp.moveaxis(starts, -1, 0)[..., None],
            jnp.moveaxis(jnp.mod(distance, S + 1), -1, 0)[..., None],
        )

    def _corridor(self) -> tuple[_Interval, _Interval, jax.Array]:
        """Blank and label arcs on complete paths, `(*batch, T)` each, and whether there is a path.

        In a frame, the label positions that can be reached from the begin are an interval, and so
        are those from which the end can be reached; both are nonempty, and then exact, if every
        frame has an arc to the next in what they have in common.
        """
        ndim = self.starts.ndim
        t = axis_index(ndim, -1, self.T)
        inside = (self.frame_begin <= t) & (t < self.frame_end)
        first, last = t == self.frame_begin, t == self.frame_end - 1
        band = _Interval(self.starts, self.starts + (self.S - 1))
        axis = ndim - 1

        def highest(x: jax.Array, reverse: bool = False) -> jax.Array:
            return lax.cummax(jnp.where(inside, x, -_FAR), axis=axis, reverse=reverse)

        def lowest(x: jax.Array, reverse: bool = False) -> jax.Array:
            return lax.cummin(jnp.where(inside, x, _FAR), axis=axis, reverse=reverse)

        low = jnp.maximum(highest(band.low), self.label_begin)
        high = jnp.minimum(lowest(band.high, reverse=True), self.label_end)
        nodes = _Interval(low, high).intersect(band)
        if not self.regular:
            # At most one label a frame, after the begin and before the end.
            rise = lowest(band.high - t)
            if self.topology == "constrained":
                rise = jnp.minimum(rise, shift_right(rise, _FAR) - 1)
            rise = jnp.minimum(rise, self.label_begin - self.frame_begin)
            fall = highest(band.low - t, reverse=True)
            fall = jnp.maximum(fall, self.label_end - self.frame_end + int(self.final_blank))
            nodes = nodes.intersect(_Interval(fall + t, rise + t))

        following = _Interval(*(shift_left(x, 0) for x in nodes))
        end = jnp.broadcast_to(self.label_end, low.shape)
        following = _Interval(*(jnp.where(last, end, x) for x in following))
        blank = nodes.intersect(following)
        if self.regular:
            label = _Interval(nodes.low, nodes.high - 1)
            broken = blank.empty()
        else:
            label = nodes.intersect(_Interval(following.low - 1, following.high - 1))
            if self.topology == "constrained":
                label = _Interval(label.low, jnp.minimum(label.high, band.high - 1))
            broken = blank.empty() & label.empty()
        broken |= first & ((self.label_begin < band.low) | (self.label_begin > band.high))
        blank, label = (_Interval(jnp.where(inside, x.low, _FAR), x.high) for x in (blank, label))
        return blank, label, ~jnp.any(broken & inside, axis=-1)

    def forward(self) -> tuple[jax.Array, Extended]:
        """The log-likelihood, and alpha of each frame relative to its largest exponent."""
        dtype = self.blank.dtype
        begin, end = self.frame_begin, self.frame_end

        def step(carry, frame):
            row, offset, score = carry
            (t, start, distance), blank_arcs, label_arcs = frame
            here = (t == begin) & (start + axis_index(start.ndim, -1, self.S) == self.label_begin)
            row = Extended(jnp.where(here, 1, row.mantissa), jnp.where(here, 0, row.exponent))
            label = extended.exp(label_arcs)
            if self.regular:
                row = _running_sums(row, extended.shift_right(label))
            after = _above(extended.multiply(row, extended.exp(blank_arcs)))
            if not self.regular:
                moved = extended.shift_right(_above(extended.multiply(row, label)))
                after = extended.add(after, moved)
            after, largest = extended.normalise(after)
            offset = two_sum(offset, largest.astype(dtype))
            # At the end only its node is alive.
            at_end = jnp.sum(after.mantissa, axis=-1)
            score = jnp.where((end == t + 1)[..., 0], extended.log(at_end, offset), score)
            after = _rotate(after, distance)
            return (_below(after), offset, score), row

        row, zero = self.dead_row, self.dead_row.mantissa[..., 0]
        carry = (row, (zero, zero), zero - jnp.inf)
        (_, _, score), alphas = lax.scan(step, carry, (self.frames, self.blank, self.label))
        score = jnp.where(self.feasible, score, -jnp.inf)
        score = jnp.where(self.empty, jnp.where(self.unlabelled, 0, -jnp.inf), score)
        return jnp.where(self.valid, score, jnp.nan), alphas

    def posteriors(self, alphas: Extended) -> tuple[jax.Array, jax.Array]:
        """Arc posteriors `(*batch, T, S)`, by beta against the stored alphas."""

        def step(beta, frame):
            ((t, start, distance), blank_arcs, label_arcs), alpha = frame
            after = _rotate(_above(beta), jnp.mod(-distance, self.S + 1))
            u = start + axis_index(start.ndim, -1, self.S + 1)
            end = (self.frame_end == t + 1) & (u == self.label_end)
            after = Extended(jnp.where(end, 1, after.mantissa), jnp.where(end, 0, after.exponent))
            stay = extended.multiply(_below(after), extended.exp(blank_arcs))
            stay = extended.normalise_each(stay)
            label = extended.exp(label_arcs)
            if self.regular:
                beta = _flip(_running_sums(_flip(stay), _flip(label)))
                move = extended.multiply(extended.shift_left(beta), label)
            else:
                move = extended.multiply(_below(extended.shift_left(after)), label)
                beta = extended.add(stay, move)
            blank_weights, label_weights = extended.relative_to_largest(
                extended.multiply(alpha, stay), extended.multiply(alpha, move)
            )
            crossing = blank_weights if self.regular else blank_weights + label_weights
            total = jnp.sum(crossing, axis=-1, keepdims=True)
            total = jnp.where(total > 0, total, 1)
            return extended.normalise(beta)[0], (blank_weights / total, label_weights / total)

        frames = ((self.frames, self.blank, self.label), alphas)
        _, (blank, label) = lax.scan(step, self.dead_row, frames, reverse=True)
        return jnp.moveaxis(blank, 0, -2), jnp.moveaxis(label, 0, -2)


def _running_sums(terms: Extended, factors: Extended) -> Extended:
    """x(s) = terms(s) + factors(s) x(s-1), with x(-1) = 0.

    By doubling: after each round, an element is the sum over twice as many terms below it. No
    exponent is below DEAD.
    """
    step = 1
    while step < terms.mantissa.shape[-1]:
        below = extended.shift_right(terms, step)
        terms = extended.add(terms, extended.multiply(factors, below))
        terms = extended.normalise_each(terms)
        product = extended.multiply(factors, extended.shift_right(factors, step))
        factors = extended.normalise_each(product)
        step *= 2
    return terms


def _rotate(row: Extended, distance: jax.Array) -> Extended:
    return Extended(*(rotate(x, distance) for x in row))


def rotate(row: jax.Array, distance: jax.Array) -> jax.Array:
    """Element s + distance (modulo the number of slots) at s, by powers of two.

    Nodes in the bands of both frames come to their slots; no live arc leads to a node that does
    not, wherever it comes to.
    """
    slots, step = row.shape[-1], 1
    while step < slots:
        moves = (distance & step) != 0
        row = jnp.where(moves, jnp.roll(row, -step, axis=-1), row)
        step *= 2
    return row


def _above(row: Extended) -> Extended:
    """With a dead slot above the band's cells."""
    dead = jnp.full_like(row.exponent[..., :1], extended.DEAD)
    zero = jnp.zeros_like(row.mantissa[..., :1])
    return Extended(
        jnp.concatenate([row.mantissa, zero], axis=-1),
        jnp.concatenate([row.exponent, dead], axis=-1),
    )


def _below(row: Extended) -> Extended:
    """Without the slot above the band's cells."""
    return Extended(row.mantissa[..., :-1], row.exponent[..., :-1])


def _flip(row: Extended) -> Extended:
    return Extended(jnp.flip(row.mantissa, -1), jnp.flip(row.exponent, -1))
