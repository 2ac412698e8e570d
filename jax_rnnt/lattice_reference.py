"""The forward-backward recursion over arcs in pure JAX: what runs on TPU and wherever there is no
kernel.

Both functions take any number of leading batch dimensions and need no particular platform; the
native kernels compute the same. The module `bounds` says what bounds are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from . import extended
from .bounds import valid_bounds
from .extended import Extended
from .numerics import axis_index, shift_left, shift_right, two_sum
from .types import Topology


def lattice(
    blank: jax.Array,
    label: jax.Array,
    bounds: jax.Array,
    *,
    topology: Topology,
    final_blank: bool,
    delay_penalty: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-likelihood and arc posteriors.

    A wavefront: one scan step a front, which is an anti-diagonal of the lattice (regular) or a
    frame (modified, constrained), with all its nodes at once. Probabilities are mantissas with an
    integer exponent per node, so that rounding does not grow with the log-likelihood, and
    posteriors are normalised by their own front's sum, which every complete path crosses once.

    Args:
      blank, label: arc log-probabilities, `(*batch, T, U+1)` float32 or float64.
      bounds: `(*batch, 4)`.
      topology: `"regular"` (arXiv 1211.3711), `"modified"` or `"constrained"` (arXiv 2206.13236).
      final_blank: modified only; the last frame has a blank arc only.
      delay_penalty: added to label arcs, times `(frame_end - 1) / 2 - t` (arXiv 2211.00490).

    Returns:
      `(log_likelihood, blank_posteriors, label_posteriors)`: `(*batch,)`, then twice
      `(*batch, T, U+1)`. The log-likelihood is -inf without a complete path and NaN for bad
      input; the posteriors are then zero.
    """
    fronts = _Fronts(blank, label, bounds, topology, final_blank, delay_penalty)
    log_likelihood, alphas = fronts.forward()
    blank_posteriors, label_posteriors = fronts.posteriors(alphas)
    finite = jnp.isfinite(log_likelihood)[..., None, None]
    if topology == "constrained":
        # A constrained label arc is l(t, u) + b(t, u + 1): it is an occurrence of both.
        blank_posteriors = blank_posteriors + shift_right(label_posteriors, 0)
    return (
        log_likelihood,
        jnp.where(finite, blank_posteriors, 0),
        jnp.where(finite, label_posteriors, 0),
    )


def lattice_score(
    blank: jax.Array,
    label: jax.Array,
    bounds: jax.Array,
    *,
    topology: Topology,
    final_blank: bool,
    delay_penalty: float,
) -> jax.Array:
    """The log-likelihood of `lattice` alone, `(*batch,)`."""
    return _Fronts(blank, label, bounds, topology, final_blank, delay_penalty).forward()[0]


class _Fronts:
    """Arcs by front n and label position u, in which all topologies have the same recursion.

    alpha(n+1, u) = alpha(n, u) blank(n, u) + alpha(n, u-1) label(n, u-1), in probabilities. Arcs
    that lie on no complete path are -inf here, whatever was given for them.
    """

    def __init__(
        self,
        blank: jax.Array,
        label: jax.Array,
        bounds: jax.Array,
        topology: Topology,
        final_blank: bool,
        delay_penalty: float,
    ):
        *batch, T, W = blank.shape
        self.shape, self.regular = (*batch, T, W), topology == "regular"
        self.num_fronts = T + W - 1 if self.regular else T
        if topology == "constrained":
            label = label + shift_left(blank, -jnp.inf)
        label = with_delay_penalty(label, bounds, delay_penalty)

        ndim = len(batch) + 2  # (n, *batch, u)
        n, u = axis_index(ndim, 0, self.num_fronts), axis_index(ndim, -1, W)
        frame_begin, frame_end, label_begin, label_end = (
            bounds[None, ..., i, None] for i in range(4)
        )
        self.valid = valid_bounds(bounds, T, W - 1)
        self.label_end = label_end[0]
        frames, labels = frame_end - frame_begin, label_end - label_begin
        self.empty, self.unlabelled = (frames <= 0)[0, ..., 0], (labels <= 0)[0, ..., 0]
        self.start = (frame_begin + label_begin if self.regular else frame_begin)[0]
        steps = frames + jnp.where(frames > 0, labels, 0) if self.regular else frames
        self.end = self.start + steps[0]
        self.start_node = u[0] == label_begin[0]
        # Selected by an operand, though they are constant: inside shard_map the carries of a scan
        # must vary along the same mesh axes as what is added to them.
        self.dead_row = Extended(
            jnp.where(self.start_node, 0, 0).astype(blank.dtype),
            jnp.where(self.start_node, extended.DEAD, extended.DEAD).astype(jnp.int32),
        )

        blank_lives, label_lives = arcs_on_paths(
            n - self.start[None], u - label_begin, steps, labels, self.regular or final_blank
        )
        arcs = self._arcs(blank, blank_lives), self._arcs(label, label_lives)
        self.blank, self.label, good = without_bad_arcs(*arcs)
        self.valid &= good

    def _arcs(self, plane: jax.Array, alive: jax.Array) -> jax.Array:
        return jnp.where(alive, self._to_fronts(plane), -jnp.inf)

    def _to_fronts(self, plane: jax.Array) -> jax.Array:
        """`(*batch, T, W)` to `(n, *batch, W)`."""
        if not self.regular:
            return jnp.moveaxis(plane, -2, 0)
        return to_antidiagonals(plane)

    def _from_fronts(self, fronts: jax.Array) -> jax.Array:
        """The inverse of `_to_fronts`."""
        if not self.regular:
            return jnp.moveaxis(fronts, 0, -2)
        return from_antidiagonals(fronts)

    def forward(self) -> tuple[jax.Array, Extended]:
        """The log-likelihood, and alpha of each front relative to its largest exponent."""
        dtype = self.blank.dtype
        zero = self.dead_row.mantissa[..., 0]

        def start_here(n: jax.Array, row: Extended) -> Extended:
            start = (self.start == n) & self.start_node
            return Extended(jnp.where(start, 1, row.mantissa), jnp.where(start, 0, row.exponent))

        def step(carry, front):
            row, offset, score = carry
            n, blank, label = front
            after, largest = advance(row, blank, label)
            offset = two_sum(offset, largest.astype(dtype))
            u = axis_index(after.mantissa.ndim, -1, after.mantissa.shape[-1])
            at_end = jnp.sum(jnp.where(u == self.label_end, after.mantissa, 0), axis=-1)
            score = jnp.where(self.end[..., 0] == n + 1, extended.log(at_end, offset), score)
            return (start_here(n + 1, after), offset, score), row

        carry = (start_here(jnp.int32(0), self.dead_row), (zero, zero), zero - jnp.inf)
        n = jnp.arange(self.num_fronts, dtype=jnp.int32)
        (_, _, score), alphas = lax.scan(step, carry, (n, self.blank, self.label))
        score = jnp.where(self.empty, jnp.where(self.unlabelled, 0, -jnp.inf), score)
        return jnp.where(self.valid, score, jnp.nan), alphas

    def posteriors(self, alphas: Extended) -> tuple[jax.Array, jax.Array]:
        """Arc posteriors `(*batch, T, W)`, by beta against the stored alphas."""

        def step(beta, front):
            n, blank, label, alpha = front
            u = axis_index(blank.ndim, -1, blank.shape[-1])
            end = (self.end == n + 1) & (u == self.label_end)
            beta = Extended(jnp.where(end, 1, beta.mantissa), jnp.where(end, 0, beta.exponent))
            return retreat(beta, alpha, blank, label)

        n = jnp.arange(self.num_fronts, dtype=jnp.int32)
        fronts = (n, self.blank, self.label, alphas)
        _, (blank, label) = lax.scan(step, self.dead_row, fronts, reverse=True)
        return self._from_fronts(blank), self._from_fronts(label)


def with_delay_penalty(label: jax.Array, bounds: jax.Array, delay_penalty: float) -> jax.Array:
    """Label arcs `(*batch, T, U+1)` plus `delay_penalty * ((frame_end - 1) / 2 - t)`."""
    if delay_penalty == 0:
        return label
    middle = (bounds[..., 1, None, None].astype(label.dtype) - 1) / 2
    t = axis_index(label.ndim, -2, label.shape[-2]).astype(label.dtype)
    return label + delay_penalty * (middle - t)


def to_antidiagonals(plane: jax.Array) -> jax.Array:
    """`(*batch, T, W)` to `(T+W-1, *batch, W)`: element (t, u) at (t + u, u)."""
    # Padding each column by W and cutting the flat array into rows one element shorter shifts
    # column u down by u: a skew without a gather.
    *batch, T, W = plane.shape
    columns = jnp.swapaxes(plane, -1, -2)
    columns = jnp.pad(columns, [(0, 0)] * (len(batch) + 1) + [(0, W)])
    flat = columns.reshape(*batch, W * (T + W))[..., : W * (T + W - 1)]
    return jnp.moveaxis(flat.reshape(*batch, W, T + W - 1), -1, 0)


def from_antidiagonals(fronts: jax.Array) -> jax.Array:
    """The inverse of `to_antidiagonals`."""
    num_fronts, *batch, W = fronts.shape
    flat = jnp.moveaxis(fronts, 0, -1).reshape(*batch, W * num_fronts)
    flat = jnp.pad(flat, [(0, 0)] * len(batch) + [(0, W)])
    columns = flat.reshape(*batch, W, num_fronts + 1)[..., : num_fronts + 1 - W]
    return jnp.swapaxes(columns, -1, -2)


def without_bad_arcs(blank: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arcs `(n, *batch, u)`, all zero where an utterance has bad ones, and which have none.

    Its loss is NaN, and its second derivative zero, not zero times NaN.
    """
    good = jnp.all(
        (blank <= extended.EXCESSIVE_LOG_PROB) & (label <= extended.EXCESSIVE_LOG_PROB), (0, -1)
    )
    blank, label = (jnp.where(good[..., None], x, 0) for x in (blank, label))
    return blank, label, good


def arcs_on_paths(
    n: jax.Array, u: jax.Array, steps: jax.Array, labels: jax.Array, last_is_blank: bool
) -> tuple[jax.Array, jax.Array]:
    """Whether complete paths take the blank and the label arc that leave node u of front n.

    All counts are relative to where paths begin; they end at node `labels` of front `steps`.
    """

    def on_a_path(n: jax.Array, u: jax.Array) -> jax.Array:
        too_low = u < labels - (steps - n) + jnp.where(n < steps, int(last_is_blank), 0)
        return (n >= 0) & (n <= steps) & (u >= 0) & (u <= jnp.minimum(n, labels)) & ~too_low

    here = on_a_path(n, u)
    return here & on_a_path(n + 1, u), here & on_a_path(n + 1, u + 1)


def advance(alpha: Extended, blank: jax.Array, label: jax.Array) -> tuple[Extended, jax.Array]:
    """Alpha of the next front, relative to its largest exponent, which is returned."""
    stay = extended.multiply(alpha, extended.exp(blank))
    move = extended.shift_right(extended.multiply(alpha, extended.exp(label)))
    return extended.normalise(extended.add(stay, move))


def retreat(
    beta: Extended, alpha: Extended, blank: jax.Array, label: jax.Array
) -> tuple[Extended, tuple[jax.Array, jax.Array]]:
    """Beta of a front from that of the next one, and the posteriors of the arcs in between."""
    stay = extended.multiply(beta, extended.exp(blank))
    move = extended.multiply(extended.shift_left(beta), extended.exp(label))
    weights = extended.relative_to_largest(
        extended.multiply(alpha, stay), extended.multiply(alpha, move)
    )
    total = jnp.sum(weights[0] + weights[1], axis=-1, keepdims=True)
    total = jnp.where(total > 0, total, 1)
    before, _ = extended.normalise(extended.add(stay, move))
    return before, (weights[0] / total, weights[1] / total)
