"""The log-probabilities of arcs, for what a loss does not do with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import validation
from ._native.jax_versions import align_varying_axes
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances, arcs_inside, valid_bounds
from .losses import checked_logits
from .operands import dense_operands
from .types import ArcsOptions, Array, Implementation, LatticeOptions, Normalization


def rnnt_arcs(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    normalization: Normalization = "softmax",
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the blank and the label arc of each cell, from the logits.

    They are what `rnnt_loss_from_arcs` and `rnnt_align_from_arcs` take: with posteriors, with other
    scores added, in a loss of one's own. The log-softmax is fused and the labels are looked up, so
    that beside the logits and their gradient memory is a few `(T, U+1)` planes.

    Args:
      logits, labels, logit_lengths, label_lengths, blank_id, normalization, logit_begins,
        label_begins, where, implementation, check: as in `rnnt_loss`.

    Returns:
      `(blank_log_probs, label_log_probs)`, each `(*batch, T, U+1)` in float32 (float64 for float64
      logits): -inf outside of the utterance, in the last column of labels, and for utterances that
      `where` leaves out; NaN for an utterance with bad lengths or labels that could not be checked.
      Gradients have the dtype of the logits, and are zero in padding.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, where=where,
    )  # fmt: skip
    logits, utterances, options, _ = checked_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, normalization, None, implementation),
        LatticeOptions(),
        check,
    )
    return _rnnt_arcs(logits, utterances, options)


@partial(jax.jit, static_argnames="options")
def _rnnt_arcs(
    logits: jax.Array, utterances: Utterances, options: ArcsOptions
) -> tuple[jax.Array, jax.Array]:
    sizes = validation.sizes_of("logits", logits.shape, 3)
    (logits,), labels, bounds, _ = dense_operands((logits,), sizes, utterances, options.blank_id)
    arcs: Any = _arcs(options, logits, labels, bounds)
    return nan_where_bad(arcs, bounds)


def nan_where_bad(
    arcs: tuple[jax.Array, jax.Array], bounds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """NaN for utterances with bounds out of range."""
    *_, T, W = arcs[0].shape
    valid = valid_bounds(bounds, T, W - 1)[..., None, None]
    blank, label = (jnp.where(valid, x, jnp.nan) for x in arcs)
    return blank, label


def weights_of(
    cotangents: tuple[jax.Array, jax.Array], bounds: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The posteriors and the cotangents `(*batch,)` of a loss that has the gradient of arcs with
    these cotangents."""
    *_, T, W = cotangents[0].shape
    blank, label = (
        jnp.where(inside, x, 0)
        for inside, x in zip(arcs_inside(bounds, T, W, W - 1), cotangents, strict=True)
    )
    return (blank, label), jnp.full_like(bounds[..., 0], -1, blank.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _arcs(
    options: ArcsOptions, logits: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    blank, label, _ = arcs_fwd(options, logits, labels, bounds)
    return blank, label


def _arcs_fwd(options, logits, labels, bounds):
    blank, label, denominators = arcs_fwd(options, logits, labels, bounds)
    return (blank, label), (logits, labels, bounds, denominators)


def _arcs_bwd(options, residuals, cotangents):
    logits, labels, bounds, denominators = residuals
    weights, of_loss = weights_of(cotangents, bounds)
    operands = align_varying_axes(logits, labels, denominators, *weights, of_loss)
    return arcs_bwd(options, *operands), None, None


_arcs.defvjp(_arcs_fwd, _arcs_bwd)
