"""The loss of any transducer from its joint network, a tile of cells at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .bounds import Utterances
from .joint_operands import JointOperands
from .joint_tiles import JointOptions, TiledOperands, joint_arcs, joint_gradients
from .reduction import negative, reduce_losses
from .transducers import Transducer
from .types import Reduction


def loss_of_joint(
    transducer: Transducer,
    joint: JointOperands,
    utterances: Utterances,
    rows_per_tile: int | None,
    reduction: Reduction,
) -> jax.Array:
    """The loss of arguments that, but for `rows_per_tile`, have been checked."""
    loss: Any = _loss(*joint.tiled(transducer, utterances, rows_per_tile))
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(options: JointOptions, operands: TiledOperands, mask: jax.Array | None) -> jax.Array:
    arcs = joint_arcs(options, operands)
    return negative(options.transducer.log_likelihood(arcs, operands.ints.bounds, mask))


def _loss_fwd(options, operands, mask):
    arcs = joint_arcs(options, operands)
    log_likelihood, weights = options.transducer.posteriors(arcs, operands.ints.bounds, mask)
    return negative(log_likelihood), (operands, arcs.denominators, arcs.choices, weights)


def _loss_bwd(options, residuals, cotangents):
    negligible = float(jnp.finfo(options.arcs_dtype).eps) ** 2
    operands, denominators, choices, weights = residuals
    gradients = joint_gradients(
        options, operands, denominators, choices, weights, cotangents, negligible
    )
    return gradients, None


_loss.defvjp(_loss_fwd, _loss_bwd)
