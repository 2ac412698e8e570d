"""The arcs of a joint network themselves, and the best alignment by them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .arcs_from_logits import nan_where_bad, weights_of
from .bounds import Utterances, arcs_inside
from .joint_operands import JointOperands
from .joint_tiles import JointOptions, TiledOperands, joint_arcs, joint_gradients
from .transducers import Transducer, Weights


def alignment_of_joint(
    transducer: Transducer,
    joint: JointOperands,
    utterances: Utterances,
    rows_per_tile: int | None,
) -> Any:
    """What `transducer.best_path` returns, of arguments that, but for `rows_per_tile`, have been
    checked."""
    options, operands, mask = joint.tiled(transducer, utterances, rows_per_tile)
    operands = lax.stop_gradient(operands)
    return transducer.best_path(joint_arcs(options, operands), operands.ints.bounds, mask)


def arcs_of_joint(
    transducer: Transducer,
    joint: JointOperands,
    utterances: Utterances,
    rows_per_tile: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Those of blanks and labels as `rnnt_arcs` returns them, of arguments that, but for
    `rows_per_tile`, have been checked."""
    options, operands, _ = joint.tiled(transducer, utterances, rows_per_tile)
    arcs: Any = _arcs(options, operands)
    return nan_where_bad(arcs, operands.ints.bounds)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _arcs(options: JointOptions, operands: TiledOperands) -> tuple[jax.Array, jax.Array]:
    return _arcs_fwd(options, operands)[0]


def _arcs_fwd(options, operands):
    arcs = joint_arcs(options, operands)
    *_, T, W = arcs.blank.shape
    inside = arcs_inside(operands.ints.bounds, T, W, W - 1)
    blank, label = (jnp.where(here, x, -jnp.inf) for here, x in zip(inside, arcs[:2], strict=True))
    return (blank, label), (operands, arcs.denominators)


def _arcs_bwd(options, residuals, cotangents):
    operands, denominators = residuals
    weights, of_loss = weights_of(cotangents, operands.ints.bounds)
    return (
        joint_gradients(
            options, operands, denominators, None, Weights(*weights), of_loss, negligible=0
        ),
    )


_arcs.defvjp(_arcs_fwd, _arcs_bwd)
