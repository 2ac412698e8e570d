"""The loss of the Token-and-Duration Transducer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import validation, validation_durations
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances, cells_inside, labels_and_bounds
from .label_windows import label_mask, only_allowed
from .lattice import (
    duration_lattice,
    duration_lattice_score,
    gradient_weights,
    softmax_gradient,
)
from .lattice_reference import with_delay_penalty
from .losses import checked_logits
from .numerics import accumulator_dtype, log_denominator, log_ratio
from .reduction import negative, reduce_losses
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Reduction,
)


class _Arcs(NamedTuple):
    """Log-probabilities of arcs and durations."""

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

    @property
    def lattice_params(self) -> dict[str, Any]:
        return {"durations": self.durations, "labels_stay": False}


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
    label_windows: Array | None = None,
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
      fastemit_lambda, clamp: as in `rnnt_loss`, for the gradient by `logits` alone, as in NeMo.
      blank_id, delay_penalty, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss`. A label is emitted in the frame that its arc
        leaves. `"xla"` can be differentiated more than once.

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
    # First what tells that scores of tokens and of durations are in one array.
    logits = validation.float_scores("logits", logits)
    validation.sizes_of("logits", logits.shape, 3)
    durations = validation_durations.increasing_durations(durations)
    duration_logits = validation_durations.duration_scores(duration_logits, logits, len(durations))
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    logits, utterances, arcs_options, lattice_options = checked_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, "softmax", clamp, implementation),
        LatticeOptions("regular", False, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    options = _Options(
        durations,
        validation.finite_number("sigma", sigma, minimum=0.0),
        arcs_options,
        lattice_options,
    )
    reduction = validation.reduction_of(reduction)
    return _rnnt_loss_tdt(logits, duration_logits, utterances, options, reduction)


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
    mask = label_mask(logits, sizes, utterances)
    operands = align_varying_axes(logits, duration_logits, labels, bounds, mask)
    loss: Any = _loss(options, *operands)
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    logits: jax.Array,
    duration_logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    arcs, _ = _log_probs(options, logits, duration_logits, labels, bounds, mask)
    op = partial(duration_lattice_score, options.arcs.implementation, **options.lattice_params)
    return negative(op(*arcs, bounds))


def _loss_fwd(options, logits, duration_logits, labels, bounds, mask):
    arcs, denominators = _log_probs(options, logits, duration_logits, labels, bounds, mask)
    op = partial(duration_lattice, options.arcs.implementation, **options.lattice_params)
    log_likelihood, posteriors, of_durations = op(*arcs, bounds)
    no_durations = duration_logits[..., :0]  # of their dtype
    of_arcs = logits, labels, denominators, posteriors
    return negative(log_likelihood), (of_arcs, no_durations, arcs.duration, of_durations)


def _loss_bwd(options, residuals, cotangents):
    (logits, labels, denominators, posteriors), no_durations, log_probs, of_durations = residuals
    weights = gradient_weights(options.lattice, posteriors)
    operands = align_varying_axes(logits, labels, denominators, *weights, cotangents)
    d_logits = arcs_bwd(options.arcs, *operands)
    operands = align_varying_axes(posteriors, log_probs, of_durations, cotangents)
    d_durations = jnp.moveaxis(softmax_gradient(*operands), -3, -1)
    return d_logits, d_durations.astype(no_durations.dtype), None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _log_probs(
    options: _Options,
    logits: jax.Array,
    duration_logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> tuple[_Arcs, jax.Array]:
    """Log-probabilities, and denominators of the logits."""
    blank, label, denominators = arcs_fwd(options.arcs, logits, labels, bounds)
    if options.sigma != 0:
        blank, label = blank - options.sigma, label - options.sigma
    label = with_delay_penalty(label, bounds, options.lattice.delay_penalty)
    label = only_allowed(label, mask)
    *_, T, W, _ = logits.shape
    inside = cells_inside(bounds, T, W, W - 1)[..., None]
    scores = jnp.where(inside, duration_logits.astype(accumulator_dtype(logits.dtype)), 0)
    denominator = (x[..., None] for x in log_denominator(scores))
    duration = jnp.moveaxis(log_ratio(scores, *denominator), -1, -3)
    return _Arcs(blank, label, duration), denominators
