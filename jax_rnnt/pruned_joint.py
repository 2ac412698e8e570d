"""The pruned loss straight from a joint network, a tile of frames at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import validation, validation_pruning
from ._native.jax_versions import (
    align_varying_axes,
    replicated,
    varying_zeros,
    with_batch_sharding_of,
    with_whole_rows,
)
from .bands import band_arcs_bwd, band_arcs_fwd, band_operands
from .bounds import Sizes, Utterances
from .joint_function import (
    JointCallable,
    JointFunction,
    default_rows_per_tile,
    for_sums,
)
from .label_windows import only_allowed
from .lattice import banded_lattice, banded_lattice_score, gradient_weights
from .numerics import accumulator_dtype, axis_index
from .per_shard import per_shard, tile_begins
from .pruned_loss import checked_band
from .pruning import band_rows
from .random_keys import keys_of_cells
from .reduction import negative, reduce_losses
from .traced_joint import TracedJoint
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

_SYMBOLIC_BATCH = 16
"""Utterances of a dimension of any size (shape-polymorphic export), to choose a tile for."""


def rnnt_loss_pruned_joint(
    joint_fn: JointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    ranges: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    rng: jax.Array | None = None,
    frames_per_tile: int | None = None,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """The pruned loss from a joint network, without storing its logits or its activations.

    Equal to `rnnt_loss_pruned(joint_fn(params, *do_rnnt_pruning(encoder_out, predictor_out,
    ranges)), labels, ranges, ...)`, in value and gradients. The logits of some frames at a time are
    computed, and once more in the backward pass. Memory beside inputs and gradients: a few
    `(*batch, T, S)` planes, and what `joint_fn` needs for these frames.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn: `(params, encoder_rows, predictor_rows) -> logits` maps rows `(*batch, n, S, D1)`
        and `(*batch, n, S, D2)`, for some n, to logits `(*batch, n, S, V)`, each row for itself.
        All that the loss is to be differentiated by has to come in as an argument: to close over a
        traced value is an error. In the backward pass, rows of cells that do not count are zeros;
        its derivative has to be finite there. With `rng`, it gets a fourth argument,
        `(*batch, n, S)` random keys, one for each row.
      params: any pytree of arrays. Gradients of floating-point leaves are summed in float32 (or
        float64) and returned in the leaf's dtype; other leaves have none.
      encoder_out: `(*batch, T, D1)` floating point.
      predictor_out: `(*batch, U+1, D2)` floating point.
      labels, ranges: as in `rnnt_loss_pruned`.
      rng: random key, for dropout, as in `rnnt_loss_joint`: a cell has the same key in both losses.
      frames_per_tile: how many frames of the whole batch to compute at a time. Static; None chooses
        it so that the widest of their arrays has 2 MB for each core of a CPU, or 48 MB on a GPU (in
        a symbolic batch, with 16 utterances). The last bits of gradients depend on it.
      logit_lengths, label_lengths, blank_id, topology, normalization, fastemit_lambda,
        delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss_pruned`.

    Returns:
      As `rnnt_loss_pruned`; also the gradients by `params`, `encoder_out` and `predictor_out` are
      not affected by padding or by utterances without a finite loss, whatever these hold.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_pruned`; also for wrong results of
        `joint_fn`.
    """
    encoder, predictor, ranges = validation_pruning.pruned_operands(
        encoder_out, predictor_out, ranges, ("encoder_out", "predictor_out")
    )
    joint = TracedJoint.of(
        joint_fn,
        params,
        encoder,
        predictor,
        rng,
        rows=ranges.shape,
        letters="(*batch, T, S, V)",
    )
    logits = joint.logits
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    ranges, utterances, arcs_options, lattice_options, reduction = checked_band(
        logits.shape,
        utterances,
        ranges,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, False, delay_penalty, fastemit_lambda, implementation),
        reduction,
        check,
    )
    sizes, _ = validation_pruning.band_sizes(logits.shape, utterances.labels, ranges)
    validation.known_size("encoder_out", "T", sizes.T)
    validation_pruning.check_positions("predictor_out", predictor.shape, sizes.U)
    if frames_per_tile is None:
        rows_per_tile = default_rows_per_tile(logits, encoder, predictor)
        frames_per_tile = _frames_per_tile(logits.shape, rows_per_tile)
    else:
        given = validation.whole_number("frames_per_tile", frames_per_tile, minimum=1)
        frames_per_tile = min(given, sizes.T)
    options = _Options(
        joint.function,
        frames_per_tile,
        sizes,
        accumulator_dtype(logits.dtype),
        joint.key_impl,
        arcs_options,
        lattice_options,
    )
    encoder, predictor = with_whole_rows(len(sizes.batch), encoder, predictor)
    keys = jax.tree.map(partial(with_batch_sharding_of, encoder, len(sizes.batch)), joint.keys)
    band = _Band(*band_operands(encoder, sizes, ranges, utterances, arcs_options.blank_id), keys)
    variables, constants = jax.tree.map(replicated, (joint.variables, joint.constants))
    operands = align_varying_axes(variables, constants, encoder, predictor, band)
    variables, constants, *others = operands
    loss: Any = _loss(options, variables, [*constants, *joint.closed_over], *others)
    return reduce_losses(loss, reduction, utterances.where)


class _Band(NamedTuple):
    """See `band_operands`; random keys of the utterances, `(*batch, words)`."""

    labels: jax.Array
    frame_bounds: jax.Array
    starts: jax.Array
    bounds: jax.Array
    mask: jax.Array | None
    keys: jax.Array | None

    def ranges(self) -> jax.Array:
        """`(*batch, T, S)`, all in range."""
        return self.starts[..., None] + axis_index(self.labels.ndim, -1, self.labels.shape[-1])


@dataclass(frozen=True)
class _Options:
    """What is static about a loss."""

    joint: JointFunction
    frames_per_tile: int
    sizes: Sizes
    dtype: Any  # of arcs
    key_impl: str | None
    arcs: ArcsOptions
    lattice: LatticeOptions

    def tile_begins(self) -> jax.Array:
        """First frame of each tile. The last one is moved to end at T; the slices see to that."""
        return tile_begins(self.sizes.T, max(self.frames_per_tile, 1))

    def tile(self, x: jax.Array, begin: jax.Array) -> jax.Array:
        """A tile's frames of a `(*batch, T, ...)` array."""
        return lax.dynamic_slice_in_dim(x, begin, self.frames_per_tile, len(self.sizes.batch))

    def keys(self, band: _Band, ranges: jax.Array, begin: jax.Array) -> list[jax.Array]:
        """Those of a tile's cells, if there are any."""
        if band.keys is None:
            return []
        first = jnp.minimum(begin, self.sizes.T - self.frames_per_tile)
        frames = jnp.zeros_like(ranges[..., 0]) + first
        frames += axis_index(frames.ndim, -1, self.frames_per_tile)
        return [keys_of_cells(band.keys, self.key_impl, frames, ranges)]

    def with_tile(self, x: jax.Array, tile: jax.Array, begin: jax.Array) -> jax.Array:
        """`x` with a tile's frames replaced."""
        return lax.dynamic_update_slice_in_dim(x, tile, begin, len(self.sizes.batch))


def _frames_per_tile(shape: tuple[int, ...], rows_per_tile: int) -> int:
    """Of about equal tiles with about so many rows of logits of this shape. Unless tiles are short,
    rows are a multiple of eight: of other 16-bit matrices XLA makes copies on a GPU.
    """
    *batch, T, S, _ = shape
    utterances = math.prod(n if isinstance(n, int) else _SYMBOLIC_BATCH for n in batch)
    tiles = -(-T // max(rows_per_tile // max(utterances * S, 1), 1))
    frames = -(-T // max(tiles, 1))
    step = 8 // math.gcd(utterances * S, 8)
    return min(-(-frames // step) * step, T) if frames >= 4 * step else frames


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    variables: list[jax.Array],
    constants: list[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    band: _Band,
) -> jax.Array:
    blank, label, _ = _arcs(options, variables, constants, encoder, predictor, band)
    score = banded_lattice_score(
        options.lattice, options.sizes.U, blank, label, band.starts, band.bounds
    )
    return negative(score)


def _loss_fwd(options, variables, constants, encoder, predictor, band):
    operands = variables, constants, encoder, predictor, band
    blank, label, denominators = _arcs(options, *operands)
    log_likelihood, posteriors = banded_lattice(
        options.lattice, options.sizes.U, blank, label, band.starts, band.bounds
    )
    return negative(log_likelihood), (operands, denominators, posteriors)


def _arcs(
    options: _Options,
    variables: list[jax.Array],
    constants: list[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    band: _Band,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blank arcs, label arcs and denominators, each `(*batch, T, S)`."""

    def one_tile(planes: tuple[jax.Array, ...], begin: jax.Array) -> Any:
        tile_ranges = options.tile(ranges, begin)
        rows = band_rows(
            options.arcs.implementation, options.tile(encoder, begin), predictor, tile_ranges
        )
        keys = options.keys(band, tile_ranges, begin)
        (logits,) = options.joint(variables, constants, *rows, *keys)
        labels, frame_bounds = (options.tile(x, begin) for x in (band.labels, band.frame_bounds))
        arcs = band_arcs_fwd(options.arcs, logits, labels, frame_bounds)
        pairs = zip(planes, arcs, strict=True)
        return tuple(options.with_tile(plane, x, begin) for plane, x in pairs), None

    ranges = band.ranges()
    planes = (varying_zeros(band.labels, options.dtype),) * 3
    (blank, label, denominators), _ = lax.scan(one_tile, planes, options.tile_begins())
    return blank, only_allowed(label, band.mask), denominators


# By the encoder's and the predictor's output, and by each variable.
_Gradients = tuple[tuple[jax.Array, jax.Array], list[jax.Array]]


def _loss_bwd(options, residuals, cotangents):
    (variables, constants, encoder, predictor, band), denominators, posteriors = residuals
    weights = gradient_weights(options.lattice, posteriors)
    operands, structure = jax.tree.flatten(
        (encoder, predictor, band, denominators, weights, cotangents)
    )
    num_operands, num_variables = len(operands), len(variables)
    shared = (*variables, *constants)
    operands = align_varying_axes(*operands, *shared)[:num_operands]

    def one_group(utterances: Sequence[jax.Array], shared: Sequence[jax.Array]) -> _Gradients:
        parts = shared[:num_variables], shared[num_variables:]
        return _gradients(options, *parts, *structure.unflatten(utterances))

    def function(*args: jax.Array, num_groups: int = 1) -> tuple[jax.Array, ...]:
        utterances, shared = args[:num_operands], args[num_operands:]
        if num_groups == 1:
            rows, sums = one_group(utterances, shared)
            return *rows, *(x[None] for x in sums)
        shapes = ((num_groups, x.shape[0] // num_groups, *x.shape[1:]) for x in utterances)
        groups = [x.reshape(shape) for x, shape in zip(utterances, shapes, strict=True)]
        rows, sums = jax.vmap(one_group, in_axes=(0, None))(groups, shared)
        return *(x.reshape(-1, *x.shape[2:]) for x in rows), *sums

    num_batch_dims = len(options.sizes.batch)
    d_encoder, d_predictor, *d_variables = per_shard(
        function, num_batch_dims, *operands, shared=shared, num_sums=num_variables
    )
    return d_variables, None, d_encoder, d_predictor, None


def _gradients(
    options: _Options,
    variables: Sequence[jax.Array],
    constants: Sequence[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    band: _Band,
    denominators: jax.Array,
    weights: Posteriors,
    cotangents: jax.Array,
) -> _Gradients:
    """For operands with one batch dimension."""
    options = replace(options, sizes=replace(options.sizes, batch=encoder.shape[:1]))
    ranges = band.ranges()
    wide_predictor = for_sums(predictor)
    gradient_dtype = options.joint.gradient_dtype(encoder.dtype, predictor.dtype)

    def logits_of(
        ranges: jax.Array,
        keys: Sequence[jax.Array],
        active: jax.Array,
        variables: Sequence[jax.Array],
        encoder: jax.Array,
        wide_predictor: jax.Array,
    ) -> jax.Array:
        am, lm = band_rows(options.arcs.implementation, encoder, wide_predictor, ranges)
        am, lm = (jnp.where(active[..., None], x, 0) for x in (am, lm))
        (logits,) = options.joint(variables, constants, am, lm.astype(predictor.dtype), *keys)
        return logits

    def one_tile(gradients: Any, begin: jax.Array) -> Any:
        d_variables, d_encoder, d_predictor = gradients
        # Frames of the last tile that belong to the one before it have weight zero here. Their
        # gradient is overwritten by that tile, whose turn is later.
        own = index >= begin - (options.sizes.T - options.frames_per_tile)
        tile_weights = Posteriors(*(jnp.where(own, options.tile(x, begin), 0) for x in weights))
        active = (tile_weights.blank != 0) | (tile_weights.label != 0)
        tile_ranges = options.tile(ranges, begin)
        keys = options.keys(band, tile_ranges, begin)
        logits, pullback = jax.vjp(
            partial(logits_of, tile_ranges, keys, active),
            *(variables, options.tile(encoder, begin), wide_predictor),
        )
        labels, tile_denominators = (options.tile(x, begin) for x in (band.labels, denominators))
        d_logits = band_arcs_bwd(
            options.arcs, logits, labels, tile_denominators, tile_weights, cotangents,
            gradient_dtype=gradient_dtype,
        )  # fmt: skip
        more_variables, encoder_tile, more_predictor = pullback(d_logits.astype(logits.dtype))
        d_variables = jax.tree.map(jnp.add, d_variables, more_variables)
        d_encoder = options.with_tile(d_encoder, encoder_tile, begin)
        return (d_variables, d_encoder, d_predictor + more_predictor), None

    index = axis_index(ranges.ndim, -2, options.frames_per_tile)
    zeros = jax.tree.map(varying_zeros, (variables, encoder, wide_predictor))
    (d_variables, d_encoder, d_predictor), _ = lax.scan(
        one_tile, zeros, options.tile_begins(), reverse=True
    )
    return (d_encoder, d_predictor.astype(predictor.dtype)), d_variables


_loss.defvjp(_loss_fwd, _loss_bwd)
