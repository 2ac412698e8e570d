"""The recursion over packed rows in pure JAX: what `lattice_reference` is to whole lattices.

The cells of an utterance with T frames and U labels are T (U+1) neighbouring rows, those of a frame
together; where they begin is the utterance's offset. All functions take any number of leading batch
dimensions and need O(N) memory for N rows. How many steps they take depends on the data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import extended
from ._native.jax_versions import align_varying_axes, varying_zeros
from .bounds import valid_bounds
from .extended import Extended
from .lattice_reference import advance, arcs_on_paths, retreat
from .numerics import two_sum
from .types import Topology


def packed_lattice(
    blank: jax.Array,
    label: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
    *,
    topology: Topology,
    final_blank: bool,
    delay_penalty: float,
    num_labels: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-likelihood and arc posteriors of packed utterances.

    The wavefront of `lattice_reference.lattice`, in a loop that ends when all utterances have, with
    alpha stored by row.

    Args:
      blank, label: arc log-probabilities, `(*batch, N)` float32 or float64.
      offsets: `(*batch, B)` int32, first row of each utterance.
      bounds: `(*batch, B, 4)` int32: frame begin and end, label begin and end. An utterance has
        frame end times (label end + 1) rows.
      topology, final_blank, delay_penalty: as for `lattice_reference.lattice`.
      num_labels: no label end is larger.

    Returns:
      `(log_likelihood, blank_posteriors, label_posteriors)`: `(*batch, B)`, then twice
      `(*batch, N)`. The log-likelihood is -inf without a complete path and NaN for bad input and
      for utterances that go beyond row N; the posteriors are then zero, as in rows of none.
    """

    def both(blank, label, offsets, bounds):
        fronts = PackedFronts(
            blank, label, offsets, bounds, topology, final_blank, delay_penalty, num_labels
        )
        log_likelihood, alphas = fronts.forward(keep=True)
        return log_likelihood, *fronts.posteriors(log_likelihood, alphas)

    return over_batch(both, blank, label, offsets, bounds)


def packed_lattice_score(
    blank: jax.Array,
    label: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
    *,
    topology: Topology,
    final_blank: bool,
    delay_penalty: float,
    num_labels: int,
) -> jax.Array:
    """The log-likelihood of `packed_lattice` alone, `(*batch, B)`."""

    def score(blank, label, offsets, bounds):
        fronts = PackedFronts(
            blank, label, offsets, bounds, topology, final_blank, delay_penalty, num_labels
        )
        return fronts.forward(keep=False)[0]

    return over_batch(score, blank, label, offsets, bounds)


def over_batch(function: Callable[..., Any], blank: jax.Array, *operands: jax.Array) -> Any:
    for _ in range(blank.ndim - 1):
        function = jax.vmap(function)
    return function(*align_varying_axes(blank, *operands))


class _Front(NamedTuple):
    """The arcs that leave one front, `(B, W)`, -inf where no complete path takes them."""

    blank: jax.Array
    label: jax.Array
    rows: jax.Array  # of the nodes that have any, N of the others
    label_ends: jax.Array  # the row in which a label arc of the same frame ends, or N


class PackedFronts:
    """As `lattice_reference._Fronts`, with n and u relative to the begin of each utterance."""

    def __init__(
        self,
        blank: jax.Array,
        label: jax.Array,
        offsets: jax.Array,
        bounds: jax.Array,
        topology: Topology,
        final_blank: bool,
        delay_penalty: float,
        num_labels: int,
    ):
        self.N = N = blank.shape[0]
        self.regular, self.constrained = topology == "regular", topology == "constrained"
        self.last_is_blank = self.regular or final_blank
        self.delay_penalty = delay_penalty
        # Row N is that of all nodes without a row.
        self.blank, self.label = (
            jnp.pad(x, (0, 1), constant_values=-jnp.inf) for x in (blank, label)
        )

        offset, cells = jnp.clip(offsets, 0, N), bounds[:, 3] + 1
        fits = (offsets >= 0) & (bounds[:, 1] <= (N - offset) // jnp.maximum(cells, 1))
        self.valid = valid_bounds(bounds, N, num_labels) & fits
        bounds = jnp.where(self.valid[:, None], bounds, 0)
        frame_begin, self.frame_end, label_begin, label_end = (bounds[:, i, None] for i in range(4))
        self.frame_begin, self.label_begin, self.stride = frame_begin, label_begin, label_end + 1
        self.first = offset[:, None] + frame_begin * self.stride + label_begin
        self.frames, self.labels = self.frame_end - frame_begin, label_end - label_begin
        empty = self.frames <= 0
        labels_as_steps = jnp.where(empty, 0, self.labels) if self.regular else 0
        self.steps = self.frames + labels_as_steps
        self.trivial = jnp.where(self.labels <= 0, 0, -jnp.inf).astype(blank.dtype)[:, 0]
        self.empty = empty[:, 0]
        self.num_fronts = jnp.max(self.steps, initial=0)
        self.u = lax.broadcasted_iota(jnp.int32, (offsets.shape[0], num_labels + 1), 1)
        # Selected by an operand, as in `lattice_reference._Fronts`.
        zero = jnp.where(self.u == self.labels, 0, 0)
        self.dead_row = Extended(zero.astype(blank.dtype), zero + extended.DEAD)

    def front(self, n: jax.Array) -> _Front:
        u = self.u
        blank_lives, label_lives = arcs_on_paths(n, u, self.steps, self.labels, self.last_is_blank)
        t = n - u if self.regular else n + jnp.zeros_like(u)
        rows = self.first + t * self.stride + u
        label_ends = jnp.where(label_lives, rows + 1, self.N)
        rows = jnp.where(blank_lives | label_lives, rows, self.N)
        label = self.label[rows]
        if self.constrained:
            label = label + self.blank[label_ends]
        if self.delay_penalty != 0:
            frame = (self.frame_begin + t).astype(label.dtype)
            middle = (self.frame_end.astype(label.dtype) - 1) / 2
            label = label + self.delay_penalty * (middle - frame)
        blank = jnp.where(blank_lives, self.blank[rows], -jnp.inf)
        return _Front(blank, jnp.where(label_lives, label, -jnp.inf), rows, label_ends)

    def forward(self, keep: bool) -> tuple[jax.Array, Extended | None]:
        """The log-likelihoods, and alpha by rows, each relative to the largest of its front."""
        zero = self.dead_row.mantissa[:, 0]
        begin = self.u == 0
        start = Extended(
            jnp.where(begin, 1, self.dead_row.mantissa), jnp.where(begin, 0, self.dead_row.exponent)
        )

        def step(n, carry):
            row, offset, score, alphas = carry
            front = self.front(n)
            if alphas is not None:
                alphas = jax.tree.map(partial(_store, front.rows), alphas, row)
            after, largest = advance(row, front.blank, front.label)
            offset = two_sum(offset, largest.astype(score.dtype))
            at_end = jnp.sum(jnp.where(self.u == self.labels, after.mantissa, 0), axis=-1)
            ended = self.steps[:, 0] == n + 1
            return after, offset, jnp.where(ended, extended.log(at_end, offset), score), alphas

        zeros = varying_zeros(self.blank)
        alphas = Extended(zeros, zeros.astype(jnp.int32)) if keep else None
        carry = (start, (zero, zero), zero - jnp.inf, alphas)
        _, _, score, alphas = lax.fori_loop(0, self.num_fronts, step, carry)
        score = jnp.where(self.empty, self.trivial, score)
        return jnp.where(self.valid, score, jnp.nan), alphas

    def posteriors(
        self, log_likelihood: jax.Array, alphas: Extended | None
    ) -> tuple[jax.Array, jax.Array]:
        """Arc posteriors `(N,)`."""
        assert alphas is not None
        finite = jnp.isfinite(log_likelihood)[:, None]

        def step(i, carry):
            beta, blank, label = carry
            n = self.num_fronts - 1 - i
            front = self.front(n)
            end = (self.steps == n + 1) & (self.u == self.labels)
            beta = Extended(jnp.where(end, 1, beta.mantissa), jnp.where(end, 0, beta.exponent))
            mantissa = jnp.where(front.rows < self.N, alphas.mantissa[front.rows], 0)
            alpha = Extended(mantissa, alphas.exponent[front.rows])
            beta, weights = retreat(beta, alpha, front.blank, front.label)
            on_blank, on_label = (jnp.where(finite, x, 0) for x in weights)
            blank = blank.at[front.rows].add(on_blank)
            if self.constrained:
                blank = blank.at[front.label_ends].add(on_label)
            return beta, blank, _store(front.rows, label, on_label)

        zeros = varying_zeros(self.blank)
        carry = (self.dead_row, zeros, zeros)
        _, blank, label = lax.fori_loop(0, self.num_fronts, step, carry)
        return blank[: self.N], label[: self.N]


def _store(rows: jax.Array, plane: jax.Array, values: jax.Array) -> jax.Array:
    return plane.at[rows].set(values)
