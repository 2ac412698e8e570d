"""The losses of the additive joiner, straight from its two halves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from . import validation, validation_factored
from ._native.jax_versions import align_varying_axes
from .bounds import Utterances
from .factored_arcs import factored_arcs_bwd, factored_arcs_fwd
from .label_windows import only_allowed
from .lattice import gradient_weights, lattice, lattice_score
from .operands import dense_operands
from .reduction import negative, reduce_losses
from .smoothed_arcs import SmoothedResiduals, smoothed_arcs_bwd, smoothed_arcs_fwd
from .types import (
    ArcsOptions,
    Array,
    Denominators,
    Implementation,
    LatticeOptions,
    Normalization,
    Posteriors,
    Reduction,
    Smoothing,
    Topology,
)


@overload
def rnnt_loss_simple(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    return_posteriors: Literal[False] = False,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array: ...


@overload
def rnnt_loss_simple(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    return_posteriors: Literal[True],
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> tuple[jax.Array, Posteriors]: ...


def rnnt_loss_simple(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    return_posteriors: bool = False,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array | tuple[jax.Array, Posteriors]:
    """RNN-Transducer loss of the logits `am[t] + lm[u]`, which are never stored.

    The "simple" joiner of pruned training (arXiv 2206.13236, section 2.2): the normaliser of
    `P(v | t, u) = exp(am[t, v] + lm[u, v]) / sum_k exp(am[t, k] + lm[u, k])` is a matrix product of
    exponentials. Memory is a few `(T, U+1)` planes and arrays of the size of `am`. The result is
    that of `rnnt_loss` on the sum, whatever the logits: where an acoustic and a label peak are far
    apart, cells are computed one at a time and take longer.

    Args:
      am: `(*batch, T, V)` float32, float64, bfloat16 or float16: the encoder's half of the logits,
        for each frame. V includes blank.
      lm: `(*batch, U+1, V)`, same dtype: the predictor's half, after each number of labels.
      labels: `(*batch, U)` integers in [0, V), none of them blank. Padding may be anything.
      return_posteriors: also return the arc posteriors, from the same pass. They are constants to
        differentiation; `get_rnnt_prune_ranges` takes them.
      normalization: of the sum, as in `rnnt_loss`; `"none"` if it is a log-probability already.
      implementation: as in `rnnt_loss`. There are first derivatives in reverse mode only.
      logit_lengths, label_lengths, blank_id, topology, final_blank, fastemit_lambda, delay_penalty,
        logit_begins, label_begins, label_windows, reduction, where, check: as in `rnnt_loss`.

    Returns:
      The losses as `rnnt_loss` returns them, or `(losses, Posteriors(blank, label))`, posteriors as
      `rnnt_loss_from_arcs` returns them. Frames and label positions outside an utterance have no
      effect and get gradient zero.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    return checked_loss(
        (am, lm),
        utterances,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        None,
        reduction,
        return_posteriors,
        check,
    )


@overload
def rnnt_loss_smoothed(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    lm_only_scale: float,
    am_only_scale: float,
    return_posteriors: Literal[False] = False,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array: ...


@overload
def rnnt_loss_smoothed(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    lm_only_scale: float,
    am_only_scale: float,
    return_posteriors: Literal[True],
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> tuple[jax.Array, Posteriors]: ...


def rnnt_loss_smoothed(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    lm_only_scale: float,
    am_only_scale: float,
    return_posteriors: bool = False,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array | tuple[jax.Array, Posteriors]:
    """RNN-Transducer loss of the additive joiner, smoothed by each of its halves alone.

    Log-probabilities of arcs are `(1 - l - a)` times those of `rnnt_loss_simple`, plus `l` times
    `log_softmax(lm[u])`, plus `a` times `log_softmax(am[t] + log p)`, with `l = lm_only_scale`,
    `a = am_only_scale`, and `p` the mean of `softmax(lm[u])` over the label positions of the batch
    (arXiv 2206.13236, section 2.3). It keeps both halves meaningful by themselves, which makes for
    better pruning.

    `p` makes the losses of a batch depend on each other, and `lm`'s gradient flows through it. It
    leaves out padding, utterances without frames, those that `where` leaves out and those with NaN
    or +inf. It is over the batch of one call: `jax.vmap` makes a batch of each mapped call, and
    `shard_map` of each shard; where the compiler divides the batch among devices, `p` and its
    gradient are summed over them.

    Args:
      am, lm, labels, return_posteriors: as in `rnnt_loss_simple`.
      lm_only_scale, am_only_scale: static, >= 0, with a sum below 1; with both 0 this is
        `rnnt_loss_simple`.
      normalization: `"softmax"`, the only one that is defined here.
      logit_lengths, label_lengths, blank_id, topology, final_blank, fastemit_lambda, delay_penalty,
        logit_begins, label_begins, label_windows, reduction, where, implementation, check: as in
        `rnnt_loss_simple`.

    Returns:
      As `rnnt_loss_simple`. The label positions of an utterance without any alignment count in `p`,
      and still have gradient zero.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; ValueError also for another
        normalization and for scales out of range.
    """
    smoothing = validation_factored.smoothing(lm_only_scale, am_only_scale, normalization)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    return checked_loss(
        (am, lm),
        utterances,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        smoothing,
        reduction,
        return_posteriors,
        check,
    )


@dataclass(frozen=True)
class _Options:
    """What is static about a loss."""

    arcs: ArcsOptions
    lattice: LatticeOptions
    smoothing: Smoothing | None
    return_posteriors: bool


def checked_loss(
    scores: tuple[Any, Any],
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    smoothing: Smoothing | None,
    reduction: Any,
    return_posteriors: Any,
    check: Any,
) -> Any:
    """The loss, after all checks."""
    am, lm, utterances, arcs_options, lattice_options = checked_halves(
        scores, utterances, arcs_options, lattice_options, check
    )
    return_posteriors = validation.static_bool("return_posteriors", return_posteriors)
    options = _Options(arcs_options, lattice_options, smoothing, return_posteriors)
    reduction = validation.reduction_of(reduction)
    loss, posteriors = _reduced_loss(am, lm, utterances, options, reduction)
    return loss if posteriors is None else (loss, posteriors)


def checked_halves(
    scores: tuple[Any, Any],
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    check: Any,
) -> tuple[jax.Array, jax.Array, Utterances, ArcsOptions, LatticeOptions]:
    """All arguments of a function of `am` and `lm`, checked."""
    am, lm, sizes = validation_factored.factored_scores(*scores)
    checked = validation.checked_arguments(sizes, utterances, arcs_options, lattice_options, check)
    return am, lm, *checked


@partial(jax.jit, static_argnames=("options", "reduction"))
def _reduced_loss(
    am: jax.Array,
    lm: jax.Array,
    utterances: Utterances,
    options: _Options,
    reduction: Reduction,
) -> tuple[jax.Array, Posteriors | None]:
    sizes = validation_factored.factored_sizes(am.shape, lm.shape)
    scores, *others = dense_operands((am, lm), sizes, utterances, options.arcs.blank_id)
    result: Any = _loss(options, *scores, *others)
    loss, posteriors = result
    return reduce_losses(loss, reduction, utterances.where), jax.lax.stop_gradient(posteriors)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    am: jax.Array,
    lm: jax.Array,
    labels: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, Posteriors | None]:
    if options.return_posteriors:
        return _loss_fwd(options, am, lm, labels, bounds, mask)[0]
    blank, label, _ = _arcs(options, am, lm, labels, bounds)
    label = only_allowed(label, mask)
    return negative(lattice_score(options.lattice, blank, label, bounds)), None


def _loss_fwd(options, am, lm, labels, bounds, mask):
    blank, label, denominators = _arcs(options, am, lm, labels, bounds)
    label = only_allowed(label, mask)
    log_likelihood, posteriors = lattice(options.lattice, blank, label, bounds)
    result = negative(log_likelihood), posteriors if options.return_posteriors else None
    finite = jnp.isfinite(log_likelihood)
    return result, (am, lm, labels, bounds, denominators, posteriors, finite)


def _loss_bwd(options, residuals, cotangents):
    *scores_and_bounds, denominators, posteriors, finite = residuals
    weights = gradient_weights(options.lattice, posteriors)
    am, lm, labels, bounds, *operands = align_varying_axes(
        *scores_and_bounds, denominators, *weights, cotangents[0], finite
    )
    if options.smoothing is None:
        gradients = factored_arcs_bwd(options.arcs, am, lm, labels, *operands[:-1])
    else:
        gradients = smoothed_arcs_bwd(
            options.arcs, options.smoothing, am, lm, labels, bounds, *operands
        )
    return *gradients, None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _arcs(
    options: _Options, am: jax.Array, lm: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, Denominators | SmoothedResiduals]:
    if options.smoothing is None:
        return factored_arcs_fwd(options.arcs, am, lm, labels, bounds)
    return smoothed_arcs_fwd(options.arcs, options.smoothing, am, lm, labels, bounds)
