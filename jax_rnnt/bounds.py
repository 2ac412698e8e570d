"""Which part of the padded arrays each utterance is, as the kernels take it.

Bounds are `(*batch, 4)` int32: frame begin and end, label begin and end of each utterance, ends
exclusive. Values out of range mark an utterance with bad input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._native.jax_versions import with_batch_sharding_of
from .numerics import axis_index
from .types import Array

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Sizes:
    """Sizes read off the arguments' shapes; V is None for arcs."""

    batch: tuple[int, ...]
    T: int
    U: int
    V: int | None = None
    sources: tuple[str, str] = ("the scores", "the scores")
    """The arguments that have T and U."""

    @property
    def num_classes(self) -> int:
        """V, which scores other than arcs have."""
        assert self.V is not None
        return self.V

    @property
    def limits(self) -> tuple[str, str]:
        """The most frames and labels that an utterance may have, in words."""
        of_T, of_U = (f"from the shape of {source}" for source in self.sources)
        return f"T = {self.T}, {of_T}", f"U = {self.U}, {of_U}"


@dataclass(frozen=True)
class PackedSizes(Sizes):
    """Sizes of packed rows, of which there are N. T is N, too: a frame has at least one row."""

    max_labels_given: bool = False
    """Whether U is an argument, where there are no labels."""

    @property
    def num_rows(self) -> int:
        """N."""
        return self.T

    @property
    def limits(self) -> tuple[str, str]:
        of_labels = f"U = {self.U}, from the shape of labels"
        if self.max_labels_given:
            of_labels = f"max_labels = {self.U}"
        return f"N = {self.T}, the number of rows", of_labels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Utterances:
    """The integer and boolean arguments that describe the utterances; None where left out."""

    labels: Array | None = None  # (*batch, U)
    logit_lengths: Array | None = None  # (*batch,)
    label_lengths: Array | None = None
    logit_begins: Array | None = None
    label_begins: Array | None = None
    where: Array | None = None
    label_windows: Array | None = None  # (*batch, U, 2)


def clip_to_int32(array: Any) -> Any:
    """As int32, out-of-range values at its ends: they stay bad instead of wrapping around."""
    if array.dtype == jnp.int32:
        return array
    info = jnp.iinfo(array.dtype)
    low, high = max(info.min, -_INT32_MAX - 1), min(info.max, _INT32_MAX)
    module = np if isinstance(array, np.ndarray) else jnp
    bounded = module.clip(array, array.dtype.type(low), array.dtype.type(high))
    return bounded.astype(jnp.int32)


def not_wrapped(array: Any) -> Any:
    """Integers as `clip_to_int32` makes them, other numbers as they are."""
    return clip_to_int32(array) if jnp.issubdtype(array.dtype, jnp.integer) else array


def for_tracing(utterances: Utterances) -> Utterances:
    """With NumPy integers clipped to int32: JAX wraps them around if 64-bit types are off."""
    return jax.tree.map(
        lambda x: clip_to_int32(x) if isinstance(x, np.ndarray) and x.dtype != np.bool_ else x,
        utterances,
    )


def labels_and_bounds(
    scores: jax.Array,
    sizes: Sizes,
    utterances: Utterances,
    blank_id: int | None,
    other_blanks: tuple[int, ...] = (),
) -> tuple[jax.Array | None, jax.Array]:
    """The kernels' integer operands, sharded as the scores are.

    Args:
      scores: logits or arcs with batch dimensions `sizes.batch`.
      blank_id: in [0, V), or None where there are no labels.
      other_blanks: more classes that are no labels.

    Returns:
      Labels `(*batch, U)` int32, and bounds: -1 where a length, a begin or a label within the
      utterance is out of range, and 0 where `utterances.where` is false.
    """

    def placed(x: Array) -> jax.Array:
        return with_batch_sharding_of(scores, len(sizes.batch), jnp.asarray(x))

    def int32(value: Array | None, default: int) -> jax.Array:
        if value is None:
            return placed(jnp.full(sizes.batch, default, jnp.int32))
        return placed(clip_to_int32(value))

    logit_begins = int32(utterances.logit_begins, 0)
    logit_lengths = int32(utterances.logit_lengths, sizes.T)
    label_begins = int32(utterances.label_begins, 0)
    label_lengths = int32(utterances.label_lengths, sizes.U)
    valid = (logit_begins >= 0) & (logit_begins <= logit_lengths) & (logit_lengths <= sizes.T)
    valid &= (label_begins >= 0) & (label_begins <= label_lengths) & (label_lengths <= sizes.U)

    labels = None
    if utterances.labels is not None and sizes.V is not None:
        labels = placed(clip_to_int32(utterances.labels))
        position = axis_index(labels.ndim, -1, sizes.U)
        used = (label_begins[..., None] <= position) & (position < label_lengths[..., None])
        good = (labels >= 0) & (labels < sizes.V)
        for blank in (blank_id, *other_blanks):
            good &= labels != blank
        valid &= jnp.all(good | ~used, axis=-1)

    bounds = stack_alike(logit_begins, logit_lengths, label_begins, label_lengths)
    bounds = jnp.where(valid[..., None], bounds, -1)
    if utterances.where is not None:
        bounds = jnp.where(placed(utterances.where)[..., None], bounds, 0)
    return labels, bounds


def stack_alike(*values: jax.Array | int) -> jax.Array:
    """Integers, at least one of them an array, stacked along a new last axis."""
    # On explicit meshes, stacked arrays have to be sharded alike, and under vmap all be mapped if
    # one is, as the mapped axis may be sharded. Adding the same to all of them makes them so.
    zero = sum(x - x for x in values)
    return jnp.stack([jnp.asarray(x + zero) for x in values], axis=-1)


def valid_bounds(bounds: jax.Array, T: int, num_labels: int) -> jax.Array:
    """Whether each utterance has bounds in range, `(*batch,)` bool."""
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i] for i in range(4))
    frames_ok = (frame_begin >= 0) & (frame_begin <= frame_end) & (frame_end <= T)
    return frames_ok & (label_begin >= 0) & (label_begin <= label_end) & (label_end <= num_labels)


def cells_inside(bounds: jax.Array, T: int, W: int, num_labels: int) -> jax.Array:
    """Cells that belong to a valid utterance, `(*batch, T, U+1)` bool."""
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None, None] for i in range(4))
    t, u = axis_index(frame_begin.ndim, -2, T), axis_index(frame_begin.ndim, -1, W)
    inside = (frame_begin <= t) & (t < frame_end) & (label_begin <= u) & (u <= label_end)
    return inside & valid_bounds(bounds, T, num_labels)[..., None, None]


def arcs_inside(bounds: jax.Array, T: int, W: int, num_labels: int) -> tuple[jax.Array, jax.Array]:
    """Cells of valid utterances that have a blank arc, and a label arc, `(*batch, T, U+1)` bool."""
    inside = cells_inside(bounds, T, W, num_labels)
    return inside, inside & (axis_index(inside.ndim, -1, W) < bounds[..., 3, None, None])


def rows_inside(bounds: jax.Array, T: int, W: int) -> tuple[jax.Array, jax.Array]:
    """Frames `(*batch, T)` and label positions `(*batch, U+1)` of valid utterances."""
    valid = valid_bounds(bounds, T, W - 1)[..., None]
    frame_begin, frame_end, label_begin, label_end = (bounds[..., i, None] for i in range(4))
    t, u = axis_index(bounds.ndim, -1, T), axis_index(bounds.ndim, -1, W)
    frames = valid & (frame_begin <= t) & (t < frame_end)
    return frames, valid & (label_begin <= u) & (u <= label_end)
