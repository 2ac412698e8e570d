"""Greedy decoding, batched and jitted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speech.batching import Batch
from speech.model import CONTEXT
from speech.transcripts import decode

MAX_LABELS_PER_FRAME = 4
"""A bound that makes decoding end whatever the model says; speech needs less than one."""


@functools.partial(jax.jit, static_argnums=0)
def greedy(
    graph: nnx.GraphDef, params: nnx.State, features: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Most probable arc after most probable arc, from cell (0, 0) to the last frame's blank.

    `graph`, `params`: a model with `encode`, `predict` and `join`; `features` and `lengths` as
    its `encode` takes them. Returns labels (B, 2 T) and their count (B,). All utterances go on
    at once, each at its own frame; a full row of labels forces blank.
    """
    model = nnx.merge(graph, params)
    encoded = model.encode(features, lengths)
    batch, frames, _ = encoded.shape
    rows = jnp.arange(batch)
    capacity = 2 * frames

    def unfinished(carry):
        return jnp.any(carry[0] < lengths)

    def advance(carry):
        frame, emitted_here, context, labels, count = carry
        active = frame < lengths
        scores = model.join(encoded[rows, jnp.minimum(frame, frames - 1)], model.predict(context))
        best = jnp.argmax(scores, axis=-1)
        emit = active & (best != 0) & (emitted_here < MAX_LABELS_PER_FRAME) & (count < capacity)
        # Rows that emit nothing write past the end, which the scatter drops.
        labels = labels.at[rows, jnp.where(emit, count, capacity)].set(best, mode="drop")
        shifted = jnp.concatenate([context[:, 1:], best[:, None]], axis=1)
        context = jnp.where(emit[:, None], shifted, context)
        frame = frame + (active & ~emit)
        return frame, jnp.where(emit, emitted_here + 1, 0), context, labels, count + emit

    start = (
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros((batch, CONTEXT), jnp.int32),
        jnp.zeros((batch, capacity), jnp.int32),
        jnp.zeros(batch, jnp.int32),
    )
    _, _, _, labels, count = jax.lax.while_loop(unfinished, advance, start)
    return labels, count


def transcribe(graph: nnx.GraphDef, params: nnx.State, batch: Batch) -> list[str]:
    """What the model hears in each utterance of a batch."""
    labels, counts = map(np.asarray, greedy(graph, params, batch.features, batch.lengths))
    return [decode(row[:count].tolist()).strip() for row, count in zip(labels, counts, strict=True)]
