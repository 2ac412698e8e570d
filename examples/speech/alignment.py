"""The lattice of one utterance: posteriors of its cells, and the best path through it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_rnnt import rnnt_align_from_arcs, rnnt_loss_from_arcs
from speech.batching import Batch
from speech.losses import simple_loss
from speech.model import label_contexts


def best_path(blank: jax.Array | np.ndarray, label: jax.Array | np.ndarray) -> np.ndarray:
    """Cells (T + U, 2) as (frame, labels so far) of the most probable alignment (Viterbi 1967).

    `blank`, `label`: log-probabilities (T, U + 1) of the arcs that leave each cell of an
    utterance without padding: blank to the next frame, label to the next label.
    """
    frames = np.asarray(rnnt_align_from_arcs(blank, label).frames)
    t = range(blank.shape[0])
    before, after = (np.searchsorted(frames, t, side) for side in ("left", "right"))
    return np.array([(i, u) for i in t for u in range(before[i], after[i] + 1)])


def emission_frames(path: np.ndarray) -> np.ndarray:
    """The frame (U,) in which each label of a path is emitted."""
    return path[:-1][np.diff(path[:, 1]) == 1, 0]


def posterior_lattice(
    graph: nnx.GraphDef, params: nnx.State, batch: Batch
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice of the one utterance of `batch`, given its labels.

    Returns the probability (T, U + 1) that a path goes through each cell, and the best path.
    """
    model = nnx.merge(graph, params)
    log_probs = jax.nn.log_softmax(model(batch.features, batch.lengths, batch.labels))
    blank = log_probs[..., 0]
    # The last column has no label to emit; what stands there is ignored.
    labels = jnp.pad(batch.labels, ((0, 0), (0, 1)))[:, None, :, None]
    label = jnp.take_along_axis(log_probs, labels, axis=-1)[..., 0]
    _, posteriors = rnnt_loss_from_arcs(
        blank, label, batch.lengths, batch.label_lengths, return_posteriors=True
    )
    occupied = np.asarray(posteriors.blank + posteriors.label)[0]
    return occupied, best_path(blank[0], label[0])


def kept_band(graph: nnx.GraphDef, params: nnx.State, batch: Batch, s_range: int) -> np.ndarray:
    """Label positions (T, S) of the one utterance of `batch` that pruning keeps in each frame."""
    model = nnx.merge(graph, params)
    encoded = model.encode(batch.features, batch.lengths)
    predicted = model.predict(label_contexts(batch.labels))
    return np.asarray(simple_loss(model, encoded, predicted, batch, s_range)[1])[0]
