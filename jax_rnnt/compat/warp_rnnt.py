"""`warp_rnnt.rnnt_loss`: 1ytic's warp-rnnt, on log-probabilities.

Different on purpose: `gather` changes nothing, as no more than two log-probabilities of a cell are
read in any case; with `compact`, there may be more rows and labels than the lengths say, at the
end; an utterance without any alignment has loss +inf and gradient zero, and one without frames
counts as having one in `average_frames`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_rnnt

from ..bounds import clip_to_int32
from ..numerics import axis_index
from ..reduction import reduce_losses
from ..types import Array, Reduction
from ..validation import (
    as_array,
    float_scores,
    integer_argument,
    is_known,
    one_of,
    static_bool,
    whole_number,
)
from ._names import arguments_named

__all__ = ["rnnt_loss"]


@arguments_named(
    logits="log_probs",
    logit_lengths="frames_lengths",
    label_lengths="labels_lengths",
    blank_id="blank",
)
def rnnt_loss(
    log_probs: Array,
    labels: Array,
    frames_lengths: Array,
    labels_lengths: Array,
    average_frames: bool = False,
    reduction: Reduction | None = "none",
    blank: int = 0,
    gather: bool = False,
    fastemit_lambda: float = 0.0,
    compact: bool = False,
) -> jax.Array:
    """RNN-Transducer loss.

    Args:
      log_probs: `(N, T, U+1, V)` log-probabilities, or `(sum of T_n * (U_n+1), V)` if `compact`.
        With `blank=-1` V is 2: those of blank and of the label that follows, in this order.
      labels: `(N, U)` integers, or `(sum of U_n,)` if `compact`. (In `jit`, where it is not known
        which utterance has most labels, memory grows with N times the square of their sum.)
      frames_lengths, labels_lengths: `(N,)` integers.
      average_frames: divide each loss by its number of frames.
      reduction: `"none"` or None, `"mean"` over the batch, or `"sum"`.
      blank: class of the blank symbol, or -1.
      gather: accepted and ignored.
      fastemit_lambda: label arcs weigh `1 + fastemit_lambda` in the gradient (arXiv 2010.11148).
      compact: packed log-probabilities and labels, see `jax_rnnt.rnnt_loss_packed`.
    """
    static_bool("gather", gather)
    blank = whole_number("blank", blank, minimum=-1)
    how: Reduction = one_of("reduction", "none" if reduction is None else reduction, Reduction)
    lengths = (
        _integers("frames_lengths", frames_lengths),
        _integers("labels_lengths", labels_lengths),
    )
    if static_bool("compact", compact):
        labels, most = _compact_labels(labels, lengths[1])
        if blank == -1:
            arcs = _gathered_arcs(log_probs)
            loss = jax_rnnt.rnnt_loss_packed_from_arcs(
                *arcs, *lengths, max_labels=most, fastemit_lambda=fastemit_lambda
            )
        else:
            loss = jax_rnnt.rnnt_loss_packed(
                log_probs,
                _padded_labels(labels, lengths[1], most),
                *lengths,
                blank_id=blank,
                normalization="none",
                fastemit_lambda=fastemit_lambda,
            )
    elif blank == -1:
        arcs = _gathered_arcs(log_probs)
        loss = jax_rnnt.rnnt_loss_from_arcs(*arcs, *lengths, fastemit_lambda=fastemit_lambda)
    else:
        loss = jax_rnnt.rnnt_loss(
            log_probs,
            labels,
            *lengths,
            blank_id=blank,
            normalization="none",
            fastemit_lambda=fastemit_lambda,
        )
    if static_bool("average_frames", average_frames):
        loss = loss / jnp.maximum(jnp.asarray(lengths[0]), 1).astype(loss.dtype)
    return reduce_losses(loss, how, None)


def _integers(name: str, value: Any) -> Array:
    """Of any shape; numbers beyond int32 stay beyond what is allowed, and do not wrap around."""
    array = as_array(name, value)
    integer_argument(name, array, tuple(array.shape), "")
    return clip_to_int32(array)


def _compact_labels(labels: Any, lengths: Array) -> tuple[Array, int]:
    """Labels `(sum of U_n,)`, and the most that an utterance has: all, if that is not known."""
    labels = _integers("labels", labels)
    if lengths.ndim != 1:
        raise ValueError(f"labels_lengths has shape {lengths.shape}; expected (N,).")
    if labels.ndim != 1:
        raise ValueError(
            f"labels has shape {labels.shape}; expected (sum of labels_lengths,) with compact=True."
        )
    if not is_known(lengths):
        return labels, labels.shape[0]
    known = np.asarray(jax.device_get(lengths)).astype(np.int64)
    if known.sum() > labels.shape[0]:
        raise ValueError(
            f"labels has shape {labels.shape}; expected at least {known.sum()} labels, the sum "
            "of labels_lengths."
        )
    return labels, int(max(np.max(known, initial=0), 0))


def _padded_labels(labels: Array, lengths: Array, num_labels: int) -> jax.Array:
    """Labels `(sum of U_n,)`, one utterance after another, as `(N, num_labels)`.

    Those that are missing are -1, which is no class.
    """
    labels = jnp.asarray(labels)
    if labels.shape[0] == 0 or num_labels == 0:
        return jnp.full((lengths.shape[0], num_labels), -1, labels.dtype)
    counts = jnp.clip(jnp.asarray(lengths), 0, num_labels)
    first = jnp.cumsum(counts, dtype=jnp.int32) - counts
    index = first[:, None] + axis_index(2, 1, num_labels)
    last = labels.shape[0] - 1
    return jnp.where(index <= last, labels[jnp.clip(index, 0, last)], -1)


def _gathered_arcs(log_probs: Any) -> tuple[jax.Array, jax.Array]:
    """Blank and label arcs of an array `(..., 2)` of both."""
    log_probs = float_scores("log_probs", log_probs)
    if log_probs.ndim == 0 or log_probs.shape[-1] != 2:
        raise ValueError(
            f"log_probs has shape {log_probs.shape}; expected (..., 2) with blank=-1: the "
            "log-probabilities of blank and of the next label."
        )
    return log_probs[..., 0], log_probs[..., 1]
