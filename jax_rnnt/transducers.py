"""The exact losses of one transducer or another.

They differ in the arcs that a cell's scores make, and in the recursion over these arcs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import validation
from ._native.jax_versions import align_varying_axes
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances, cells_inside
from .label_windows import only_allowed
from .lattice import (
    best_duration_path,
    best_path,
    duration_lattice,
    duration_lattice_score,
    gradient_weights,
    lattice,
    lattice_score,
)
from .lattice_reference import with_delay_penalty
from .numerics import accumulator_dtype, log_denominator, log_ratio
from .operands import dense_operands
from .reduction import negative, reduce_losses
from .types import Alignment, ArcsOptions, DurationAlignment, LatticeOptions, Reduction

Scores = tuple[jax.Array, ...]
"""`(*batch, T, U+1, ...)`: logits, and what else the joint network returns for a cell."""


class Arcs(NamedTuple):
    """Log-probabilities of the arcs that leave each cell.

    Attributes:
      blank, label: `(*batch, T, U+1)`.
      denominators: of the logits' softmax, `(*batch, T, U+1)`.
      choices: of each of N further choices in a cell, as of a duration, `(*batch, N, T, U+1)`; None
        without any.
    """

    blank: jax.Array
    label: jax.Array
    denominators: jax.Array
    choices: jax.Array | None = None

    @staticmethod
    def of_planes(
        blank: jax.Array, label: jax.Array, denominators: jax.Array, *choices: jax.Array
    ) -> Arcs:
        """From arrays `(*batch, T, U+1)`."""
        return Arcs(blank, label, denominators, jnp.stack(choices, axis=-3) if choices else None)

    def planes(self) -> tuple[jax.Array, ...]:
        """The arguments of `of_planes`."""
        choices = () if self.choices is None else jnp.moveaxis(self.choices, -3, 0)
        return self.blank, self.label, self.denominators, *choices


class Weights(NamedTuple):
    """Posteriors of the arcs, with FastEmit, and of the choices, shaped as in `Arcs`."""

    blank: jax.Array
    label: jax.Array
    choices: jax.Array | None = None


@dataclass(frozen=True)
class Transducer(ABC):
    """What is static about a loss of scores."""

    arcs: ArcsOptions
    lattice: LatticeOptions

    @property
    def num_choices(self) -> int:
        """N of `Arcs.choices`."""
        return 0

    @property
    def num_planes(self) -> int:
        """Of `Arcs.planes`."""
        return 3 + self.num_choices

    @property
    def other_blanks(self) -> tuple[int, ...]:
        """Classes that are no labels, beside `arcs.blank_id`."""
        return ()

    @abstractmethod
    def log_probs(self, scores: Scores, labels: jax.Array, bounds: jax.Array) -> Arcs:
        """Cell by cell, so that a part of the cells can be computed by itself.

        Args:
          labels: `(*batch, U)` int32, or U+1 of them if the last column has label arcs, too.
          bounds: `(*batch, 4)` int32, see `bounds`.
        """

    @abstractmethod
    def log_likelihood(self, arcs: Arcs, bounds: jax.Array, mask: jax.Array | None) -> jax.Array:
        """`(*batch,)`. `mask`: which label arcs there are, see `label_windows.label_mask`."""

    @abstractmethod
    def posteriors(
        self, arcs: Arcs, bounds: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, Weights]:
        """Log-likelihoods `(*batch,)`, and posteriors as the gradient uses them."""

    @abstractmethod
    def best_path(
        self, arcs: Arcs, bounds: jax.Array, mask: jax.Array | None
    ) -> Alignment | DurationAlignment:
        """The most probable alignments."""

    @abstractmethod
    def gradients(
        self,
        scores: Scores,
        labels: jax.Array,
        denominators: jax.Array,
        choices: jax.Array | None,
        weights: Weights,
        cotangents: jax.Array,
        gradient_dtype: Any = None,
    ) -> Scores:
        """Gradients of `cotangents * loss` by the scores, cell by cell.

        Args:
          denominators, choices: as in `Arcs`.
          cotangents: `(*batch,)`.
          gradient_dtype: of the gradient by the logits; None: theirs.
        """

    def _gradient_by_logits(
        self,
        logits: jax.Array,
        labels: jax.Array,
        denominators: jax.Array,
        weights: Weights,
        cotangents: jax.Array,
        **options: Any,
    ) -> jax.Array:
        operands = logits, labels, denominators, weights.blank, weights.label, cotangents
        return arcs_bwd(self.arcs, *align_varying_axes(*operands), **options)


@dataclass(frozen=True)
class RnnTransducer(Transducer):
    """Every blank arc takes a frame (Graves 2012, arXiv 1211.3711)."""

    def log_probs(self, scores, labels, bounds):
        (logits,) = scores
        return Arcs(*arcs_fwd(self.arcs, logits, labels, bounds))

    def log_likelihood(self, arcs, bounds, mask):
        return lattice_score(self.lattice, arcs.blank, only_allowed(arcs.label, mask), bounds)

    def posteriors(self, arcs, bounds, mask):
        operands = arcs.blank, only_allowed(arcs.label, mask), bounds
        log_likelihood, posteriors = lattice(self.lattice, *operands)
        return log_likelihood, Weights(*gradient_weights(self.lattice, posteriors))

    def best_path(self, arcs, bounds, mask):
        return best_path(self.lattice, arcs.blank, only_allowed(arcs.label, mask), bounds)

    def gradients(
        self, scores, labels, denominators, choices, weights, cotangents, gradient_dtype=None
    ):
        (logits,) = scores
        operands = logits, labels, denominators, weights, cotangents
        return (self._gradient_by_logits(*operands, gradient_dtype=gradient_dtype),)


@dataclass(frozen=True)
class DurationTransducer(Transducer):
    """An arc takes some frames, and has a probability for each number of them."""

    sigma: float

    @property
    @abstractmethod
    def lattice_params(self) -> dict[str, Any]:
        """Of `duration_reference.duration_lattice`."""

    @abstractmethod
    def factors(
        self, arcs: Arcs, bounds: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log-probabilities of blanks, labels and durations, as the recursion takes them."""

    @abstractmethod
    def of_choices(self, durations: jax.Array) -> jax.Array:
        """Of the posteriors of all durations, those of `Arcs.choices`."""

    def log_likelihood(self, arcs, bounds, mask):
        operands = *self.factors(arcs, bounds, mask), bounds
        return duration_lattice_score(self.arcs.implementation, *operands, **self.lattice_params)

    def posteriors(self, arcs, bounds, mask):
        operands = *self.factors(arcs, bounds, mask), bounds
        log_likelihood, posteriors, durations = duration_lattice(
            self.arcs.implementation, *operands, **self.lattice_params
        )
        weights = gradient_weights(self.lattice, posteriors)
        return log_likelihood, Weights(*weights, self.of_choices(durations))

    def best_path(self, arcs, bounds, mask) -> Alignment | DurationAlignment:
        operands = *self.factors(arcs, bounds, mask), bounds
        return best_duration_path(self.arcs.implementation, *operands, **self.lattice_params)

    def _label(self, arcs: Arcs, bounds: jax.Array, mask: jax.Array | None) -> jax.Array:
        label = self._under_normalised(arcs.label)
        label = with_delay_penalty(label, bounds, self.lattice.delay_penalty)
        return only_allowed(label, mask)

    def _under_normalised(self, log_probs: jax.Array) -> jax.Array:
        return log_probs if self.sigma == 0 else log_probs - self.sigma


@dataclass(frozen=True)
class TokenAndDurationTransducer(DurationTransducer):
    """Tokens and, independently of them, durations (Xu et al., arXiv 2304.06795).

    The scores are logits and scores of the durations, `(*batch, T, U+1, D)`.
    """

    durations: tuple[int, ...]

    @property
    def num_choices(self):
        return len(self.durations)

    @property
    def lattice_params(self):
        return {"durations": self.durations, "labels_stay": False}

    def log_probs(self, scores, labels, bounds):
        logits, duration_logits = scores
        arcs = arcs_fwd(self.arcs, logits, labels, bounds)
        *_, T, W, _ = logits.shape
        inside = cells_inside(bounds, T, W, labels.shape[-1])[..., None]
        scores = jnp.where(inside, duration_logits.astype(accumulator_dtype(logits.dtype)), 0)
        denominator = (x[..., None] for x in log_denominator(scores))
        return Arcs(*arcs, jnp.moveaxis(log_ratio(scores, *denominator), -1, -3))

    def factors(self, arcs, bounds, mask):
        assert arcs.choices is not None
        blank, label = self._under_normalised(arcs.blank), self._label(arcs, bounds, mask)
        return blank, label, arcs.choices

    def of_choices(self, durations):
        return durations

    def gradients(
        self, scores, labels, denominators, choices, weights, cotangents, gradient_dtype=None
    ):
        logits, duration_logits = scores
        operands = logits, labels, denominators, weights, cotangents
        d_logits = self._gradient_by_logits(*operands, gradient_dtype=gradient_dtype)
        assert weights.choices is not None
        total = jnp.sum(weights.choices, axis=-3)  # of the arcs, without FastEmit
        operands = align_varying_axes(total, choices, weights.choices, cotangents)
        d_durations = jnp.moveaxis(_softmax_gradient(*operands), -3, -1)
        return d_logits, d_durations.astype(duration_logits.dtype)


@dataclass(frozen=True)
class MultiBlankTransducer(DurationTransducer):
    """Blanks of several durations (Xu et al., arXiv 2211.03541).

    `Arcs.choices` are the blanks' log-probabilities, the usual one's first.
    """

    big_blank_ids: tuple[int, ...]
    big_blank_durations: tuple[int, ...]  # increasing

    @property
    def num_choices(self):
        return 1 + len(self.big_blank_ids)

    @property
    def other_blanks(self):
        return self.big_blank_ids

    @property
    def lattice_params(self):
        return {"durations": (0, 1, *self.big_blank_durations), "labels_stay": True}

    @property
    def _blank_ids(self) -> tuple[int, ...]:
        return self.arcs.blank_id, *self.big_blank_ids

    def log_probs(self, scores, labels, bounds):
        (logits,) = scores
        blank, label, denominators = arcs_fwd(self.arcs, logits, labels, bounds)
        scores = [logits[..., i].astype(blank.dtype) for i in self._blank_ids]
        blanks = [blank]
        for score in scores[1:]:
            # What is rounded least: the denominators may have an offset that the difference has
            # not.
            by_blank, by_denominator = blank + (score - scores[0]), score - denominators
            blanks.append(jnp.where(abs(blank) < abs(denominators), by_blank, by_denominator))
        return Arcs(blank, label, denominators, jnp.stack(blanks, axis=-3))

    def factors(self, arcs, bounds, mask):
        assert arcs.choices is not None
        # All of a blank's log-probability is its duration's.
        certain = jnp.zeros_like(arcs.label)
        blanks = self._under_normalised(arcs.choices)
        durations = jnp.concatenate([certain[..., None, :, :], blanks], axis=-3)
        return certain, self._label(arcs, bounds, mask), durations

    def of_choices(self, durations):
        return durations[..., 1:, :, :]  # the first one is the labels'

    def best_path(self, arcs, bounds, mask):
        score, frames, *_ = super().best_path(arcs, bounds, mask)
        return Alignment(score, frames)

    def gradients(
        self, scores, labels, denominators, choices, weights, cotangents, gradient_dtype=None
    ):
        (logits,) = scores
        # As if all blanks were one class, which leaves their own columns to be filled in. XLA
        # computes the blanks' log-probabilities twice, for which it would make a copy of
        # overwritten logits.
        operands = logits, labels, denominators, weights, cotangents
        gradient = self._gradient_by_logits(
            *operands, gradient_dtype=gradient_dtype, may_overwrite_logits=False
        )
        total = weights.blank + weights.label
        operands = align_varying_axes(total, choices, weights.choices, cotangents)
        columns = _softmax_gradient(*operands, clamp=self.arcs.clamp)
        return (self._with_columns(gradient, columns.astype(gradient.dtype)),)

    def _with_columns(self, gradient: jax.Array, columns: jax.Array) -> jax.Array:
        """The gradient by the logits, with `columns` `(*batch, K, T, U+1)` for the blanks."""
        dtype = gradient.dtype
        # On a CPU, XLA makes float32 of all 16-bit numbers in whose array it writes, but of
        # integers. The derivative of the pure-JAX gradient goes through here, and needs it as it
        # is.
        as_bits = dtype.itemsize == 2 and self.arcs.implementation != "xla"
        if as_bits:
            gradient, columns = (
                lax.bitcast_convert_type(x, jnp.uint16) for x in (gradient, columns)
            )
        for i, blank in enumerate(self._blank_ids):
            column = columns[..., i, :, :, None]
            gradient = lax.dynamic_update_slice_in_dim(gradient, column, blank, axis=-1)
        return lax.bitcast_convert_type(gradient, dtype) if as_bits else gradient


def _softmax_gradient(
    total: jax.Array,
    log_probs: jax.Array,
    posteriors: jax.Array,
    cotangents: jax.Array,
    clamp: float | None = None,
) -> jax.Array:
    """Gradient of `cotangents * loss` by the scores of a softmax in each cell.

    Args:
      total: posteriors of all its choices together, `(*batch, T, U+1)`.
      log_probs, posteriors: of N of its choices, `(*batch, N, T, U+1)`.
      clamp: as in `arcs_reference.arcs_bwd`.

    Returns:
      `(*batch, N, T, U+1)`; exact zeros in cells without weight.
    """
    total = total[..., None, :, :]
    active = total != 0
    unit = total * jnp.exp(jnp.where(active, log_probs, 0)) - posteriors
    if clamp is not None:
        unit = jnp.clip(unit, -clamp, clamp)
    return jnp.where(active, cotangents[..., None, None, None] * unit, 0)


@partial(jax.jit, static_argnames=("transducer", "reduction"))
def loss_of_scores(
    transducer: Transducer, scores: Scores, utterances: Utterances, reduction: Reduction
) -> jax.Array:
    """The loss of arguments that have been checked."""
    sizes = validation.sizes_of("logits", scores[0].shape, 3)
    blanks = transducer.arcs.blank_id, transducer.other_blanks
    loss: Any = _loss(transducer, *dense_operands(scores, sizes, utterances, *blanks))
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.jit, static_argnames=("transducer",))
def alignment_of_scores(transducer: Transducer, scores: Scores, utterances: Utterances) -> Any:
    """What `transducer.best_path` returns, of arguments that have been checked."""
    scores = lax.stop_gradient(scores)
    sizes = validation.sizes_of("logits", scores[0].shape, 3)
    blanks = transducer.arcs.blank_id, transducer.other_blanks
    scores, labels, bounds, mask = dense_operands(scores, sizes, utterances, *blanks)
    return transducer.best_path(transducer.log_probs(scores, labels, bounds), bounds, mask)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    transducer: Transducer,
    scores: Scores,
    labels: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    arcs = transducer.log_probs(scores, labels, bounds)
    return negative(transducer.log_likelihood(arcs, bounds, mask))


def _loss_fwd(transducer, scores, labels, bounds, mask):
    arcs = transducer.log_probs(scores, labels, bounds)
    log_likelihood, weights = transducer.posteriors(arcs, bounds, mask)
    return negative(log_likelihood), (scores, labels, arcs.denominators, arcs.choices, weights)


def _loss_bwd(transducer, residuals, cotangents):
    return transducer.gradients(*residuals, cotangents), None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
