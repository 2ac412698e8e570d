"""`transducer.torch_binding`: awni's transducer, the loss of an additive joiner.

Different on purpose: an utterance without any alignment has loss +inf and gradient zero, and
padding never matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

import jax_rnnt

from ..types import Array
from ._names import arguments_named

_named = arguments_named(
    am="emissions", lm="predictions", logit_lengths="input_lengths", blank_id="blank"
)

__all__ = ["TransducerLoss"]


@dataclass(frozen=True)
class TransducerLoss:
    """RNN-Transducer loss of the logits `emissions[t] + predictions[u]`, which are never stored.

    Attributes:
      blank: class of the blank symbol.
    """

    blank: int = 0

    @_named
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

    @_named
    def viterbi(
        self,
        emissions: Array,
        predictions: Array,
        input_lengths: Array,
        label_lengths: Array,
    ) -> jax.Array:
        """The labels `(B, U)` int32 of the best path, under the predictor's own history.

        Of all paths with `label_lengths` labels, whatever they are: each emitting arc takes its
        best label, the lowest of equally good ones, and is taken only if better than blank. Labels
        beyond `label_lengths` are -1.

        Args:
          emissions, predictions, input_lengths, label_lengths: as for the loss.
        """
        return jax_rnnt.rnnt_best_labels_simple(
            emissions, predictions, input_lengths, label_lengths, blank_id=self.blank
        ).labels
