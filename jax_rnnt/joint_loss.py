"""The loss of any transducer from its joint network, a tile of cells at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import validation, validation_joint
from ._native.jax_versions import (
    align_varying_axes,
    replicated,
    with_batch_sharding_of,
    with_whole_rows,
)
from .bounds import Sizes, Utterances, labels_and_bounds
from .joint_function import (
    DurationJointCallable,
    JointCallable,
    JointFunction,
    default_rows_per_tile,
    take_apart,
)
from .joint_tiles import IntegerOperands, JointOptions, joint_arcs, joint_gradients
from .label_windows import label_mask
from .linear_joint import with_whole_vectors
from .numerics import accumulator_dtype
from .random_keys import keys_of_utterances
from .reduction import negative, reduce_losses
from .transducers import Transducer
from .types import Array, Reduction

_FEWEST_TILES = 32
"""Where several cores share a tile, a batch is cut into at least so many: the last one is computed
whole even if few boxes fill it, and this bounds the waste."""


class JointOperands(NamedTuple):
    """A joint network, taken apart, and what it joins."""

    function: JointFunction
    variables: list[jax.Array]
    constants: list[jax.Array]
    closed_over: list[jax.Array]
    encoder: jax.Array  # (*batch, T, D1)
    predictor: jax.Array  # (*batch, U+1, D2)
    keys: jax.Array | None  # (*batch, words)
    key_impl: str | None
    logits: jax.ShapeDtypeStruct  # of two rows
    sizes: Sizes

    @staticmethod
    def checked(
        joint_fn: JointCallable | DurationJointCallable,
        params: Any,
        encoder_out: Array,
        predictor_out: Array,
        rng: jax.Array | None,
        num_durations: int | None = None,
    ) -> JointOperands:
        """From a loss's arguments. `num_durations`: of a network that returns their scores, too."""
        encoder, predictor, sizes = validation_joint.joint_operands(encoder_out, predictor_out)
        params = jax.tree.map(jnp.asarray, params)
        keys, key_impl = keys_of_utterances(rng, sizes.batch)
        rows = [jax.ShapeDtypeStruct((2, x.shape[-1]), x.dtype) for x in (encoder, predictor)]
        if rng is not None:
            rows.append(jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl=key_impl))))
        logits, closed_over = validation_joint.traced_logits(
            joint_fn, (2,), "(n, V)", params, *rows, num_durations=num_durations
        )
        joint_fn, params = with_whole_vectors(joint_fn, params, logits)
        parts = take_apart(joint_fn, params, closed_over)
        sizes = Sizes(sizes.batch, sizes.T, sizes.U, logits.shape[-1])
        return JointOperands(*parts, encoder, predictor, keys, key_impl, logits, sizes)

    def rows_per_tile(self) -> int:
        cells = math.prod((*self.sizes.batch, self.sizes.T, self.sizes.U + 1))
        most = cells // _FEWEST_TILES
        return default_rows_per_tile(
            self.logits,
            self.encoder,
            self.predictor,
            most=most if isinstance(most, int) else None,  # symbolic when exported
        )


def loss_of_joint(
    transducer: Transducer,
    joint: JointOperands,
    utterances: Utterances,
    rows_per_tile: int | None,
    reduction: Reduction,
) -> jax.Array:
    """The loss of arguments that, but for `rows_per_tile`, have been checked."""
    sizes = joint.sizes
    if rows_per_tile is None:
        rows_per_tile = joint.rows_per_tile()
    rows_per_tile = validation.whole_number("rows_per_tile", rows_per_tile, minimum=1)
    encoder, predictor = with_whole_rows(len(sizes.batch), joint.encoder, joint.predictor)
    blanks = transducer.arcs.blank_id, transducer.other_blanks
    labels, bounds = labels_and_bounds(encoder, sizes, utterances, *blanks)
    assert labels is not None
    keys = jax.tree.map(partial(with_batch_sharding_of, encoder, len(sizes.batch)), joint.keys)
    options = JointOptions(
        joint.function,
        rows_per_tile,
        encoder.dtype,
        predictor.dtype,
        accumulator_dtype(joint.logits.dtype),
        joint.key_impl,
        transducer,
    )
    ints = IntegerOperands(labels, bounds, keys)
    mask = label_mask(encoder, sizes, utterances)
    variables, constants = jax.tree.map(replicated, (joint.variables, joint.constants))
    operands = variables, constants, encoder, predictor, ints, mask
    variables, constants, *others = align_varying_axes(*operands)
    loss: Any = _loss(options, variables, [*constants, *joint.closed_over], *others)
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: JointOptions,
    variables: list[jax.Array],
    constants: list[jax.Array],
    encoder: jax.Array,
    predictor: jax.Array,
    ints: IntegerOperands,
    mask: jax.Array | None,
) -> jax.Array:
    arcs = joint_arcs(options, variables, constants, encoder, predictor, ints)
    return negative(options.transducer.log_likelihood(arcs, ints.bounds, mask))


def _loss_fwd(options, variables, constants, encoder, predictor, ints, mask):
    operands = variables, constants, encoder, predictor, ints
    arcs = joint_arcs(options, *operands)
    log_likelihood, weights = options.transducer.posteriors(arcs, ints.bounds, mask)
    return negative(log_likelihood), (*operands, arcs.denominators, arcs.durations, weights)


def _loss_bwd(options, residuals, cotangents):
    d_encoder, d_predictor, *d_variables = joint_gradients(
        options, *residuals, cotangents=cotangents
    )
    return d_variables, None, d_encoder, d_predictor, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
