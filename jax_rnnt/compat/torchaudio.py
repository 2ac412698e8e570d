"""`torchaudio.functional.rnnt_loss` and `torchaudio.transforms.RNNTLoss`.

Different on purpose: losses of half-precision logits are float32, bfloat16 and float64 logits are
allowed, and an utterance without any alignment has loss +inf.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

import jax_rnnt

from ..types import Array, Reduction
from ..validation import static_bool
from ._names import arguments_named

__all__ = ["RNNTLoss", "rnnt_loss"]


@arguments_named(labels="targets", label_lengths="target_lengths", blank_id="blank")
def rnnt_loss(
    logits: Array,
    targets: Array,
    logit_lengths: Array,
    target_lengths: Array,
    blank: int = -1,
    clamp: float = -1,
    reduction: Reduction = "mean",
    fused_log_softmax: bool = True,
) -> jax.Array:
    """RNN-Transducer loss.

    Args:
      logits: `(B, T, U+1, V)`, unnormalised unless `fused_log_softmax` is False.
      targets: `(B, U)` integers.
      logit_lengths, target_lengths: `(B,)` integers.
      blank: class of the blank symbol; negative values count from the end.
      clamp: bound on the elements of the gradient by `logits`; off if <= 0.
      reduction: `"none"`, `"mean"` over the batch, or `"sum"`.
      fused_log_softmax: False if `logits` are log-probabilities.
    """
    return jax_rnnt.rnnt_loss(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank_id=blank,
        clamp=clamp,
        normalization="softmax" if static_bool("fused_log_softmax", fused_log_softmax) else "none",
        reduction=reduction,
    )


@dataclass(frozen=True)
class RNNTLoss:
    """`rnnt_loss` with its options fixed."""

    blank: int = -1
    clamp: float = -1.0
    reduction: Reduction = "mean"
    fused_log_softmax: bool = True

    def __call__(
        self, logits: Array, targets: Array, logit_lengths: Array, target_lengths: Array
    ) -> jax.Array:
        return rnnt_loss(
            logits,
            targets,
            logit_lengths,
            target_lengths,
            self.blank,
            self.clamp,
            self.reduction,
            self.fused_log_softmax,
        )

    forward = __call__
