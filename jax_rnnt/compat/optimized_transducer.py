"""`optimized_transducer`: `transducer_loss` and `TransducerLoss`, on packed logits.

Different on purpose: the number of rows of `logits` is static, so there may be more of them than
cells, at the end, with gradient zero; the gradient is a new array, `logits` is left as it is;
`reduction="none"` is allowed; utterances without labels are, too; and one without any alignment has
loss +inf and gradient zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

import jax_rnnt

from ..types import Array, Reduction
from ..validation import static_bool
from ._names import arguments_named

__all__ = ["TransducerLoss", "transducer_loss"]


@arguments_named(labels="targets", label_lengths="target_lengths", blank_id="blank")
def transducer_loss(
    logits: Array,
    targets: Array,
    logit_lengths: Array,
    target_lengths: Array,
    blank: int,
    from_log_softmax: bool,
    one_sym_per_frame: bool = False,
    reduction: Reduction = "mean",
) -> jax.Array:
    """RNN-Transducer loss.

    Args:
      logits: `(sum of T_b * (U_b+1), V)`, see `jax_rnnt.rnnt_loss_packed`.
      targets: `(B, U)` integers, padded.
      logit_lengths, target_lengths: `(B,)` integers.
      blank: class of the blank symbol.
      from_log_softmax: True if `logits` are log-probabilities; the gradient is by them, then, and
        zero but for blank and the labels.
      one_sym_per_frame: at most one label a frame, and none in the last one.
      reduction: `"mean"` over the batch, `"sum"` or `"none"`.
    """
    from_log_softmax = static_bool("from_log_softmax", from_log_softmax)
    one_sym_per_frame = static_bool("one_sym_per_frame", one_sym_per_frame)
    return jax_rnnt.rnnt_loss_packed(
        logits,
        targets,
        logit_lengths,
        target_lengths,
        blank_id=blank,
        normalization="none" if from_log_softmax else "softmax",
        topology="modified" if one_sym_per_frame else "regular",
        final_blank=one_sym_per_frame,
        reduction=reduction,
    )


@dataclass(frozen=True)
class TransducerLoss:
    """`transducer_loss` with blank and reduction fixed."""

    blank: int
    reduction: Reduction = "mean"

    def __call__(
        self,
        logits: Array,
        targets: Array,
        logit_lengths: Array,
        target_lengths: Array,
        from_log_softmax: bool,
        one_sym_per_frame: bool = False,
    ) -> jax.Array:
        return transducer_loss(
            logits,
            targets,
            logit_lengths,
            target_lengths,
            self.blank,
            from_log_softmax,
            one_sym_per_frame,
            self.reduction,
        )

    forward = __call__
