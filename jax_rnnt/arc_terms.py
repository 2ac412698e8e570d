"""`rnnt_loss_from_arc_terms`: what each of several terms adds to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from . import validation, validation_factored
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .bounds import Utterances, labels_and_bounds
from .label_windows import label_mask, only_allowed
from .lattice import lattice
from .losses import gradients_by_arcs
from .numerics import accumulator_dtype
from .reduction import negative, reduce_losses
from .types import Array, Implementation, LatticeOptions, Posteriors, Reduction, Topology

_Terms: TypeAlias = tuple[jax.Array, ...]


def rnnt_loss_from_arc_terms(
    blank_terms: Sequence[Array],
    label_terms: Sequence[Array],
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    topology: Topology = "regular",
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
) -> jax.Array:
    """RNN-Transducer loss of arcs that are sums of terms, divided among the terms.

    The loss is that of `rnnt_loss_from_arcs` on the sums. Term `i` gets minus its own part of the
    expected score of an alignment, the sum over arcs of posterior times term, with the posteriors
    as constants. What is left, the entropy of the alignments and the delay penalty, goes to the
    first term, which should be the main one (`joint_mutual_information_recursion` of k2 and
    fast_rnnt does the same).

    Args:
      blank_terms: N >= 1 arrays `(*batch, T, U+1)` float32, float64, bfloat16 or float16, which add
        up to the log-probabilities of blank.
      label_terms: N arrays of the same shape and dtype, for the label arcs; the last column is
        ignored.
      logit_lengths, label_lengths, topology, final_blank, fastemit_lambda, delay_penalty,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_from_arcs`.
      reduction: as in `rnnt_loss`, for each term by itself.

    Returns:
      `(N, *batch)`, or `(N,)` with a reduction, in float32 (float64 for float64 terms). The sum
      over terms is the loss, and its gradient is the gradient of the loss. Where that is not
      finite, the first term has it, the others are 0, and gradients are 0.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_from_arcs`; also for no terms, and
        for different numbers of blank and label terms.
    """
    blanks, labels = validation_factored.arc_terms(blank_terms, label_terms)
    sizes = validation.sizes_of("blank_terms[0]", blanks[0].shape, 2)
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, label_windows=label_windows, where=where,
    )  # fmt: skip
    options = validation.checked_lattice_options(
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation)
    )
    reduction = validation.reduction_of(reduction)
    utterances = validation.checked_utterances(sizes, utterances, None, check)
    return _reduced_losses(blanks, labels, utterances, options, reduction)


@partial(jax.jit, static_argnames=("options", "reduction"))
def _reduced_losses(
    blanks: _Terms,
    labels: _Terms,
    utterances: Utterances,
    options: LatticeOptions,
    reduction: Reduction,
) -> jax.Array:
    sizes = validation.sizes_of("blank_terms[0]", blanks[0].shape, 2)
    terms = with_whole_rows(len(sizes.batch), *blanks, *labels)
    blanks, labels = terms[: len(blanks)], terms[len(blanks) :]
    _, bounds = labels_and_bounds(blanks[0], sizes, utterances, None)
    mask = label_mask(blanks[0], sizes, utterances)
    labels = tuple(only_allowed(x, mask) for x in labels)
    dtype, count = accumulator_dtype(blanks[0].dtype), len(blanks)
    operands = align_varying_axes(*(x.astype(dtype) for x in (*blanks, *labels)), bounds)
    losses: Any = _losses(options, operands[:count], operands[count:-1], operands[-1])
    return jnp.stack([reduce_losses(loss, reduction, utterances.where) for loss in losses])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(options: LatticeOptions, blanks: _Terms, labels: _Terms, bounds: jax.Array) -> _Terms:
    return _losses_fwd(options, blanks, labels, bounds)[0]


def _losses_fwd(options, blanks, labels, bounds):
    log_likelihood, posteriors = lattice(options, _sum(blanks), _sum(labels), bounds)
    first, others = negative(log_likelihood), []
    for arcs in zip(blanks[1:], labels[1:], strict=True):
        score = _expected_score(posteriors, *arcs)
        first, others = first + score, [*others, -score]
    return (first, *others), posteriors


def _losses_bwd(options, posteriors, cotangents):
    of_terms = (gradients_by_arcs(options, posteriors, c[..., None, None]) for c in cotangents)
    blanks, labels = zip(*of_terms, strict=True)
    return blanks, labels, None


_losses.defvjp(_losses_fwd, _losses_bwd)


def _sum(terms: Sequence[jax.Array]) -> jax.Array:
    return sum(terms[1:], terms[0])


def _expected_score(posteriors: Posteriors, blank: jax.Array, label: jax.Array) -> jax.Array:
    """Sum of posterior times arc, whatever the arcs that no alignment takes hold."""
    products = (
        jnp.where(posterior != 0, posterior * arc, 0)
        for posterior, arc in zip(posteriors, (blank, label), strict=True)
    )
    return jnp.sum(_sum(tuple(products)), axis=(-2, -1))
