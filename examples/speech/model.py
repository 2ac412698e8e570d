"""A small transducer: bidirectional GRU encoder, stateless predictor, additive joint."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speech.gru import gru_scan
from speech.transcripts import CLASSES

Array: TypeAlias = jax.Array | np.ndarray

CONTEXT = 2
"""Labels that the stateless predictor sees."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the transducer."""

    features: int = 64
    subsampling: int = 4
    hidden: int = 128
    layers: int = 2
    neighbours: int = 1
    embedding: int = 64
    joint: int = 64
    classes: int = CLASSES
    dropout: float = 0.25
    simple: bool = False
    """Whether there is an additive joiner beside the joint network, for pruning."""


class BiGRU(nnx.Module):
    """One bidirectional GRU layer; the input projections of all frames are one product."""

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        self.hidden = hidden
        self.inputs = nnx.Linear(inputs, 6 * hidden, rngs=rngs)
        init = nnx.initializers.orthogonal()
        self.recurrent = nnx.Param(
            jnp.stack([init(rngs.params(), (hidden, 3 * hidden)) for _ in range(2)])
        )
        self.recurrent_bias = nnx.Param(jnp.zeros((2, 1, hidden)))

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Map `x` (B, T, D), with `valid` (B, T) marking real frames, to (B, T, 2 * hidden)."""
        batch, frames, _ = x.shape
        gates = self.inputs(x).reshape(batch, frames, 2, 3 * self.hidden).transpose(1, 2, 0, 3)
        # The backward direction reads time reversed, padding first; a state of zero in padding
        # makes the result independent of the amount of padding.
        gates = jnp.stack([gates[:, 0], gates[::-1, 1]], axis=1)
        keep = valid.T.astype(x.dtype)
        keep = jnp.stack([keep, keep[::-1]], axis=1)[..., None]
        states = gru_scan(self.recurrent[...], self.recurrent_bias[...], gates, keep)
        return jnp.concatenate([states[:, 0], states[::-1, 1]], axis=-1).transpose(1, 0, 2)


class Transducer(nnx.Module):
    """Encoder, predictor and joint network; scores are logits, class 0 is blank."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = 2 * config.hidden
        window = (1 + 2 * config.neighbours) * config.subsampling * config.features
        self.subsample = nnx.Linear(window, width, rngs=rngs)
        self.subsample_norm = nnx.LayerNorm(width, rngs=rngs)
        self.layers = nnx.List(
            [BiGRU(width, config.hidden, rngs=rngs) for _ in range(config.layers)]
        )
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(config.layers)])
        self.dropout = nnx.Dropout(config.dropout)
        self.encoder_out = nnx.Linear(width, config.joint, rngs=rngs)
        self.embedding = nnx.Embed(config.classes, config.embedding, rngs=rngs)
        self.predictor_out = nnx.Linear(CONTEXT * config.embedding, config.joint, rngs=rngs)
        self.output = nnx.Linear(config.joint, config.classes, rngs=rngs)
        self.simple = nnx.List(
            [
                nnx.Linear(config.joint, config.classes, rngs=rngs)
                for _ in range(2 if config.simple else 0)
            ]
        )

    def encode(self, features: Array, lengths: Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Encode features (B, T * subsampling, features) of `lengths` (B,) encoder frames.

        Returns (B, T, joint). `rngs` turns dropout on.
        """
        config = self.config
        batch, frames, _ = features.shape
        x = jnp.reshape(features, (batch, frames // config.subsampling, -1))
        x = stack_neighbours(x, config.neighbours)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = jax.nn.relu(self.subsample_norm(self.subsample(x)))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
            x = norm(layer(x, valid))
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return self.encoder_out(x)

    def predict(self, context: jax.Array) -> jax.Array:
        """Map the last labels, oldest first, (..., CONTEXT) to (..., joint)."""
        embedded = self.embedding(context)
        return self.predictor_out(embedded.reshape(*context.shape[:-1], -1))

    def join(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        """Logits (..., classes) from encoder and predictor vectors that broadcast."""
        return self.output(jnp.tanh(encoded + predicted))

    def simple_scores(
        self, encoded: jax.Array, predicted: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The additive joiner's halves, (..., classes) each, from encoder and predictor vectors."""
        if not self.simple:
            raise ValueError("this model has no additive joiner; see ModelConfig.simple")
        of_encoder, of_predictor = self.simple
        return of_encoder(encoded), of_predictor(predicted)

    def __call__(
        self,
        features: Array,
        lengths: Array,
        labels: Array,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Logits (B, T, U + 1, classes) for `labels` (B, U)."""
        encoded = self.encode(features, lengths, rngs)
        predicted = self.predict(label_contexts(labels))
        return self.join(encoded[:, :, None], predicted[:, None])


def label_contexts(labels: Array) -> jax.Array:
    """The last CONTEXT labels before each position: (B, U) to (B, U + 1, CONTEXT), 0-padded."""
    count = labels.shape[1] + 1
    padded = jnp.pad(labels, ((0, 0), (CONTEXT, 0)))
    return jnp.stack([padded[:, i : i + count] for i in range(CONTEXT)], axis=-1)


def stack_neighbours(x: jax.Array, count: int) -> jax.Array:
    """Each frame of (B, T, D) with `count` frames on either side: (B, T, (1 + 2 count) D).

    Followed by a dense layer this is a convolution, as one product.
    """
    frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (count, count), (0, 0)))
    return jnp.concatenate([padded[:, i : i + frames] for i in range(1 + 2 * count)], axis=-1)
