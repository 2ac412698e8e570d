"""The log-probabilities of arcs, for what a loss does not do with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import validation
from ._native.jax_versions import align_varying_axes
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances, cells_inside, valid_bounds
from .losses import checked_logits
from .numerics import axis_index
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
    valid = valid_bounds(bounds, sizes.T, sizes.U)[..., None, None]
    blank, label = (jnp.where(valid, x, jnp.nan) for x in arcs)
    return blank, label


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
    *_, T, W, _ = logits.shape
    inside = cells_inside(bounds, T, W, W - 1)
    u = axis_index(inside.ndim, -1, W)
    has_label = inside & (u < bounds[..., 3, None, None])
    weights = (
        jnp.where(arcs, cotangent, 0)
        for arcs, cotangent in zip((inside, has_label), cotangents, strict=True)
    )
    # `arcs_bwd` is for a loss, which has the opposite sign.
    sign = jnp.full_like(bounds[..., 0], -1, denominators.dtype)
    operands = align_varying_axes(logits, labels, denominators, *weights, sign)
    return arcs_bwd(options, *operands), None, None


_arcs.defvjp(_arcs_fwd, _arcs_bwd)
