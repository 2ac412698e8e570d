"""Greedy decoding, batched and jitted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_rnnt import greedy_decode
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
    its `encode` takes them. Returns labels (B, 2 T) and their count (B,).
    """
    model = nnx.merge(graph, params)
    encoded = model.encode(features, lengths)
    batch, frames, _ = encoded.shape

    def predictor_step(context: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        context = jnp.concatenate([context[:, 1:], labels[:, None]], axis=1)
        return model.predict(context), context

    decoded = greedy_decode(
        predictor_step,
        model.join,
        encoded,
        lengths,
        initial_state=jnp.zeros((batch, CONTEXT), jnp.int32),
        max_labels_per_frame=MAX_LABELS_PER_FRAME,
        max_labels=2 * frames,
    )
    return decoded.labels, decoded.label_lengths


def transcribe(graph: nnx.GraphDef, params: nnx.State, batch: Batch) -> list[str]:
    """What the model hears in each utterance of a batch."""
    labels, counts = map(np.asarray, greedy(graph, params, batch.features, batch.lengths))
    return [decode(row[:count].tolist()).strip() for row, count in zip(labels, counts, strict=True)]
