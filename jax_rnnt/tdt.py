"""The loss of the Token-and-Duration Transducer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import duration_reference, validation
from ._native import duration_ops
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances, cells_inside, labels_and_bounds
from .implementation import chosen
from .lattice import gradient_weights
from .lattice_reference import with_delay_penalty
from .losses import checked_logits
from .numerics import accumulator_dtype, log_denominator, log_ratio
from .reduction import negative, reduce_losses
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Posteriors,
    Reduction,
)

_LONGEST_DURATION = 62
"""The native op takes a set of durations as the bits of an integer."""


class _Arcs(NamedTuple):
    """Of arcs and durations: log-probabilities, or posteriors."""

    blank: jax.Array  # (*batch, T, U+1)
    label: jax.Array
    duration: jax.Array  # (*batch, D, T, U+1)


@dataclass(frozen=True)
class _Options:
    """What is static about the loss."""

    durations: tuple[int, ...]
    sigma: float
    arcs: ArcsOptions
    lattice: LatticeOptions


def rnnt_loss_tdt(
    logits: Array,
    duration_logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Sequence[int] = (0, 1, 2, 3, 4),
    sigma: float = 0.0,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """Token-and-Duration Transducer loss (Xu et al., arXiv 2304.06795).

    The joint network predicts a token and, independently of it, a duration: how many frames to
    advance. A blank takes at least one frame, a label may take none, and the last arc is a blank
    that comes to the end of the utterance exactly. With `durations=(1,)` it is `rnnt_loss` with
    `topology="modified"` and `final_blank=True`. The log-softmax of the tokens is fused: beside
    logits and gradients, memory is a few `(T, U+1)` planes, and some for each duration.

    To train a share omega of the batches with the usual loss, as NeMo can, use
    `jax.lax.cond(jax.random.bernoulli(key, omega), ...)` with `rnnt_loss` and this one.

    Args:
      logits: `(*batch, T, U+1, V)`, as in `rnnt_loss`: scores of the tokens, V with blank.
      duration_logits: `(*batch, T, U+1, D)` float32, float64, bfloat16 or float16, unnormalised:
        scores of the durations. An own output of the network: cut off one tensor, both would be
        copied.
      labels, logit_lengths, label_lengths: as in `rnnt_loss`.
      durations: the D durations in frames, increasing, from 0 to 62, one of them positive. Static.
      sigma: logit under-normalisation: is subtracted from the log-probability of each token, so
        that alignments of few and long steps are worth more. Static, >= 0.
      fastemit_lambda: as in `rnnt_loss`, for the gradient by `logits` alone, as in NeMo.
      clamp: as in `rnnt_loss`, for both gradients.
      blank_id, delay_penalty, logit_begins, label_begins, reduction, where, implementation, check:
        as in `rnnt_loss`. `"xla"` can be differentiated more than once.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 `logits`), or a scalar. Gradients have the
      dtypes of `logits` and `duration_logits`. Utterances without any alignment, as those of odd
      length with durations of 2 and 4, have loss +inf; those with NaN or +inf in a score that an
      alignment uses, or with bad lengths or labels that could not be checked, NaN. (What is in the
      utterance but out of reach may or may not count.) Both have gradient zero, and no effect on
      others. No frames and no labels give loss 0. Padding has no effect and gets gradient zero.
      Log-probabilities below -1e7 count as -inf, and so do those of alignments below -5e8.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; also for `duration_logits` of
        another shape than `logits`, up to the last dimension, and for bad `durations`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, where=where,
    )  # fmt: skip
    logits, utterances, arcs_options, lattice_options = checked_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, "softmax", clamp, implementation),
        LatticeOptions("regular", False, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    durations = _checked_durations(durations)
    options = _Options(
        durations,
        validation.finite_number("sigma", sigma, minimum=0.0),
        arcs_options,
        lattice_options,
    )
    duration_logits = _checked_duration_logits(duration_logits, logits, len(durations))
    reduction = validation.reduction_of(reduction)
    return _rnnt_loss_tdt(logits, duration_logits, utterances, options, reduction)


def _checked_durations(durations: Any) -> tuple[int, ...]:
    expected = f"expected increasing integers from 0 to {_LONGEST_DURATION}, one of them positive"
    try:
        numbers = tuple(durations)
    except TypeError:
        raise TypeError(f"durations is {durations!r}; {expected}, as (0, 1, 2, 3, 4).") from None
    numbers = tuple(validation.whole_number("durations", d, minimum=0) for d in numbers)
    increasing = all(x < y for x, y in pairwise(numbers))
    if not increasing or not numbers or not 0 < numbers[-1] <= _LONGEST_DURATION:
        raise ValueError(f"durations is {numbers}; {expected}.")
    return numbers


def _checked_duration_logits(value: Any, logits: jax.Array, num_durations: int) -> jax.Array:
    scores = validation.float_scores("duration_logits", value)
    expected = (*logits.shape[:-1], num_durations)
    if scores.shape != expected:
        raise ValueError(
            f"duration_logits has shape {scores.shape}; expected (*batch, T, U+1, D) = {expected}, "
            "from the shape of logits and the number of durations."
        )
    return scores


@partial(jax.jit, static_argnames=("options", "reduction"))
def _rnnt_loss_tdt(
    logits: jax.Array,
    duration_logits: jax.Array,
    utterances: Utterances,
    options: _Options,
    reduction: Reduction,
) -> jax.Array:
    sizes = validation.sizes_of("logits", logits.shape, 3)
    logits, duration_logits = with_whole_rows(len(sizes.batch), logits, duration_logits)
    labels, bounds = labels_and_bounds(logits, sizes, utterances, options.arcs.blank_id)
    operands = align_varying_axes(logits, duration_logits, labels, bounds)
    loss: Any = _loss(options, *operands)
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    logits: jax.Array,
    duration_logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
) -> jax.Array:
    arcs, _ = _log_probs(options, logits, duration_logits, labels, bounds)
    op = chosen(
        options.arcs.implementation,
        duration_reference.duration_lattice_score,
        duration_ops.duration_lattice_score,
    )
    return negative(op(*arcs, bounds, durations=options.durations))


def _loss_fwd(options, logits, duration_logits, labels, bounds):
    arcs, denominators = _log_probs(options, logits, duration_logits, labels, bounds)
    op = chosen(
        options.arcs.implementation,
        duration_reference.duration_lattice,
        duration_ops.duration_lattice,
    )
    log_likelihood, *posteriors = op(*arcs, bounds, durations=options.durations)
    no_durations = duration_logits[..., :0]  # of their dtype
    residuals = logits, labels, denominators, no_durations, arcs.duration, _Arcs(*posteriors)
    return negative(log_likelihood), residuals


def _loss_bwd(options, residuals, cotangents):
    logits, labels, denominators, no_durations, log_probs, posteriors = residuals
    of_arcs = Posteriors(posteriors.blank, posteriors.label)
    weights = gradient_weights(options.lattice, of_arcs)
    operands = align_varying_axes(logits, labels, denominators, *weights, cotangents)
    d_logits = arcs_bwd(options.arcs, *operands)
    operands = align_varying_axes(log_probs, posteriors.duration, of_arcs, cotangents)
    d_duration_logits = _duration_gradient(options, *operands)
    return d_logits, d_duration_logits.astype(no_durations.dtype), None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _log_probs(
    options: _Options,
    logits: jax.Array,
    duration_logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
) -> tuple[_Arcs, jax.Array]:
    """Log-probabilities, and denominators of the logits."""
    blank, label, denominators = arcs_fwd(options.arcs, logits, labels, bounds)
    if options.sigma != 0:
        blank, label = blank - options.sigma, label - options.sigma
    label = with_delay_penalty(label, bounds, options.lattice.delay_penalty)
    *_, T, W, _ = logits.shape
    inside = cells_inside(bounds, T, W, W - 1)[..., None]
    scores = jnp.where(inside, duration_logits.astype(accumulator_dtype(logits.dtype)), 0)
    denominator = (x[..., None] for x in log_denominator(scores))
    duration = jnp.moveaxis(log_ratio(scores, *denominator), -1, -3)
    return _Arcs(blank, label, duration), denominators


def _duration_gradient(
    options: _Options,
    log_probs: jax.Array,
    of_durations: jax.Array,
    posteriors: Posteriors,
    cotangents: jax.Array,
) -> jax.Array:
    """Of the loss by the duration logits, `(*batch, T, U+1, D)`."""
    total = (posteriors.blank + posteriors.label)[..., None, :, :]
    active = total != 0
    unit = total * jnp.exp(jnp.where(active, log_probs, 0)) - of_durations
    if options.arcs.clamp is not None:
        unit = jnp.clip(unit, -options.arcs.clamp, options.arcs.clamp)
    gradient = jnp.where(active, cotangents[..., None, None, None] * unit, 0)
    return jnp.moveaxis(gradient, -3, -1)
