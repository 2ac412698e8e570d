"""`warprnnt_pytorch`: HawkAaron's warp-transducer, with the `fastemit_lambda` of ESPnet's fork.

Different on purpose: reduced losses are scalars, not arrays of one element; an utterance without
any alignment has loss +inf and gradient zero, and padding never matters. `fastemit_lambda` acts on
the gradient alone; the loss value is that of the transducer.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

import jax_rnnt

from ..types import Array, Reduction
from ._names import arguments_named

__all__ = ["RNNTLoss", "rnnt_loss"]


@arguments_named(
    logits="acts", logit_lengths="act_lens", label_lengths="label_lens", blank_id="blank"
)
def rnnt_loss(
    acts: Array,
    labels: Array,
    act_lens: Array,
    label_lens: Array,
    blank: int = 0,
    reduction: Reduction = "mean",
    fastemit_lambda: float = 0.0,
) -> jax.Array:
    """RNN-Transducer loss.

    Args:
      acts: `(B, T, U+1, V)`, unnormalised.
      labels: `(B, U)` integers.
      act_lens, label_lens: `(B,)` integers.
      blank: class of the blank symbol.
      reduction: `"none"`, `"mean"` over the batch, or `"sum"`.
      fastemit_lambda: label arcs weigh `1 + fastemit_lambda` in the gradient (arXiv 2010.11148).
    """
    return jax_rnnt.rnnt_loss(
        acts,
        labels,
        act_lens,
        label_lens,
        blank_id=blank,
        reduction=reduction,
        fastemit_lambda=fastemit_lambda,
    )


@dataclass(frozen=True)
class RNNTLoss:
    """`rnnt_loss` with its options fixed."""

    blank: int = 0
    reduction: Reduction = "mean"
    fastemit_lambda: float = 0.0

    def __call__(self, acts: Array, labels: Array, act_lens: Array, label_lens: Array) -> jax.Array:
        return rnnt_loss(
            acts, labels, act_lens, label_lens, self.blank, self.reduction, self.fastemit_lambda
        )

    forward = __call__
