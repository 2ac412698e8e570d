"""`transducer.torch_binding`: awni's transducer, the loss of an additive joiner.

Different on purpose: an utterance without any alignment has loss +inf and gradient zero, and
padding never matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

import jax_rnnt

from ..types import Array


@dataclass(frozen=True)
class TransducerLoss:
    """RNN-Transducer loss of the logits `emissions[t] + predictions[u]`, which are never stored.

    Attributes:
      blank: class of the blank symbol.
    """

    blank: int = 0

    def __call__(
        self,
        emissions: Array,
        predictions: Array,
        labels: Array,
        input_lengths: Array,
        label_lengths: Array,
    ) -> jax.Array:
        """The losses `(B,)`.

        Args:
          emissions: `(B, T, V)`, unnormalised, of the encoder.
          predictions: `(B, U+1, V)`, unnormalised, of the predictor.
          labels: `(B, U)` integers.
          input_lengths, label_lengths: `(B,)` integers.
        """
        return jax_rnnt.rnnt_loss_simple(
            emissions, predictions, labels, input_lengths, label_lengths, blank_id=self.blank
        )

    forward = __call__
