"""The arcs of a joint network and the gradients by its operands, a tile of cells at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._native.jax_versions import align_varying_axes, varying_zeros
from .boxes import BoxGrid, Tile
from .joint_function import JointFunction, for_sums
from .numerics import axis_index
from .per_shard import per_shard
from .random_keys import keys_of_cells
from .transducers import Arcs, Transducer, Weights

_BOX = 16, 8
"""Frames and label positions of a box: few of its cells are outside of an utterance."""


class IntegerOperands(NamedTuple):
    """Integers of each utterance; none has a gradient."""

    labels: jax.Array  # (*batch, U)
    bounds: jax.Array  # (*batch, 4)
    keys: jax.Array | None  # (*batch, words), of random keys


@dataclass(frozen=True)
class JointOptions:
    """What is static about a loss."""

    joint: JointFunction
    rows_per_tile: int
    encoder_dtype: Any
    predictor_dtype: Any
    arcs_dtype: Any
    key_impl: str | None
    transducer: Transducer

    def grid(self, encoder: jax.Array, predictor: jax.Array) -> BoxGrid:
        """For operands with one batch dimension."""
        B, T, _ = encoder.shape
        W = predictor.shape[1]
        box_frames = min(_BOX[0], max(T, 1), self.rows_per_tile)
        box_positions = min(_BOX[1], W, max(self.rows_per_tile // box_frames, 1))
        boxes = max(self.rows_per_tile // (box_frames * box_positions), 1)
        grid = BoxGrid(B, T, W, box_frames, box_positions, boxes)
        if isinstance(B, int):  # not when exported for batches of any size
            boxes = max(min(boxes, grid.num_boxes), 1)
        return replace(grid, boxes_per_tile=boxes)


class TiledOperands(NamedTuple):
    """A joint network's arrays, and what it joins."""

    variables: list[jax.Array]
    constants: list[jax.Array]
    encoder: jax.Array  # (*batch, T, D1)
    predictor: jax.Array  # (*batch, U+1, D2)
    ints: IntegerOperands


def joint_arcs(options: JointOptions, tiled: TiledOperands) -> Arcs:
    """Those of the logits for all pairs of a frame and a label position.

    Any where no alignment passes.
    """
    variables, constants, *of_utterances = tiled
    operands, structure = jax.tree.flatten(of_utterances)
    num_operands, num_variables = len(operands), len(variables)

    def function(*args: jax.Array) -> tuple[jax.Array, ...]:
        utterances, shared = args[:num_operands], args[num_operands:]
        parts = _Parts(options, shared[:num_variables], shared[num_variables:])
        return _arcs_of_tiles(parts, *structure.unflatten(utterances))

    shared = (*variables, *constants)
    return Arcs(*per_shard(function, tiled.encoder.ndim - 2, *operands, shared=shared))


def joint_gradients(
    options: JointOptions,
    tiled: TiledOperands,
    denominators: jax.Array,
    choices: jax.Array | None,
    weights: Weights,
    cotangents: jax.Array,
    negligible: float,
) -> TiledOperands:
    """Gradients of `cotangents * loss` by the operands; None of integers and constants.

    Boxes of cells with no weight above what is `negligible` are left out.
    """
    variables, constants, *of_utterances = tiled
    operands, structure = jax.tree.flatten(
        (*of_utterances, denominators, choices, weights, cotangents)
    )
    num_operands, num_variables = len(operands), len(variables)

    def function(*args: jax.Array, num_groups: int = 1) -> tuple[jax.Array, ...]:
        utterances, shared = args[:num_operands], args[num_operands:]
        parts = _Parts(options, shared[:num_variables], shared[num_variables:])
        return _gradients_of_tiles(parts, num_groups, negligible, *structure.unflatten(utterances))

    shared = (*variables, *constants)
    operands = align_varying_axes(*operands, *shared)[:num_operands]
    d_encoder, d_predictor, *d_variables = per_shard(
        function, tiled.encoder.ndim - 2, *operands, shared=shared, num_sums=num_variables
    )
    no_gradients: Any = None
    return TiledOperands(d_variables, no_gradients, d_encoder, d_predictor, no_gradients)


class _Parts(NamedTuple):
    """The network, taken apart."""

    options: JointOptions
    variables: Sequence[jax.Array]
    constants: Sequence[jax.Array]

    def scores(
        self,
        tile: Tile,
        keys: jax.Array | None,
        variables: Sequence[jax.Array],
        encoder_rows: jax.Array,
        predictor_rows: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """Logits `(boxes, box_frames, box_positions, V)`, and what else the network returns.

        The rows of frames and of label positions may be in the dtype in which gradients are summed.
        """
        cells = (*encoder_rows.shape[:2], predictor_rows.shape[1])
        rows = [
            jnp.broadcast_to(x, (*cells, x.shape[-1])).reshape(-1, x.shape[-1]).astype(dtype)
            for x, dtype in (
                (encoder_rows[:, :, None], self.options.encoder_dtype),
                (predictor_rows[:, None], self.options.predictor_dtype),
            )
        ]
        if keys is not None:
            rows.append(self._keys(tile, keys))
        scores = self.options.joint(variables, self.constants, *rows)
        return tuple(x.reshape(*cells, -1) for x in scores)

    def _keys(self, tile: Tile, keys: jax.Array) -> jax.Array:
        """One for each cell."""
        positions = jnp.broadcast_to(
            tile.positions[:, None], (*tile.frames.shape, tile.positions.shape[1])
        )
        key_impl, of_utterances = self.options.key_impl, keys[tile.utterance]
        return keys_of_cells(of_utterances, key_impl, tile.frames, positions).reshape(-1)


def _labels_of(labels: jax.Array, tile: Tile) -> jax.Array:
    """`(boxes, box_positions)`, any where there is none."""
    num_labels = labels.shape[-1]
    if num_labels == 0:
        return jnp.zeros_like(tile.positions)
    return labels[tile.utterance[:, None], jnp.minimum(tile.positions, num_labels - 1)]


def _arcs_of_tiles(
    parts: _Parts, encoder: jax.Array, predictor: jax.Array, ints: IntegerOperands
) -> tuple[jax.Array, ...]:
    options = parts.options
    transducer = options.transducer
    grid = options.grid(encoder, predictor)
    if grid.num_boxes == 0:
        plane = jnp.zeros((*encoder.shape[:2], predictor.shape[1]), options.arcs_dtype)
        return _as_results(Arcs.of_planes(*[plane] * transducer.num_planes))
    tiles = grid.tiles(grid.with_paths(ints.bounds, transducer.lattice.topology))

    def one_tile(index: jax.Array, planes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tile = grid.tile(tiles, index)
        bounds = grid.bounds(tile, ints.bounds)
        t, u = (axis_index(2, 1, size) for size in (grid.box_frames, grid.box_positions))
        in_frame = (bounds[:, 0, None] <= t) & (t < bounds[:, 1, None])
        in_position = (bounds[:, 2, None] <= u) & (u <= bounds[:, 3, None])
        scores = parts.scores(
            tile,
            ints.keys,
            parts.variables,
            _kept(encoder[tile.utterance[:, None], tile.frames], in_frame),
            _kept(predictor[tile.utterance[:, None], tile.positions], in_position),
        )
        arcs = transducer.log_probs(scores, _labels_of(ints.labels, tile), bounds)
        return tuple(grid.store(x, tile, y) for x, y in zip(planes, arcs.planes(), strict=True))

    zeros = align_varying_axes(encoder, grid.zeros(options.arcs_dtype))[1]
    planes = lax.fori_loop(0, tiles.number, one_tile, (zeros,) * transducer.num_planes)
    return _as_results(Arcs.of_planes(*map(grid.plane, planes)))


def _as_results(arcs: Arcs) -> tuple[jax.Array, ...]:
    """The arrays that there are; the last field is None without choices."""
    return tuple(jax.tree.leaves(arcs))


def _gradients_of_tiles(
    parts: _Parts,
    num_groups: int,
    negligible: float,
    encoder: jax.Array,
    predictor: jax.Array,
    ints: IntegerOperands,
    denominators: jax.Array,
    choices: jax.Array | None,
    weights: Weights,
    cotangents: jax.Array,
) -> tuple[jax.Array, ...]:
    options = parts.options
    grid = options.grid(encoder, predictor)
    sums = [jnp.zeros((num_groups, *x.shape), x.dtype) for x in parts.variables]
    sums = [align_varying_axes(encoder, x)[1] for x in sums]
    if grid.num_boxes == 0:
        return jnp.zeros_like(encoder), jnp.zeros_like(predictor), *sums
    rows = [varying_zeros(for_sums(x)) for x in (encoder, predictor)]
    gradient_dtype = options.joint.gradient_dtype(options.encoder_dtype, options.predictor_dtype)
    weighty = ~((abs(weights.blank) <= negligible) & (abs(weights.label) <= negligible))
    visited = grid.with_any(weighty)
    tiles = grid.tiles(visited, num_groups)

    def one_tile(index: jax.Array, gradients: Any) -> Any:
        d_encoder, d_predictor, d_variables = gradients
        tile = grid.tile(tiles, index)
        tile_denominators, tile_choices, tile_weights = jax.tree.map(
            lambda x: grid.load(x, tile), (denominators, choices, weights)
        )
        active = (tile_weights.blank != 0) | (tile_weights.label != 0)

        def scores_of(variables: Any, encoder_rows: jax.Array, predictor_rows: jax.Array) -> Any:
            return parts.scores(
                tile,
                ints.keys,
                variables,
                _kept(encoder_rows, jnp.any(active, axis=2)),
                _kept(predictor_rows, jnp.any(active, axis=1)),
            )

        scores, pullback = jax.vjp(
            scores_of,
            list(parts.variables),
            for_sums(encoder[tile.utterance[:, None], tile.frames]),
            for_sums(predictor[tile.utterance[:, None], tile.positions]),
        )
        gradients_by_scores = options.transducer.gradients(
            scores,
            _labels_of(ints.labels, tile),
            tile_denominators,
            tile_choices,
            tile_weights,
            cotangents[tile.utterance],
            gradient_dtype,
        )
        more_variables, of_frames, of_positions = pullback(
            tuple(x.astype(y.dtype) for x, y in zip(gradients_by_scores, scores, strict=True))
        )
        group = tile.utterance[0] // max(grid.batch // num_groups, 1)
        d_variables = [
            x.at[group].add(more) for x, more in zip(d_variables, more_variables, strict=True)
        ]
        d_encoder = grid.add_to_frames(d_encoder, tile, of_frames)
        return d_encoder, grid.add_to_positions(d_predictor, tile, of_positions), d_variables

    d_encoder, d_predictor, d_variables = lax.fori_loop(0, tiles.number, one_tile, (*rows, sums))
    return d_encoder.astype(encoder.dtype), d_predictor.astype(predictor.dtype), *d_variables


def _kept(rows: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None], rows, 0)
