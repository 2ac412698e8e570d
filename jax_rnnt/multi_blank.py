"""The loss of multi-blank transducers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_durations
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances, labels_and_bounds
from .label_windows import label_mask, only_allowed
from .lattice import (
    duration_lattice,
    duration_lattice_score,
    gradient_weights,
    softmax_gradient,
)
from .lattice_reference import with_delay_penalty
from .losses import checked_logits
from .reduction import negative, reduce_losses
from .types import ArcsOptions, Array, Implementation, LatticeOptions, Reduction


@dataclass(frozen=True)
class _Options:
    """What is static about the loss."""

    big_blank_ids: tuple[int, ...]
    big_blank_durations: tuple[int, ...]  # increasing
    sigma: float
    arcs: ArcsOptions
    lattice: LatticeOptions

    @property
    def blank_ids(self) -> tuple[int, ...]:
        """Of the usual blank, too, whose duration is 1."""
        return self.arcs.blank_id, *self.big_blank_ids

    @property
    def lattice_params(self) -> dict[str, Any]:
        return {"durations": (0, 1, *self.big_blank_durations), "labels_stay": True}


def rnnt_loss_multi_blank(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    big_blank_ids: Sequence[int],
    big_blank_durations: Sequence[int],
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
    """Multi-blank transducer loss (Xu et al., arXiv 2211.03541): big blanks skip several frames.

    The lattice is `rnnt_loss`'s, with more arcs: a big blank of duration d leads from frame `t` to
    `t + d`, if that is in the utterance or just its end. Without big blanks it is `rnnt_loss`. The
    log-softmax is fused: beside logits and gradient, which never share memory here, it takes a few
    `(T, U+1)` planes, and some for each big blank.

    Args:
      logits: `(*batch, T, U+1, V)`, as in `rnnt_loss`; V includes all blanks.
      labels, logit_lengths, label_lengths: as in `rnnt_loss`; no label is a big blank either.
      big_blank_ids: classes of the big blanks; negative values count from the end. Static.
      big_blank_durations: how many frames each of them takes: different numbers from 2 to 62.
        Static.
      sigma: logit under-normalisation: is subtracted from the log-probability of every arc, so
        that alignments of few and long steps are worth more. The paper has 0.05. Static, >= 0.
      blank_id: class of the usual blank, which takes one frame.
      fastemit_lambda, delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction,
        where, implementation, check: as in `rnnt_loss`. `"xla"` can be differentiated more than
        once.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 `logits`), or a scalar. Gradients have the
      dtype of `logits`. Utterances without any alignment have loss +inf; those with NaN or +inf in
      a score that an alignment uses, or with bad lengths or labels that could not be checked, NaN.
      (A big blank that would lead out of the utterance may or may not count.) Both have gradient
      zero, and no effect on others. No frames and no labels give loss 0. Padding has no effect and
      gets gradient zero. Log-probabilities below -1e7 count as -inf, and so do those of alignments
      below -5e8.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; also for bad durations, and for
        ids that are not as many, not different, or that of the usual blank.
    """
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
    sizes = validation.sizes_of("logits", logits.shape, 3)
    options = _Options(
        *validation_durations.big_blanks(
            big_blank_ids, big_blank_durations, arcs_options.blank_id, sizes.num_classes
        ),
        validation.finite_number("sigma", sigma, minimum=0.0),
        arcs_options,
        lattice_options,
    )
    for big_blank in options.big_blank_ids:
        validation.checked_utterances(sizes, utterances, big_blank, check)
    return _rnnt_loss_multi_blank(logits, utterances, options, validation.reduction_of(reduction))


@partial(jax.jit, static_argnames=("options", "reduction"))
def _rnnt_loss_multi_blank(
    logits: jax.Array, utterances: Utterances, options: _Options, reduction: Reduction
) -> jax.Array:
    sizes = validation.sizes_of("logits", logits.shape, 3)
    (logits,) = with_whole_rows(len(sizes.batch), logits)
    blanks = options.arcs.blank_id, options.big_blank_ids
    labels, bounds = labels_and_bounds(logits, sizes, utterances, *blanks)
    mask = label_mask(logits, sizes, utterances)
    operands = align_varying_axes(logits, labels, bounds, mask)
    loss: Any = _loss(options, *operands)
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    blanks, label, _ = _log_probs(options, logits, labels, bounds, mask)
    op = partial(duration_lattice_score, options.arcs.implementation, **options.lattice_params)
    return negative(op(*_factors(options, blanks, label), bounds))


def _loss_fwd(options, logits, labels, bounds, mask):
    blanks, label, denominators = _log_probs(options, logits, labels, bounds, mask)
    op = partial(duration_lattice, options.arcs.implementation, **options.lattice_params)
    operands = *_factors(options, blanks, label), bounds
    log_likelihood, posteriors, of_durations = op(*operands)
    of_blanks = of_durations[..., 1:, :, :]
    return negative(log_likelihood), (logits, labels, denominators, posteriors, blanks, of_blanks)


def _loss_bwd(options, residuals, cotangents):
    logits, labels, denominators, posteriors, blanks, of_blanks = residuals
    weights = gradient_weights(options.lattice, posteriors)
    operands = align_varying_axes(logits, labels, denominators, *weights, cotangents)
    # As if all blanks were one class, which leaves their own columns to be filled in. XLA computes
    # the blanks' log-probabilities twice, for which it would make a copy of overwritten logits.
    gradient = arcs_bwd(options.arcs, *operands, may_overwrite_logits=False)
    operands = align_varying_axes(weights, blanks, of_blanks, cotangents)
    columns = softmax_gradient(*operands, clamp=options.arcs.clamp)
    return _with_columns(options, gradient, columns.astype(gradient.dtype)), None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _with_columns(options: _Options, gradient: jax.Array, columns: jax.Array) -> jax.Array:
    """The gradient by the logits, with `columns` `(*batch, K, T, U+1)` for the blanks' classes."""
    dtype = gradient.dtype
    # On a CPU, XLA makes float32 of all 16-bit numbers in whose array it writes, but of integers.
    # The derivative of the pure-JAX gradient goes through here, and needs it as it is.
    as_bits = dtype.itemsize == 2 and options.arcs.implementation != "xla"
    if as_bits:
        gradient, columns = (lax.bitcast_convert_type(x, jnp.uint16) for x in (gradient, columns))
    for i, blank in enumerate(options.blank_ids):
        column = columns[..., i, :, :, None]
        gradient = lax.dynamic_update_slice_in_dim(gradient, column, blank, axis=-1)
    return lax.bitcast_convert_type(gradient, dtype) if as_bits else gradient


def _log_probs(
    options: _Options,
    logits: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of blanks, `(*batch, K, T, U+1)`, and labels, and the denominators."""
    blank, label, denominators = arcs_fwd(options.arcs, logits, labels, bounds)
    label = only_allowed(with_delay_penalty(label, bounds, options.lattice.delay_penalty), mask)
    scores = [logits[..., i].astype(blank.dtype) for i in options.blank_ids]
    blanks = [blank]
    for score in scores[1:]:
        # What is rounded least: the denominators may have an offset that the difference has not.
        by_blank, by_denominator = blank + (score - scores[0]), score - denominators
        blanks.append(jnp.where(abs(blank) < abs(denominators), by_blank, by_denominator))
    return jnp.stack(blanks, axis=-3), label, denominators


def _factors(options: _Options, blanks: jax.Array, label: jax.Array) -> tuple[jax.Array, ...]:
    """Arcs and durations of the lattice: a blank's log-probability is all its duration's."""
    certain = jnp.zeros_like(label)
    durations = jnp.concatenate([certain[..., None, :, :], blanks - options.sigma], axis=-3)
    return certain, label - options.sigma, durations
