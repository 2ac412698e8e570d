"""The lattices of a batch in boxes of cells, some boxes at a time.

A box is a rectangle of one utterance's cells: the rows of the encoder and of the predictor that
meet in it are few, and are joined by a broadcast. A tile is a number of boxes, of any utterances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .numerics import axis_index
from .types import Topology


class Tiles(NamedTuple):
    """The boxes to visit, in tiles."""

    boxes: jax.Array  # (slots,) numbers of boxes, that of boxes itself in slots that are not used
    number: jax.Array  # () of tiles


class Tile(NamedTuple):
    """The boxes of a tile and their cells. Those outside of the lattice are moved to its edge."""

    boxes: jax.Array  # (boxes,) number of each
    used: jax.Array  # (boxes,) bool
    utterance: jax.Array  # (boxes,)
    first_frame: jax.Array  # (boxes,)
    first_position: jax.Array
    frames: jax.Array  # (boxes, frames)
    positions: jax.Array  # (boxes, positions)


@dataclass(frozen=True)
class BoxGrid:
    """How lattices of B utterances are divided into boxes. They are numbered by (b, t, u)."""

    batch: int
    T: int
    W: int  # U + 1
    box_frames: int
    box_positions: int
    boxes_per_tile: int

    @property
    def rows(self) -> int:
        """Boxes of an utterance along the frames."""
        return -(-self.T // self.box_frames)

    @property
    def columns(self) -> int:
        """Boxes of an utterance along the label positions."""
        return -(-self.W // self.box_positions)

    @property
    def num_boxes(self) -> int:
        return self.batch * self.rows * self.columns

    def with_paths(self, bounds: jax.Array, topology: Topology) -> jax.Array:
        """Which boxes have cells that an alignment may use, `(B, rows, columns)` bool."""
        frame_begin, frame_end, label_begin, label_end = (
            bounds[..., i, None, None] for i in range(4)
        )
        t0 = self.box_frames * axis_index(3, 1, self.rows)
        u0 = self.box_positions * axis_index(3, 2, self.columns)
        t1 = jnp.minimum(t0 + self.box_frames, frame_end) - 1  # the last ones
        u1 = jnp.minimum(u0 + self.box_positions - 1, label_end)
        t0, u0 = jnp.maximum(t0, frame_begin), jnp.maximum(u0, label_begin)
        met = (t0 <= t1) & (u0 <= u1)
        if topology == "regular":
            return met
        # A frame has one label at most; the cell above a constrained label arc is used with it.
        above = 1 if topology == "constrained" else 0
        reached = u0 - label_begin <= t1 - frame_begin + above
        return met & reached & (label_end - u1 <= frame_end - t0)

    def with_any(self, plane: jax.Array) -> jax.Array:
        """Which boxes have a cell where a `(B, T, W)` bool plane is true."""
        padding = ((0, 0), (0, self.rows * self.box_frames - self.T))
        columns = (0, self.columns * self.box_positions - self.W)
        return jnp.any(self._boxed(jnp.pad(plane, (*padding, columns))), axis=(2, 4))

    def _boxed(self, plane: jax.Array) -> jax.Array:
        """Whole boxes `(B, rows, box_frames, columns, box_positions)` of a padded plane."""
        return plane.reshape(
            self.batch, self.rows, self.box_frames, self.columns, self.box_positions
        )

    def tiles(self, visited: jax.Array, num_groups: int = 1) -> Tiles:
        """Tiles of the boxes that are true in `(B, rows, columns)`.

        No tile has boxes of two groups; these are equal parts of the batch.
        """
        flat = visited.reshape(num_groups, self.num_boxes // num_groups)
        per_tile = self.boxes_per_tile
        counts = -(-jnp.sum(flat, axis=1, dtype=jnp.int32) // per_tile)
        ends = jnp.cumsum(counts)
        slots = per_tile * (-(-self.num_boxes // per_tile) + num_groups)
        position = jnp.cumsum(flat, axis=1, dtype=jnp.int32) - 1
        position = jnp.where(flat, (ends - counts)[:, None] * per_tile + position, slots)
        number = jnp.arange(self.num_boxes, dtype=jnp.int32)
        boxes = jnp.full(slots, self.num_boxes, jnp.int32)
        boxes = boxes.at[position.ravel()].set(number, mode="drop", unique_indices=True)
        return Tiles(boxes, ends[-1])

    def tile(self, tiles: Tiles, index: jax.Array) -> Tile:
        boxes = lax.dynamic_slice_in_dim(
            tiles.boxes, index * self.boxes_per_tile, self.boxes_per_tile
        )
        number = jnp.minimum(boxes, self.num_boxes - 1)
        row, column = number // self.columns, number % self.columns
        t = row % self.rows * self.box_frames
        u = column * self.box_positions
        return Tile(
            boxes,
            boxes < self.num_boxes,
            row // self.rows,
            t,
            u,
            jnp.minimum(t[:, None] + axis_index(2, 1, self.box_frames), self.T - 1),
            jnp.minimum(u[:, None] + axis_index(2, 1, self.box_positions), self.W - 1),
        )

    def bounds(self, tile: Tile, bounds: jax.Array) -> jax.Array:
        """The utterances' bounds as those of the boxes, `(boxes, 4)`. Boxes may end in cells that
        have a label arc."""
        of_boxes = bounds[tile.utterance]
        first = (tile.first_frame,) * 2 + (tile.first_position,) * 2
        size = (self.box_frames,) * 2 + (self.box_positions,) * 2
        inside = jnp.stack(
            [jnp.clip(of_boxes[:, i] - first[i], 0, size[i]) for i in range(4)], axis=1
        )
        return jnp.where(tile.used[:, None], inside, 0)

    def zeros(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """A plane to store tiles in, `(B * rows, box_frames, columns, box_positions)`."""
        shape = (self.batch * self.rows, self.box_frames, self.columns, self.box_positions)
        return jnp.zeros(shape, dtype)

    def store(self, planes: jax.Array, tile: Tile, values: jax.Array) -> jax.Array:
        """`zeros`, or what became of them, with the `(boxes, box_frames, box_positions)` values."""
        row, column = tile.boxes // self.columns, tile.boxes % self.columns
        return planes.at[row, :, column, :].set(values, mode="drop", unique_indices=True)

    def plane(self, stored: jax.Array) -> jax.Array:
        """`(B, T, W)`, of what `store` has made."""
        rows, columns = self.rows * self.box_frames, self.columns * self.box_positions
        return stored.reshape(self.batch, rows, columns)[:, : self.T, : self.W]

    def add_to_frames(self, sums: jax.Array, tile: Tile, values: jax.Array) -> jax.Array:
        """`(B, T, D)` sums plus a tile's `(boxes, box_frames, D)` values, zero outside."""
        block = tile.boxes // self.columns
        first = tile.utterance, tile.first_frame
        return _with_blocks(sums, block, *first, values, most_of_a_block=self.columns)

    def add_to_positions(self, sums: jax.Array, tile: Tile, values: jax.Array) -> jax.Array:
        """`(B, W, D)` sums plus a tile's `(boxes, box_positions, D)` values, zero outside."""
        row, column = tile.boxes // self.columns, tile.boxes % self.columns
        block = row // self.rows * self.columns + column
        operands = block, tile.utterance, tile.first_position, values
        order = jnp.argsort(block)
        operands = (x[order] for x in operands)
        return _with_blocks(sums, *operands, most_of_a_block=self.rows)

    def load(self, plane: jax.Array, tile: Tile) -> jax.Array:
        """A tile's part of a `(B, T, W)` plane, or of planes `(B, N, T, W)`, zero outside."""
        b = tile.utterance[:, None, None]
        t, u = tile.frames[:, :, None], tile.positions[:, None, :]
        inside = self._inside(tile)
        if plane.ndim == 3:
            return jnp.where(inside, plane[b, t, u], 0)
        n = axis_index(4, 1, plane.shape[1])
        return jnp.where(inside[:, None], plane[b[:, None], n, t[:, None], u[:, None]], 0)

    def _inside(self, tile: Tile) -> jax.Array:
        """Which cells of a tile are not moved to the edge."""
        t = tile.first_frame[:, None] + axis_index(2, 1, self.box_frames) < self.T
        u = tile.first_position[:, None] + axis_index(2, 1, self.box_positions) < self.W
        return tile.used[:, None, None] & t[:, :, None] & u[:, None, :]


def _with_blocks(
    sums: jax.Array,
    block: jax.Array,
    utterance: jax.Array,
    first: jax.Array,
    values: jax.Array,
    most_of_a_block: int,
) -> jax.Array:
    """`(B, length, D)` sums plus `(boxes, size, D)` values for an utterance's rows from `first` on.

    Boxes of the same block have the same rows, and are next to each other. They are summed before,
    so that a row is written once: a scatter that meets it twice adds in any order on a GPU, and the
    last bits would change from run to run. Boxes that are not used have a block beyond all others.
    """
    batch, length, features = sums.shape
    size = values.shape[1]
    distance = 1
    while distance < min(len(values), most_of_a_block):
        same = block[distance:] == block[:-distance]
        before = jnp.where(same[:, None, None], values[:-distance], 0)
        values = jnp.concatenate([values[:distance], values[distance:] + before])
        distance *= 2
    complete = jnp.append(block[1:] != block[:-1], True) & (block < -(-length // size) * batch)
    row, overhang = utterance * length + first, jnp.maximum(first + size - length, 0)
    flat = _with_windows(sums.reshape(-1, features), complete & (overhang == 0), row, values)
    if length % size:
        # The last rows of utterances by themselves: with those before them, to be a whole block.
        index = axis_index(2, 1, size) - overhang[:, None]
        moved = jnp.take_along_axis(values, jnp.maximum(index, 0)[..., None], axis=1)
        moved = jnp.where(index[..., None] >= 0, moved, 0)
        flat = _with_windows(flat, complete & (overhang > 0), row - overhang, moved)
    return flat.reshape(sums.shape)


def _with_windows(
    sums: jax.Array, chosen: jax.Array, first: jax.Array, values: jax.Array
) -> jax.Array:
    """`sums[first[i] :] + values[i]` for the chosen i, whose windows do not overlap."""
    return lax.scatter_add(
        sums,
        jnp.where(chosen, first, sums.shape[0])[:, None],
        values,
        lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
        ),
        unique_indices=True,
        mode="drop",
    )
