"""Which label positions a pruned loss keeps in each frame (arXiv 2206.13236, section 3.2)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_pruning
from ._native.jax_versions import with_whole_rows
from .bounds import Sizes, Utterances, labels_and_bounds
from .numerics import accumulator_dtype, axis_index
from .types import Array, Posteriors, Topology


def get_rnnt_prune_ranges(
    posteriors: Posteriors,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    s_range: int,
    topology: Topology = "regular",
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    where: Array | None = None,
    check: bool = True,
) -> jax.Array:
    """Which label positions to keep in each frame, for the pruned loss.

    Each frame keeps the `s_range` neighbouring positions that its alignments are most likely in,
    adjusted so that there is a path through all of them (arXiv 2206.13236, section 3.2).

    Args:
      posteriors: `Posteriors(blank, label)`, each `(*batch, T, U+1)` floating point, as
        `rnnt_loss_simple` or `rnnt_loss_from_arcs` return them.
      logit_lengths, label_lengths: `(*batch,)` integers, as the posteriors were computed with.
      s_range: how many positions to keep in a frame, at least 2 (1 with `"modified"`). Static.
      topology: of the pruned loss. With `"regular"` a band of S positions lets S - 1 labels a frame
        through, otherwise one.
      logit_begins, label_begins: `(*batch,)` integers: first frame and first label of each
        utterance (0 by default).
      where: `(*batch,)` bool, False for utterances that the losses leave out. Their ranges mean
        nothing, and their lengths may be anything.
      check: raise errors for bad values if they are known, which waits for them.

    Returns:
      `(*batch, T, S)` int32 with S = min(s_range, U+1): S consecutive label positions in [0, U] for
      each frame. They neither decrease from frame to frame nor jump by more than S - 1 (1 with
      `"modified"` and `"constrained"`). They have no gradient.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value; with `check`,
        `s_range` is too small for the labels of an utterance to fit in its frames. Without, the
        pruned loss of this utterance is +inf.
    """
    blank, label, sizes = validation_pruning.posterior_planes(posteriors)
    topology = validation.one_of("topology", topology, Topology)
    num_labels = validation.known_size("posteriors.blank", "U", sizes.U)
    s_range = validation_pruning.s_range_of(s_range, num_labels, topology)
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, where=where,
    )  # fmt: skip
    utterances = validation.checked_utterances(sizes, utterances, None, check)
    if check and topology == "regular":
        validation_pruning.check_labels_fit(sizes, utterances, s_range)
    return _prune_ranges(blank, label, utterances, s_range, topology)


@partial(jax.jit, static_argnames=("s_range", "topology"))
def _prune_ranges(
    blank: jax.Array, label: jax.Array, utterances: Utterances, s_range: int, topology: Topology
) -> jax.Array:
    *batch, T, W = blank.shape
    S = min(s_range, W)
    blank, label = with_whole_rows(len(batch), blank, label)
    _, bounds = labels_and_bounds(blank, Sizes(tuple(batch), T, W - 1), utterances, None)
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))

    dtype = accumulator_dtype(blank.dtype)
    blank, label = (lax.stop_gradient(x).astype(dtype) for x in (blank, label))
    # What a range keeps of the frame's alignments, less what was in the frame before it.
    entering = jnp.pad(label, [(0, 0)] * (len(batch) + 1) + [(1, 0)])[..., : W - S + 1]
    kept = _window_sums(blank, S) - entering
    lowest = jnp.minimum(label_begin, W - S)
    kept = jnp.where(axis_index(kept.ndim, -1, W - S + 1) >= lowest[..., None], kept, -jnp.inf)
    best = lax.argmax(kept, kept.ndim - 1, jnp.int32)

    t = axis_index(best.ndim, -1, T)
    last = jnp.maximum(label_end - (S - 1), lowest)
    start = jnp.where(t < frame_end - 1, best, last)
    # Ranges never go back, and no further than a path can: each may have to start earlier for the
    # sake of a later one's position, or later for its reach.
    step = S - 1 if topology == "regular" else 1
    start = lax.cummin(start, axis=len(batch), reverse=True)
    slack = lax.cummin(step * t - start, axis=len(batch), reverse=True)
    start = step * t - jnp.maximum(slack, step * frame_begin - lowest)
    start = jnp.clip(jnp.where(t < frame_begin, lowest, start), 0, W - S)
    return start[..., None] + axis_index(start.ndim + 1, -1, S)


def _window_sums(x: jax.Array, width: int) -> jax.Array:
    """Sums of `width` neighbours in the last axis, from those of powers of two."""
    count = x.shape[-1] - width + 1
    total, offset = jnp.zeros_like(x[..., :count]), 0
    block, size = x, 1  # sums of `size` neighbours
    while True:
        if width & size:
            total, offset = total + block[..., offset : offset + count], offset + size
        if 2 * size > width:
            return total
        block = block[..., :-size] + block[..., size:]
        size *= 2
