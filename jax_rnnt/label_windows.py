"""Alignment-restricted training: in which frames each label may be emitted (arXiv 2011.03072)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import validation
from ._native.jax_versions import with_batch_sharding_of
from .bounds import Sizes, Utterances, clip_to_int32
from .numerics import axis_index
from .types import Array

_NO_LIMIT = 2**31 - 2  # frames: the largest end is an int32


def label_windows_from_frames(frames: Array, left: int | None, right: int | None) -> jax.Array:
    """Windows around the frames of an alignment, for the `label_windows` of the losses.

    Each label may come up to `left` frames before its frame in the alignment and up to `right`
    frames after it (the buffers of arXiv 2011.03072).

    Args:
      frames: `(*batch, U)` integers: the frame in which each label is emitted. Negative for a label
        that may be emitted in any frame: padding, or what the alignment does not know.
      left, right: numbers of frames, >= 0, of the rate of `frames`; None is no limit. Static.

    Returns:
      `(*batch, U, 2)` int32: first frame and end, which is exclusive, of each label.

    Raises:
      TypeError, ValueError: an argument has the wrong type, dtype, shape or value.
    """
    array = validation.as_array("frames", frames)
    if array.ndim < 1:
        raise ValueError("frames has shape (); expected (*batch, U), at least 1 dimension.")
    checked = validation.integer_argument("frames", array, tuple(array.shape), "(*batch, U)")
    left, right = (
        _NO_LIMIT if x is None else min(validation.whole_number(name, x, minimum=0), _NO_LIMIT)
        for name, x in (("left", left), ("right", right))
    )
    middle = jnp.asarray(clip_to_int32(checked))
    anywhere = middle < 0
    first = jnp.where(anywhere, 0, jnp.maximum(middle - left, 0))
    end = jnp.minimum(middle, _NO_LIMIT - right) + (right + 1)  # does not wrap around
    return jnp.stack([first, jnp.where(anywhere, _NO_LIMIT + 1, end)], axis=-1)


def label_mask(scores: jax.Array, sizes: Sizes, utterances: Utterances) -> jax.Array | None:
    """Whether each label arc of a lattice is in its label's window.

    Args:
      scores: what the mask is to be sharded as, with batch dimensions `sizes.batch`.

    Returns:
      `(*batch, T, U+1)` bool for `only_allowed`; None if there are no windows.
    """
    windows = _begins_and_ends(scores, sizes, utterances)
    if windows is None:
        return None
    # The last column has no label.
    edge = [(0, 0)] * len(sizes.batch) + [(0, 1)]
    begins, ends = (jnp.pad(x, edge)[..., None, :] for x in windows)
    return _inside(begins, ends, sizes.T)


def band_label_mask(
    scores: jax.Array, sizes: Sizes, utterances: Utterances, position: jax.Array
) -> jax.Array | None:
    """`label_mask` of a band, `(*batch, T, S)`, whose cells are at label positions `position`."""
    windows = _begins_and_ends(scores, sizes, utterances)
    if windows is None:
        return None
    begins, ends = (labels_at(x, position) for x in windows)
    return _inside(begins, ends, sizes.T)


def row_label_mask(
    label_windows: Array | None, utterances: jax.Array, frames: jax.Array, positions: jax.Array
) -> jax.Array | None:
    """`label_mask` of packed rows, `(N,)`, which stand for these utterances, frames, positions."""
    if label_windows is None or label_windows.shape[1] == 0:
        return None
    windows = jnp.asarray(clip_to_int32(label_windows))
    begins, ends = windows[utterances, jnp.clip(positions, 0, windows.shape[1] - 1)].T
    return (begins <= frames) & (frames < ends)


def only_allowed(label: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The log-probabilities of label arcs, -inf for those that the windows leave out."""
    return label if mask is None else jnp.where(mask, label, -jnp.inf)


def labels_at(values: jax.Array, position: jax.Array) -> jax.Array:
    """What `values` `(*batch, U)` has for each label position `(*batch, T, S)`.

    Anything for positions that are no label's.
    """
    U, (*batch, T, S) = values.shape[-1], position.shape
    if U == 0:
        return jnp.zeros_like(position, values.dtype)
    flat = jnp.clip(position, 0, U - 1).reshape(*batch, T * S)
    taken = jnp.take_along_axis(values, flat, axis=-1, mode="promise_in_bounds")
    return taken.reshape(position.shape)


def _begins_and_ends(
    scores: jax.Array, sizes: Sizes, utterances: Utterances
) -> tuple[jax.Array, jax.Array] | None:
    """First frame and end of each label, `(*batch, U)` int32 each."""
    if utterances.label_windows is None:
        return None
    windows = jnp.asarray(clip_to_int32(utterances.label_windows))
    windows = with_batch_sharding_of(scores, len(sizes.batch), windows)
    return windows[..., 0], windows[..., 1]


def _inside(begins: jax.Array, ends: jax.Array, T: int) -> jax.Array:
    """Which frames, along the last axis but one, are in [begins, ends)."""
    t = axis_index(begins.ndim, -2, T)
    return (begins <= t) & (t < ends)
