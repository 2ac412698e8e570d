"""Float64 oracles for the losses of the additive joiner, by way of the dense sum `am + lm`.

`simple_loss` is `oracles.logits_loss` of the sum. `smoothed_loss` writes the smoothed arcs as k2
defines them, with plain log-softmaxes, and lets JAX differentiate these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from cases import Lengths

Array = np.ndarray


class FactoredBatch(NamedTuple):
    """Arguments of `rnnt_loss_simple`."""

    am: Any
    lm: Any
    labels: Any
    lengths: Lengths
    where: Any = None


class FactoredResult(NamedTuple):
    """Per-utterance losses, and d sum(cotangent * loss) / d am and lm."""

    loss: Array
    d_am: Array
    d_lm: Array


def simple_loss(batch: FactoredBatch, cotangent: Array | None = None, **options: Any) -> Any:
    """`rnnt_loss_simple` of a batch with one batch dimension."""
    am, lm = (np.asarray(x).astype(np.float64) for x in batch[:2])
    lengths = batch.lengths
    with np.errstate(invalid="ignore"):
        logits = am[:, :, None] + lm[:, None]
    result = oracles.logits_loss(
        logits,
        batch.labels,
        *lengths[:2],
        logit_begins=lengths.logit_begins,
        label_begins=lengths.label_begins,
        **options,
    )
    weight = np.ones(len(am)) if cotangent is None else cotangent
    grad = weight[:, None, None, None] * result.grad
    return FactoredResult(result.loss, grad.sum(2), grad.sum(1))


def smoothed_loss(
    batch: FactoredBatch,
    cotangent: Array | None = None,
    *,
    lm_only_scale: float,
    am_only_scale: float,
    blank_id: int = 0,
    **options: Any,
) -> FactoredResult:
    """`rnnt_loss_smoothed` of a batch with one batch dimension and finite scores.

    With sums over all labels positions within the utterances' bounds for the unigram.
    """
    am, lm = (jnp.asarray(np.asarray(x), jnp.float64) for x in batch[:2])
    (count, frames, _), width = am.shape, lm.shape[1]
    bounds = oracles.bounds_of_batch(count, frames, width - 1, *batch.lengths)
    counted = np.array([[w.t0 < w.t1 and w.u0 <= u <= w.u1 for u in range(width)] for w in bounds])
    wanted = np.zeros((count, width), np.int64)
    for i, w in enumerate(bounds):
        wanted[i, w.u0 : w.u1] = np.asarray(batch.labels)[i, w.u0 : w.u1]

    def pick(scores: Any, classes: Any) -> Any:
        index = np.broadcast_to(classes, scores.shape[:-1])[..., None]
        return jnp.take_along_axis(scores, index, -1)[..., 0]

    def arcs(am: Any, lm: Any) -> Any:
        shape = count, frames, width, am.shape[-1]
        joint = jax.nn.log_softmax(am[:, :, None] + lm[:, None])
        predictor = jax.nn.log_softmax(lm)
        unigram = jnp.exp(predictor[counted]).mean(0)
        encoder = jnp.log(jax.nn.softmax(am) * unigram)
        encoder = encoder - jnp.log((jax.nn.softmax(am) * unigram).sum(-1, keepdims=True))
        mixed = (
            (1 - lm_only_scale - am_only_scale) * joint
            + lm_only_scale * jnp.broadcast_to(predictor[:, None], shape)
            + am_only_scale * jnp.broadcast_to(encoder[:, :, None], shape)
        )
        return mixed[..., blank_id], pick(mixed, wanted[:, None])

    with jax.numpy_rank_promotion("allow"):
        (blank, label), vjp = jax.vjp(arcs, am, lm)
        result = oracles.arcs_loss(
            np.asarray(blank),
            np.asarray(label),
            *batch.lengths[:2],
            logit_begins=batch.lengths.logit_begins,
            label_begins=batch.lengths.label_begins,
            **options,
        )
        weight = np.ones(count) if cotangent is None else cotangent
        weight = weight[:, None, None]
        d_am, d_lm = vjp((weight * result.grad_blank, weight * result.grad_label))
    return FactoredResult(result.loss, np.asarray(d_am), np.asarray(d_lm))
