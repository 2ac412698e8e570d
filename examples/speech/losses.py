"""What a model is trained to minimise: the exact loss, from stored logits or not, or the pruned."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jax_rnnt import (
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    rnnt_loss,
    rnnt_loss_joint,
    rnnt_loss_pruned,
    rnnt_loss_simple,
)
from speech.batching import Batch
from speech.model import Transducer, label_contexts


class Loss(Protocol):
    """Hashable, as a training step is compiled for it."""

    def __call__(
        self, model: Transducer, batch: Batch, rngs: nnx.Rngs, step: jax.Array
    ) -> jax.Array:
        """Losses (B,) at a step of the training, in nats."""
        ...


def exact_loss(model: Transducer, batch: Batch, rngs: nnx.Rngs, step: jax.Array) -> jax.Array:
    """The transducer loss of the logits of all cells."""
    del step
    logits = model(batch.features, batch.lengths, batch.labels, rngs)
    return rnnt_loss(logits, batch.labels, batch.lengths, batch.label_lengths)


def joint_loss(model: Transducer, batch: Batch, rngs: nnx.Rngs, step: jax.Array) -> jax.Array:
    """The same number; the joint network runs on some cells at a time, and on no padding."""
    del step
    encoded = model.encode(batch.features, batch.lengths, rngs)
    predicted = model.predict(label_contexts(batch.labels))
    # What the loss is differentiated by comes in as an argument: the layer's parameters, too.
    layer, params = nnx.split(model.output)

    def join(params: nnx.State, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return nnx.merge(layer, params)(jnp.tanh(encoded + predicted))

    return rnnt_loss_joint(
        join, params, encoded, predicted, batch.labels, batch.lengths, batch.label_lengths
    )


@dataclasses.dataclass(frozen=True)
class PrunedLoss:
    """An additive joiner's loss, and the joint network's in the band that the former chooses.

    The schedule is that of the icefall recipes (arXiv 2206.13236): as long as the additive joiner
    knows little, its choice is worth little, and so is the loss in the band.
    """

    s_range: int = 5
    simple_scale: float = 0.5
    first_pruned_scale: float = 0.1
    warmup_steps: int = 500

    def scales(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the simple loss, from 1 to `simple_scale`, and of the pruned one, rising to 1."""
        warm = jnp.minimum(step / self.warmup_steps, 1)
        pruned = self.first_pruned_scale + warm * (1 - self.first_pruned_scale)
        return 1 - warm * (1 - self.simple_scale), pruned

    def __call__(
        self, model: Transducer, batch: Batch, rngs: nnx.Rngs, step: jax.Array
    ) -> jax.Array:
        encoded = model.encode(batch.features, batch.lengths, rngs)
        predicted = model.predict(label_contexts(batch.labels))
        simple, ranges = simple_loss(model, encoded, predicted, batch, self.s_range)
        logits = model.join(*do_rnnt_pruning(encoded, predicted, ranges))
        pruned = rnnt_loss_pruned(logits, batch.labels, ranges, batch.lengths, batch.label_lengths)
        simple_scale, pruned_scale = self.scales(step)
        return simple_scale * simple + pruned_scale * pruned


def simple_loss(
    model: Transducer, encoded: jax.Array, predicted: jax.Array, batch: Batch, s_range: int
) -> tuple[jax.Array, jax.Array]:
    """Losses (B,) of the additive joiner, and the label positions (B, T, S) that it would keep."""
    lengths = batch.lengths, batch.label_lengths
    losses, posteriors = rnnt_loss_simple(
        *model.simple_scores(encoded, predicted), batch.labels, *lengths, return_posteriors=True
    )
    return losses, get_rnnt_prune_ranges(posteriors, *lengths, s_range=s_range)
