"""The exact loss straight from a joint network, a tile of cells at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_joint
from ._native.jax_versions import align_varying_axes, with_batch_sharding_of
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Sizes, labels_and_bounds
from .boxes import BoxGrid, Tile
from .joint_function import JointCallable, JointFunction, for_sums, take_apart
from .lattice import gradient_weights, lattice, lattice_score
from .per_shard import per_shard
from .reduction import negative, reduce_losses
from .reference import accumulator_dtype, axis_index
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Posteriors,
    Reduction,
    Topology,
)

_BOX = 16, 8
"""Frames and label positions of a box: few of its cells are outside of an utterance."""

_TILE_BYTES = {"cpu": 4 * 2**20, "gpu": 24 * 2**20}
"""Of the logits of a tile: enough for matrix products to be fast, within the last cache."""


def rnnt_loss_joint(
    joint_fn: JointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    rng: jax.Array | None = None,
    rows_per_tile: int | None = None,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """The exact loss from a joint network, without storing its logits or its activations.

    Equal to `rnnt_loss` of `joint_fn`'s logits for all pairs of a frame and a label position, in
    value and gradients. The logits of some cells at a time are computed, and once more in the
    backward pass, there only of cells that have a gradient. Cells outside of the utterances cost
    nothing, unlike those of padded logits. Memory beside inputs and gradients: a few
    `(*batch, T, U+1)` planes, and what `joint_fn` needs for a tile of cells.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn: `(params, encoder_rows, predictor_rows) -> logits` maps rows `(n, D1)` and
        `(n, D2)`, for some n, to logits `(n, V)`, each row for itself. All that the loss is to be
        differentiated by has to come in as an argument: to close over a traced value is an error.
        Rows without a cell that counts are zeros; the derivative has to be finite there. With
        `rng`, it gets a fourth argument, `(n,)` random keys, one for each row.
      params: any pytree of arrays. Gradients of floating-point leaves are summed in float32 (or
        float64) and returned in the leaf's dtype; other leaves have none.
      encoder_out: `(*batch, T, D1)` floating point.
      predictor_out: `(*batch, U+1, D2)` floating point.
      labels: `(*batch, U)` integers, as in `rnnt_loss`.
      rng: random key, for dropout. A row's key depends on it and on the row's utterance, frame and
        label position alone, not on tiles or padding, and is the same in both passes.
      rows_per_tile: how many cells to compute at a time. Static; None chooses it so that their
        logits are a few MB.
      logit_lengths, label_lengths, blank_id, topology, normalization, final_blank, fastemit_lambda,
        delay_penalty, clamp, logit_begins, label_begins, reduction, where, implementation, check:
        as in `rnnt_loss`. `clamp` bounds the gradient by the logits.

    Returns:
      As `rnnt_loss`. Gradients in reverse mode, once, by `params`, `encoder_out` and
      `predictor_out`; they are not affected by padding or by utterances without a finite loss,
      whatever these hold. Devices that share a sharded batch communicate for the gradient by
      `params` alone.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; also for a wrong result of
        `joint_fn`, and a traced value that it closes over.
    """
    encoder, predictor, sizes = validation_joint.joint_operands(encoder_out, predictor_out)
    params = jax.tree.map(jnp.asarray, params)
    keys, key_impl = validation_joint.row_keys(rng, sizes.batch)
    logits, closed_over = validation_joint.logits_of_rows(joint_fn, params, encoder, predictor, rng)
    joint, variables, constants = take_apart(joint_fn, params, closed_over)
    sizes = Sizes(sizes.batch, sizes.T, sizes.U, logits.shape[-1])
    utterances = validation.utterances_of(
        sizes, labels, logit_lengths, label_lengths, logit_begins, label_begins, where
    )
    assert sizes.V is not None
    arcs_options = validation.arcs_options(blank_id, sizes.V, normalization, clamp, implementation)
    lattice_options = validation.lattice_options(
        topology, final_blank, delay_penalty, fastemit_lambda, implementation
    )
    reduction = validation.reduction_of(reduction)
    rows_per_tile = validation_joint.positive_size("rows_per_tile", rows_per_tile)
    utterances = validation.checked_utterances(sizes, utterances, arcs_options.blank_id, check)

    targets, bounds = labels_and_bounds(encoder, sizes, utterances, arcs_options.blank_id)
    assert targets is not None
    if keys is not None:
        keys = with_batch_sharding_of(encoder, len(sizes.batch), keys)
    options = _Options(
        joint,
        rows_per_tile or _rows_per_tile(logits, encoder.shape[-1], predictor.shape[-1]),
        accumulator_dtype(logits.dtype),
        key_impl,
        arcs_options,
        lattice_options,
    )
    operands, structure = jax.tree.flatten(
        (variables, constants, encoder, predictor, _Rest(targets, bounds, keys))
    )
    loss: Any = _loss(options, *structure.unflatten(align_varying_axes(*operands)))
    return reduce_losses(loss, reduction, utterances.where)


class _Rest(NamedTuple):
    """What a loss is not differentiated by."""

    labels: jax.Array  # (*batch, U)
    bounds: jax.Array  # (*batch, 4)
    keys: jax.Array | None  # (*batch, words), of random keys


@dataclass(frozen=True)
class _Options:
    """What is static about a loss."""

    joint: JointFunction
    rows_per_tile: int
    dtype: Any  # of arcs
    key_impl: str | None
    arcs: ArcsOptions
    lattice: LatticeOptions

    def grid(self, encoder: jax.Array, predictor: jax.Array) -> BoxGrid:
        """For operands with one batch dimension."""
        B, T, _ = encoder.shape
        W = predictor.shape[1]
        box_frames = min(_BOX[0], T, self.rows_per_tile)
        box_positions = min(_BOX[1], W, max(self.rows_per_tile // max(box_frames, 1), 1))
        boxes = max(self.rows_per_tile // max(box_frames * box_positions, 1), 1)
        grid = BoxGrid(B, T, W, box_frames, box_positions, boxes)
        return replace(grid, boxes_per_tile=max(min(boxes, grid.num_boxes), 1))


def _rows_per_tile(logits: Any, *widths: int) -> int:
    """A good size for the platform that programs are compiled for by default."""
    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    row_bytes = max(logits.shape[-1], *widths) * accumulator_dtype(logits.dtype).itemsize
    return max(_TILE_BYTES[platform] // row_bytes, 64)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    variables: list[jax.Array],
    constants: list[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    rest: _Rest,
) -> jax.Array:
    blank, label, _ = _joint_arcs(options, variables, constants, encoder, predictor, rest)
    return negative(lattice_score(options.lattice, blank, label, rest.bounds))


def _loss_fwd(options, variables, constants, encoder, predictor, rest):
    operands = variables, constants, encoder, predictor, rest
    blank, label, denominators = _joint_arcs(options, *operands)
    log_likelihood, posteriors = lattice(options.lattice, blank, label, rest.bounds)
    return negative(log_likelihood), (operands, denominators, posteriors)


def _loss_bwd(options, residuals, cotangents):
    (variables, constants, encoder, predictor, rest), denominators, posteriors = residuals
    weights = gradient_weights(options.lattice, posteriors)
    gradients = _pull_back(
        options, variables, constants, encoder, predictor, rest, denominators, weights, cotangents
    )
    d_encoder, d_predictor, *d_variables = gradients
    return d_variables, None, d_encoder, d_predictor, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _joint_arcs(
    options: _Options,
    variables: list[jax.Array],
    constants: list[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    rest: _Rest,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blank arcs, label arcs and denominators, each `(*batch, T, U+1)`."""
    operands, structure = jax.tree.flatten((encoder, predictor, rest))

    def function(*args: jax.Array) -> tuple[jax.Array, ...]:
        utterances, shared = args[: len(operands)], args[len(operands) :]
        parts = _Parts(options, shared[: len(variables)], shared[len(variables) :])
        return _arcs_of_tiles(parts, *structure.unflatten(utterances))

    shared = (*variables, *constants)
    blank, label, denominators = per_shard(function, encoder.ndim - 2, *operands, shared=shared)
    return blank, label, denominators


def _pull_back(
    options: _Options,
    variables: list[jax.Array],
    constants: list[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    rest: _Rest,
    denominators: jax.Array,
    weights: Posteriors,
    cotangents: jax.Array,
) -> tuple[jax.Array, ...]:
    """Gradients by the encoder's and the predictor's output, then by each variable."""
    operands, structure = jax.tree.flatten(
        (encoder, predictor, rest, denominators, weights, cotangents)
    )

    def function(*args: jax.Array, num_groups: int = 1) -> tuple[jax.Array, ...]:
        utterances, shared = args[: len(operands)], args[len(operands) :]
        parts = _Parts(options, shared[: len(variables)], shared[len(variables) :])
        return _gradients_of_tiles(parts, num_groups, *structure.unflatten(utterances))

    shared, num_sums = (*variables, *constants), len(variables)
    operands = align_varying_axes(*operands, *shared)[: len(operands)]
    return per_shard(function, encoder.ndim - 2, *operands, shared=shared, num_sums=num_sums)


class _Parts(NamedTuple):
    """The network, taken apart."""

    options: _Options
    variables: Sequence[jax.Array]
    constants: Sequence[jax.Array]

    def logits(
        self,
        tile: Tile,
        keys: jax.Array | None,
        variables: Sequence[jax.Array],
        encoder_rows: jax.Array,
        predictor_rows: jax.Array,
    ) -> jax.Array:
        """`(boxes, box_frames, box_positions, V)`, from rows of frames and of label positions."""
        cells = (*encoder_rows.shape[:2], predictor_rows.shape[1])
        rows = (
            jnp.broadcast_to(x, (*cells, x.shape[-1])).reshape(-1, x.shape[-1])
            for x in (encoder_rows[:, :, None], predictor_rows[:, None])
        )
        extra = () if keys is None else (self._keys(tile, keys),)
        logits = self.options.joint(variables, self.constants, *rows, *extra)
        return logits.reshape(*cells, -1)

    def _keys(self, tile: Tile, keys: jax.Array) -> jax.Array:
        """One for each cell, that depends on its utterance's key, its frame and its position."""
        of_utterance = jax.random.wrap_key_data(keys[tile.utterance], impl=self.options.key_impl)
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
        of_frame = fold(of_utterance, tile.frames)
        positions = jnp.broadcast_to(
            tile.positions[:, None], (*tile.frames.shape, tile.positions.shape[1])
        )
        return jax.vmap(fold)(of_frame, positions).reshape(-1)


def _labels_of(labels: jax.Array, tile: Tile) -> jax.Array:
    """`(boxes, box_positions)`, any where there is none."""
    num_labels = labels.shape[-1]
    if num_labels == 0:
        return jnp.zeros_like(tile.positions)
    return labels[tile.utterance[:, None], jnp.minimum(tile.positions, num_labels - 1)]


def _arcs_of_tiles(
    parts: _Parts, encoder: jax.Array, predictor: jax.Array, rest: _Rest
) -> tuple[jax.Array, ...]:
    options = parts.options
    grid = options.grid(encoder, predictor)
    if grid.num_boxes == 0:
        plane = jnp.zeros((*encoder.shape[:2], predictor.shape[1]), options.dtype)
        return plane, plane, plane
    tiles = grid.tiles(grid.with_paths(rest.bounds, options.lattice.topology))

    def one_tile(index: jax.Array, planes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tile = grid.tile(tiles, index)
        bounds = grid.bounds(tile, rest.bounds)
        t, u = (axis_index(2, 1, size) for size in (grid.box_frames, grid.box_positions))
        in_frame = (bounds[:, 0, None] <= t) & (t < bounds[:, 1, None])
        in_position = (bounds[:, 2, None] <= u) & (u <= bounds[:, 3, None])
        logits = parts.logits(
            tile,
            rest.keys,
            parts.variables,
            _kept(encoder[tile.utterance[:, None], tile.frames], in_frame),
            _kept(predictor[tile.utterance[:, None], tile.positions], in_position),
        )
        arcs = arcs_fwd(options.arcs, logits, _labels_of(rest.labels, tile), bounds)
        return tuple(grid.store(x, tile, y) for x, y in zip(planes, arcs, strict=True))

    zeros = align_varying_axes(encoder, grid.zeros(options.dtype))[1]
    planes = lax.fori_loop(0, tiles.count, one_tile, (zeros, zeros, zeros))
    return tuple(map(grid.plane, planes))


def _gradients_of_tiles(
    parts: _Parts,
    num_groups: int,
    encoder: jax.Array,
    predictor: jax.Array,
    rest: _Rest,
    denominators: jax.Array,
    weights: Posteriors,
    cotangents: jax.Array,
) -> tuple[jax.Array, ...]:
    options = parts.options
    grid = options.grid(encoder, predictor)
    wide = [for_sums(jnp.zeros_like(x)) for x in (encoder, predictor)]
    sums = [jnp.zeros((num_groups, *x.shape), x.dtype) for x in parts.variables]
    wide, sums = jax.tree.map(lambda x: align_varying_axes(encoder, x)[1], (wide, sums))
    if grid.num_boxes == 0:
        return (
            *(x.astype(y.dtype) for x, y in zip(wide, (encoder, predictor), strict=True)),
            *sums,
        )
    visited = grid.with_any((weights.blank != 0) | (weights.label != 0))
    tiles = grid.tiles(visited, num_groups)

    def one_tile(index: jax.Array, gradients: Any) -> Any:
        d_encoder, d_predictor, d_variables = gradients
        tile = grid.tile(tiles, index)
        tile_denominators, *tile_weights = (grid.load(x, tile) for x in (denominators, *weights))
        active = (tile_weights[0] != 0) | (tile_weights[1] != 0)

        def logits_of(variables: Any, encoder_rows: jax.Array, predictor_rows: jax.Array) -> Any:
            return parts.logits(
                tile,
                rest.keys,
                variables,
                _kept(encoder_rows, jnp.any(active, axis=2)),
                _kept(predictor_rows, jnp.any(active, axis=1)),
            )

        frames = tile.utterance[:, None], tile.frames
        positions = tile.utterance[:, None], tile.positions
        logits, pullback = jax.vjp(
            logits_of, list(parts.variables), encoder[frames], predictor[positions]
        )
        d_logits = arcs_bwd(
            options.arcs,
            *align_varying_axes(
                logits,
                _labels_of(rest.labels, tile),
                tile_denominators,
                *tile_weights,
                cotangents[tile.utterance],
            ),
        )
        more_variables, of_frames, of_positions = pullback(d_logits)
        group = tile.utterance[0] // max(grid.batch // num_groups, 1)
        d_variables = [
            x.at[group].add(more) for x, more in zip(d_variables, more_variables, strict=True)
        ]
        d_encoder = d_encoder.at[frames].add(of_frames)
        return d_encoder, d_predictor.at[positions].add(of_positions), d_variables

    d_encoder, d_predictor, d_variables = lax.fori_loop(0, tiles.count, one_tile, (*wide, sums))
    return d_encoder.astype(encoder.dtype), d_predictor.astype(predictor.dtype), *d_variables


def _kept(rows: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None], rows, 0)
