"""The loss of any transducer from its joint network, a tile of cells at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax

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
    default_rows_per_tile,
)
from .joint_tiles import IntegerOperands, JointOptions, joint_arcs, joint_gradients
from .label_windows import label_mask
from .numerics import accumulator_dtype
from .reduction import negative, reduce_losses
from .traced_joint import TracedJoint
from .transducers import Transducer
from .types import Array, Reduction

_FEWEST_TILES = 32
"""Where several cores share a tile, a batch is cut into at least so many: the last one is computed
whole even if few boxes fill it, and this bounds the waste."""


class JointOperands(NamedTuple):
    """A joint network and what it joins."""

    joint: TracedJoint
    encoder: jax.Array  # (*batch, T, D1)
    predictor: jax.Array  # (*batch, U+1, D2)
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
        joint = TracedJoint.of(
            joint_fn,
            params,
            encoder,
            predictor,
            rng,
            rows=(2,),  # a single one would be broadcast
            letters="(n, V)",
            num_durations=num_durations,
        )
        return JointOperands(joint, encoder, predictor, replace(sizes, V=joint.logits.shape[-1]))

    def rows_per_tile(self) -> int:
        """How many to compute at a time, where the caller does not say."""
        cells = math.prod((*self.sizes.batch, self.sizes.T, self.sizes.U + 1))
        most = cells // _FEWEST_TILES
        return default_rows_per_tile(
            self.joint.logits,
            self.encoder,
            self.predictor,
            most=most if isinstance(most, int) else None,  # symbolic when exported
        )


def loss_of_joint(
    transducer: Transducer,
    operands: JointOperands,
    utterances: Utterances,
    rows_per_tile: int | None,
    reduction: Reduction,
) -> jax.Array:
    """The loss of arguments that, but for `rows_per_tile`, have been checked."""
    joint, encoder, predictor, sizes = operands
    if rows_per_tile is None:
        rows_per_tile = operands.rows_per_tile()
    rows_per_tile = validation.whole_number("rows_per_tile", rows_per_tile, minimum=1)
    encoder, predictor = with_whole_rows(len(sizes.batch), encoder, predictor)
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
    variables, constants, *others = align_varying_axes(
        variables, constants, encoder, predictor, ints, mask
    )
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
    return negative(log_likelihood), (*operands, arcs.denominators, arcs.choices, weights)


def _loss_bwd(options, residuals, cotangents):
    d_encoder, d_predictor, *d_variables = joint_gradients(
        options, *residuals, cotangents=cotangents
    )
    return d_variables, None, d_encoder, d_predictor, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
