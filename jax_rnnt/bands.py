"""The operands and the arcs of a band: some neighbouring label positions in each frame."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ._native.jax_versions import align_varying_axes, with_batch_sharding_of
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Sizes, Utterances, clip_to_int32, labels_and_bounds, stack_alike
from .label_windows import band_label_mask, labels_at
from .numerics import axis_index
from .types import ArcsOptions, Array, Posteriors


def band_operands(
    scores: jax.Array, sizes: Sizes, ranges: Array, utterances: Utterances, blank_id: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """The integer operands of the arcs and of the lattice of a band, sharded as the scores are.

    Returns:
      Labels `(*batch, T, S)` and bounds `(*batch, T, 4)` of each frame, as the arcs take them; the
      label position `(*batch, T)` where each frame's band starts, and bounds `(*batch, 4)`; the
      mask of label arcs `(*batch, T, S)`, or None.
    """
    labels, bounds = labels_and_bounds(scores, sizes, utterances, blank_id)
    assert labels is not None
    starts = jnp.asarray(clip_to_int32(ranges[..., 0]))
    starts = with_batch_sharding_of(scores, len(sizes.batch), starts)
    starts, bounds = _checked_starts(starts, bounds, sizes.U + 1 - ranges.shape[-1])
    position = starts[..., None] + axis_index(ranges.ndim, -1, ranges.shape[-1])
    frame_bounds = _frame_bounds(starts, bounds, ranges.shape[-1])
    mask = band_label_mask(scores, sizes, utterances, position)
    return labels_at(labels, position), frame_bounds, starts, bounds, mask


def _checked_starts(
    starts: jax.Array, bounds: jax.Array, highest: int
) -> tuple[jax.Array, jax.Array]:
    """Starts in range, and bounds -1 where a frame of the utterance had one that was not."""
    t = axis_index(starts.ndim, -1, starts.shape[-1])
    used = (bounds[..., 0, None] <= t) & (t < bounds[..., 1, None])
    bad = jnp.any(used & ((starts < 0) | (starts > highest)), axis=-1)
    return jnp.clip(starts, 0, highest), jnp.where(bad[..., None], -1, bounds)


def _frame_bounds(starts: jax.Array, bounds: jax.Array, S: int) -> jax.Array:
    """Each frame's band as an utterance of one frame with S cells, for the arcs.

    Returns:
      `(*batch, T, 4)`: cells [label begin, label end] of the one frame are visited, those before
      label end have a label arc. Without frame where nothing is.
    """
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))
    t = axis_index(starts.ndim, -1, starts.shape[-1])
    first, last = label_begin - starts, label_end - starts  # last: a cell without label arc
    visited = (frame_begin <= t) & (t < frame_end) & (first < S) & (last >= 0)
    cells = (jnp.clip(x, 0, S) for x in (first, last))
    return jnp.where(visited[..., None], stack_alike(0, 1, *cells), 0)


def band_arcs_fwd(
    options: ArcsOptions, logits: jax.Array, labels: jax.Array, frame_bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blank arcs, label arcs and denominators, each `(*batch, T, S)`, of the frames of a band."""
    arcs = arcs_fwd(options, _one_frame(logits, 2), labels, frame_bounds)
    blank, label, denominators = (jnp.squeeze(x, -2) for x in arcs)
    return blank, label, denominators


def band_arcs_bwd(
    options: ArcsOptions,
    logits: jax.Array,
    labels: jax.Array,
    denominators: jax.Array,
    weights: Posteriors,
    cotangents: jax.Array,
    *,
    gradient_dtype: Any = None,
) -> jax.Array:
    """The gradient by the logits `(*batch, T, S, V)` of the frames of a band."""
    planes = (_one_frame(x, 1) for x in (denominators, *weights))
    cotangents = jnp.broadcast_to(cotangents[..., None], labels.shape[:-1])
    operands = align_varying_axes(_one_frame(logits, 2), labels, *planes, cotangents)
    return jnp.squeeze(arcs_bwd(options, *operands, gradient_dtype=gradient_dtype), -3)


def _one_frame(x: jax.Array, core_ndim: int) -> jax.Array:
    """Frames as batch dimensions of arrays of one frame each."""
    return jnp.expand_dims(x, x.ndim - core_ndim)
