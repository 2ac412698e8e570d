"""`warp_rnnt.rnnt_loss`: 1ytic's warp-rnnt, on log-probabilities.

Different on purpose: `gather` changes nothing, as no more than two log-probabilities of a cell are
read in any case; with `compact`, there may be more rows and labels than the lengths say, at the
end; an utterance without any alignment has loss +inf and gradient zero, and one without frames
counts as having one in `average_frames`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import jax_rnnt

from ..packed_rows import unpacked_labels
from ..reduction import reduce_losses
from ..types import Array, Reduction
from ..validation import as_array, one_of, static_bool
from ..validation_packed import gathered_arcs, most_labels
from ._names import arguments_named


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
    how: Reduction = one_of("reduction", "none" if reduction is None else reduction, Reduction)
    lengths = as_array("frames_lengths", frames_lengths), as_array("labels_lengths", labels_lengths)
    if static_bool("compact", compact):
        most = most_labels(labels, lengths[1])
        if blank == -1:
            arcs = gathered_arcs(log_probs)
            loss = jax_rnnt.rnnt_loss_packed_from_arcs(
                *arcs, *lengths, max_labels=most, fastemit_lambda=fastemit_lambda
            )
        else:
            loss = jax_rnnt.rnnt_loss_packed(
                log_probs,
                unpacked_labels(jnp.asarray(labels), jnp.asarray(lengths[1]), most),
                *lengths,
                blank_id=blank,
                normalization="none",
                fastemit_lambda=fastemit_lambda,
            )
    elif blank == -1:
        arcs = gathered_arcs(log_probs)
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
