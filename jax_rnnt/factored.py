"""The losses of the additive joiner, straight from its two halves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import jax

from . import validation
from ._native.jax_versions import align_varying_axes
from .bounds import Utterances, labels_and_bounds
from .factored_arcs import factored_arcs_bwd, factored_arcs_fwd
from .lattice import gradient_weights, lattice, lattice_score
from .reduction import negative, reduce_losses
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Posteriors,
    Reduction,
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
    apart, frames are computed one at a time and take longer.

    Args:
      am: `(*batch, T, V)` float32, float64, bfloat16 or float16: the encoder's half of the logits,
        for each frame. V includes blank.
      lm: `(*batch, U+1, V)`, same dtype: the predictor's half, after each number of labels.
      labels: `(*batch, U)` integers in [0, V), none of them blank. Padding may be anything.
      return_posteriors: also return the arc posteriors, from the same pass. They are constants to
        differentiation; `get_rnnt_prune_ranges` takes them.
      normalization: of the sum, as in `rnnt_loss`; `"none"` if it is a log-probability already.
      implementation: of the recursion over the arcs, as in `rnnt_loss`; the matrix products are
        XLA's in every case.
      logit_lengths, label_lengths, blank_id, topology, final_blank, fastemit_lambda, delay_penalty,
        logit_begins, label_begins, reduction, where, check: as in `rnnt_loss`.

    Returns:
      The losses as `rnnt_loss` returns them, or `(losses, Posteriors(blank, label))`, posteriors as
      `rnnt_loss_from_arcs` returns them. Frames and label positions outside an utterance have no
      effect and get gradient zero.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`.
    """
    am, lm, sizes = validation.factored_scores(am, lm)
    utterances = validation.utterances_of(
        sizes, labels, logit_lengths, label_lengths, logit_begins, label_begins, where
    )
    assert sizes.V is not None
    arcs_options = validation.arcs_options(blank_id, sizes.V, normalization, None, implementation)
    lattice_options = validation.lattice_options(
        topology, final_blank, delay_penalty, fastemit_lambda, implementation
    )
    reduction = validation.reduction_of(reduction)
    return_posteriors = validation.static_bool("return_posteriors", return_posteriors)
    utterances = validation.checked_utterances(sizes, utterances, arcs_options.blank_id, check)
    options = _Options(arcs_options, lattice_options, return_posteriors)
    loss, posteriors = _reduced_loss(am, lm, utterances, options, reduction)
    return loss if posteriors is None else (loss, posteriors)


@dataclass(frozen=True)
class _Options:
    """What is static about a loss."""

    arcs: ArcsOptions
    lattice: LatticeOptions
    return_posteriors: bool


@partial(jax.jit, static_argnames=("options", "reduction"))
def _reduced_loss(
    am: jax.Array,
    lm: jax.Array,
    utterances: Utterances,
    options: _Options,
    reduction: Reduction,
) -> tuple[jax.Array, Posteriors | None]:
    sizes = validation.factored_sizes(am.shape, lm.shape)
    labels, bounds = labels_and_bounds(am, sizes, utterances, options.arcs.blank_id)
    assert labels is not None
    result: Any = _loss(options, *align_varying_axes(am, lm, labels, bounds))
    loss, posteriors = result
    return reduce_losses(loss, reduction, utterances.where), jax.lax.stop_gradient(posteriors)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options, am: jax.Array, lm: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, Posteriors | None]:
    if options.return_posteriors:
        return _loss_fwd(options, am, lm, labels, bounds)[0]
    blank, label, _ = factored_arcs_fwd(options.arcs, am, lm, labels, bounds)
    return negative(lattice_score(options.lattice, blank, label, bounds)), None


def _loss_fwd(options, am, lm, labels, bounds):
    blank, label, denominators = factored_arcs_fwd(options.arcs, am, lm, labels, bounds)
    log_likelihood, posteriors = lattice(options.lattice, blank, label, bounds)
    result = negative(log_likelihood), posteriors if options.return_posteriors else None
    return result, (am, lm, labels, denominators, posteriors)


def _loss_bwd(options, residuals, cotangents):
    am, lm, labels, denominators, posteriors = residuals
    weights = gradient_weights(options.lattice, posteriors)
    operands = align_varying_axes(am, lm, labels, denominators, *weights, cotangents[0])
    return *factored_arcs_bwd(options.arcs, *operands), None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
