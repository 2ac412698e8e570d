"""The forward-backward recursion over arcs with durations in pure JAX: what runs on TPU and
wherever there is no kernel.

Both functions take any number of leading batch dimensions and need no particular platform; the
native kernels compute the same. The module `bounds` says what bounds are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import extended
from .bounds import valid_bounds
from .extended import Extended
from .lattice_reference import from_antidiagonals, to_antidiagonals
from .numerics import axis_index


def duration_lattice(
    blank: jax.Array,
    label: jax.Array,
    duration: jax.Array,
    bounds: jax.Array,
    *,
    durations: tuple[int, ...],
    labels_stay: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-likelihood and posteriors of arcs and durations (arXiv 2304.06795, section 3).

    A path moves by blank from (t, u) to (t + d, u) for a duration d > 0, and by label to
    (t + d, u + 1) for any d. It ends with a blank that comes to (frame_end, label_end), and is
    before frame_end until then. A scan step is an anti-diagonal of the lattice, whose arcs all lead
    to later ones; it adds to as many of these as the longest duration reaches.

    Args:
      blank, label: arc log-probabilities, `(*batch, T, U+1)` float32 or float64.
      duration: log-probabilities of the durations, `(*batch, D, T, U+1)`.
      bounds: `(*batch, 4)`.
      durations: D increasing numbers of frames, not negative, one of them positive.
      labels_stay: label arcs have duration 0 alone.

    Returns:
      `(log_likelihood, blank_posteriors, label_posteriors, duration_posteriors)`: `(*batch,)`,
      twice `(*batch, T, U+1)`, and `(*batch, D, T, U+1)`, of both arcs. The log-likelihood is -inf
      without a complete path and NaN for bad input; the posteriors are then zero.
    """
    fronts = DurationFronts(blank, label, duration, bounds, durations, labels_stay)
    likelihood, alphas = fronts.forward()
    score = fronts.score(likelihood)
    finite = jnp.isfinite(score)[..., None, None]
    planes = fronts.posteriors(likelihood, alphas)
    of_blank, of_label = (jnp.where(finite, from_antidiagonals(x), 0) for x in planes[:2])
    of_durations = jnp.moveaxis(from_antidiagonals(planes[2]), 0, -3)
    return score, of_blank, of_label, jnp.where(finite[..., None, :, :], of_durations, 0)


def duration_lattice_score(
    blank: jax.Array,
    label: jax.Array,
    duration: jax.Array,
    bounds: jax.Array,
    *,
    durations: tuple[int, ...],
    labels_stay: bool,
) -> jax.Array:
    """The log-likelihood of `duration_lattice` alone, `(*batch,)`."""
    fronts = DurationFronts(blank, label, duration, bounds, durations, labels_stay)
    return fronts.score(fronts.forward()[0])


class _Front(NamedTuple):
    """Of all fronts, or of one, without the first dimension."""

    n: jax.Array  # (n,)
    blank: jax.Array  # (n, *batch, W), -inf outside of the utterance
    label: jax.Array
    duration: jax.Array  # (n, D, *batch, W)
    frames_left: jax.Array  # (n, *batch, W)


class DurationFronts:
    """Nodes (t, u) by front t + u and label position u."""

    def __init__(
        self,
        blank: jax.Array,
        label: jax.Array,
        duration: jax.Array,
        bounds: jax.Array,
        durations: tuple[int, ...],
        labels_stay: bool,
    ):
        *batch, T, W = blank.shape
        self.durations, self.labels_stay = durations, labels_stay
        self.valid = valid_bounds(bounds, T, W - 1)
        frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))
        self.empty = (frame_begin >= frame_end)[..., 0]
        self.unlabelled = (label_begin >= label_end)[..., 0]
        self.start, self.end = frame_begin + label_begin, frame_end + label_end
        u = axis_index(len(batch) + 1, -1, W)
        self.at_start, self.at_end = u == label_begin, u == label_end

        t = axis_index(len(batch) + 2, 0, T + W - 1) - u[None]
        in_frame = (frame_begin[None] <= t) & (t < frame_end[None])
        inside = in_frame & ((label_begin <= u) & (u <= label_end))[None]
        has_label = in_frame & ((label_begin <= u) & (u < label_end))[None]
        of_durations = jnp.moveaxis(to_antidiagonals(duration), -2, 1)
        blank = jnp.where(inside, to_antidiagonals(blank), -jnp.inf)
        label = jnp.where(has_label, to_antidiagonals(label), -jnp.inf)
        duration = jnp.where(inside[:, None], of_durations, -jnp.inf)
        # All are 0 where one is bad: the second derivative is zero then, not zero times NaN.
        bad = jnp.any(_is_bad(blank) | _is_bad(label) | jnp.any(_is_bad(duration), 1), (0, -1))
        self.valid &= ~bad
        bad = bad[None, ..., None]
        self.fronts = _Front(
            jnp.arange(T + W - 1, dtype=jnp.int32),
            jnp.where(bad, 0, blank),
            jnp.where(bad, 0, label),
            jnp.where(bad[None], 0, duration),
            frame_end[None] - t,
        )
        # Selected by an operand, as in `lattice_reference`.
        self.dead_row = Extended(
            jnp.where(self.at_start, 0, 0).astype(blank.dtype),
            jnp.where(self.at_start, extended.DEAD, extended.DEAD).astype(jnp.int32),
        )

    def _arcs(self, front: _Front) -> Iterator[tuple[int, Extended, Extended]]:
        """Each duration, and the blank and the label arc with it."""
        blank, label = extended.exp(front.blank), extended.exp(front.label)
        for i, d in enumerate(self.durations):
            duration = extended.exp(front.duration[i])
            before_end = front.frames_left > d
            to_end = (front.frames_left == d) & self.at_end
            labels_can = before_end & (d == 0 or not self.labels_stay)
            yield (
                d,
                _product_where(before_end | to_end, blank, duration),
                _product_where(labels_can, label, duration),
            )

    def forward(self) -> tuple[Extended, Extended]:
        """The likelihoods `(*batch,)`, and alphas of each front."""

        def step(carry, front):
            (row, *later), end = carry
            start = (self.start == front.n) & self.at_start
            row = _one_where(start, row)
            later = [*later, self.dead_row]
            for d, blank, label in self._arcs(front):
                if d > 0:
                    later[d - 1] = extended.add(later[d - 1], extended.multiply(row, blank))
                moved = extended.shift_right(extended.multiply(row, label))
                later[d] = extended.add(later[d], moved)
            later[0] = extended.normalise_each(later[0])
            here = (self.end == front.n + 1) & self.at_end
            end = Extended(*(x + only_one(here, y) for x, y in zip(end, later[0], strict=True)))
            return (tuple(later), end), row

        rows = (self.dead_row,) * (self.durations[-1] + 1)
        zero = self.dead_row.mantissa[..., 0], jnp.zeros_like(self.dead_row.exponent[..., 0])
        (_, end), alphas = lax.scan(step, (rows, Extended(*zero)), self.fronts)
        return end, alphas

    def score(self, likelihood: Extended) -> jax.Array:
        """Log-likelihoods `(*batch,)`."""
        mantissa, exponent = likelihood
        exponent = exponent.astype(mantissa.dtype)
        score = extended.log(mantissa, (exponent, jnp.zeros_like(exponent)))
        score = jnp.where(self.empty, jnp.where(self.unlabelled, 0, -jnp.inf), score)
        return jnp.where(self.valid, score, jnp.nan)

    def posteriors(
        self, likelihood: Extended, alphas: Extended
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of blank and label arcs, `(n, *batch, W)`, and of durations, `(n, D, *batch, W)`."""
        likelihood = Extended(*(x[..., None] for x in likelihood))

        def step(rows, front_and_alpha):
            front, alpha = front_and_alpha
            rows = (_one_where((self.end == front.n + 1) & self.at_end, rows[0]), *rows[1:])
            beta, blanks, labels = self.dead_row, [], []
            for d, blank, label in self._arcs(front):
                after = extended.multiply(label, extended.shift_left(rows[d]))
                labels.append(_posterior(alpha, after, likelihood))
                beta = extended.add(beta, after)
                if d == 0:
                    blanks.append(self.dead_row.mantissa)  # zeros, mapped by vmap as the others are
                    continue
                after = extended.multiply(blank, rows[d - 1])
                blanks.append(_posterior(alpha, after, likelihood))
                beta = extended.add(beta, after)
            rows = extended.normalise_each(beta), *rows[:-1]
            blank, label = jnp.stack(blanks), jnp.stack(labels)
            return rows, (blank.sum(0), label.sum(0), blank + label)

        rows = (self.dead_row,) * (self.durations[-1] + 1)
        _, planes = lax.scan(step, rows, (self.fronts, alphas), reverse=True)
        return planes


def _is_bad(log_prob: jax.Array) -> jax.Array:
    return ~(log_prob <= extended.EXCESSIVE_LOG_PROB)


def only_one(here: jax.Array, row: jax.Array) -> jax.Array:
    """The number of a row that is here; 0 if there is none."""
    return jnp.sum(jnp.where(here, row, 0), axis=-1, dtype=row.dtype)


def _one_where(condition: jax.Array, row: Extended) -> Extended:
    return Extended(jnp.where(condition, 1, row.mantissa), jnp.where(condition, 0, row.exponent))


def _product_where(condition: jax.Array, x: Extended, y: Extended) -> Extended:
    """x * y, or 0."""
    product = extended.normalise_each(extended.multiply(x, y))
    return Extended(
        jnp.where(condition, product.mantissa, 0),
        jnp.where(condition, product.exponent, extended.DEAD),
    )


def _posterior(x: Extended, rest: Extended, likelihood: Extended) -> jax.Array:
    """x * rest / likelihood."""
    # Floors that keep the sum from overflowing; what reaches them is 0 in any case.
    exponent = jnp.maximum(x.exponent - likelihood.exponent, extended.DEAD)
    exponent = exponent + jnp.maximum(rest.exponent, extended.DEAD)
    whole = jnp.where(likelihood.mantissa > 0, likelihood.mantissa, 1)
    mantissa = x.mantissa * (rest.mantissa / whole)
    return mantissa * extended.exp2(exponent, mantissa.dtype)
