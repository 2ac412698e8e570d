"""Packed rows: the cells of all utterances one after another, without padding in between."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._native.jax_versions import align_varying_axes, replicated
from .bounds import PackedSizes, Utterances, clip_to_int32, labels_and_bounds, stack_alike
from .label_windows import row_label_mask
from .numerics import axis_index


class Layout(NamedTuple):
    """Where each utterance has its rows, `(B,)` int32 each, as far as there are N of them."""

    offsets: jax.Array  # first row, at most N
    ends: jax.Array  # exclusive, at most N
    widths: jax.Array  # rows a frame, U_b + 1, at least 1
    fits: jax.Array  # bool: it has all of its rows


class Rows(NamedTuple):
    """What each row stands for, `(N,)` int32 each; anything for those of no utterance."""

    utterances: jax.Array
    frames: jax.Array
    positions: jax.Array  # after so many labels: U_b in the last row of a frame


def layout_of(logit_lengths: jax.Array, label_lengths: jax.Array, num_rows: int) -> Layout:
    """The rows of utterances of any lengths: those with a negative one have none.

    An utterance without enough rows leaves none for those after it.
    """
    beyond = jnp.int32(num_rows + 1)
    frames = jnp.maximum(logit_lengths, 0)
    widths = jnp.clip(label_lengths, -1, 2**31 - 2) + 1
    counts = jnp.where(frames > num_rows // jnp.maximum(widths, 1), beyond, frames * widths)
    # Sums stop at `beyond` instead of wrapping around.
    ends = lax.associative_scan(lambda x, y: x + jnp.minimum(y, beyond - x), counts)
    fits = (counts == 0) | (ends <= num_rows)
    ends = jnp.minimum(ends, num_rows)
    offsets = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    return Layout(offsets, ends, jnp.maximum(widths, 1), fits)


def rows_of(layout: Layout, num_rows: int) -> Rows:
    """What each of the rows stands for."""
    layout, row = align_varying_axes(layout, axis_index(1, 0, num_rows))
    B = layout.ends.shape[0]
    # A comparison with every end costs less than a search where there are few.
    method = "compare_all" if B <= 64 else "scan"
    utterances = jnp.searchsorted(layout.ends, row, side="right", method=method)
    utterances = jnp.minimum(utterances.astype(jnp.int32), max(B - 1, 0))
    within = row - layout.offsets[utterances]
    widths = layout.widths[utterances]
    return Rows(utterances, lax.div(within, widths), lax.rem(within, widths))


class RowOperands(NamedTuple):
    """The integer operands of the arcs, one utterance of one cell a row."""

    labels: jax.Array  # (N, 1)
    bounds: jax.Array  # (N, 4)
    utterances: jax.Array  # (N,)


class LatticeOperands(NamedTuple):
    """The integer operands of the lattice."""

    offsets: jax.Array  # (B,)
    bounds: jax.Array  # (B, 4)
    mask: jax.Array | None  # (N,) bool, of label arcs in their windows


def packed_operands(
    utterances: Utterances, sizes: PackedSizes, blank_id: int | None
) -> tuple[RowOperands, LatticeOperands]:
    N, U = sizes.num_rows, sizes.U
    assert utterances.logit_lengths is not None and utterances.label_lengths is not None
    utterances = jax.tree.map(lambda x: replicated(jnp.asarray(x)), utterances)
    frames, label_counts = (
        clip_to_int32(x) for x in (utterances.logit_lengths, utterances.label_lengths)
    )
    labels, bounds = labels_and_bounds(frames, sizes, utterances, blank_id)
    # As in `stack_alike`, for what is looked up by rows.
    zero = bounds[:, 0] - bounds[:, 0]
    frames, label_counts = frames + zero, label_counts + zero
    labels = None if labels is None else labels + zero[:, None]
    layout = layout_of(frames, label_counts, N)
    good = layout.fits if utterances.where is None else layout.fits | ~utterances.where
    bounds = jnp.where(good[:, None], bounds, -1)
    rows = rows_of(layout, N)
    utterance = rows.utterances
    inside = jnp.arange(N, dtype=jnp.int32) < layout.ends[utterance]
    used = inside & (bounds[utterance, 1] > 0)
    has_label = used & (rows.positions < bounds[utterance, 3])
    if labels is None or U == 0:
        row_labels = jnp.zeros_like(rows.positions)
    else:
        row_labels = labels[utterance, jnp.clip(rows.positions, 0, U - 1)]
    one, labels_in_row = used.astype(jnp.int32), has_label.astype(jnp.int32)
    row_bounds = stack_alike(0, one, 0, labels_in_row)
    mask = row_label_mask(utterances.label_windows, utterance, rows.frames, rows.positions)
    row_operands = RowOperands(row_labels[:, None], row_bounds, utterance)
    return row_operands, LatticeOperands(layout.offsets, bounds, mask)
