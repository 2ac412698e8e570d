"""A joint network, traced and taken apart, for the losses that run it in tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import validation_joint
from .joint_function import DurationJointCallable, JointCallable, JointFunction, take_apart
from .linear_joint import for_tiles
from .random_keys import keys_of_utterances


class TracedJoint(NamedTuple):
    """What a loss's `joint_fn`, `params` and `rng` are to the tiles."""

    function: JointFunction
    variables: list[jax.Array]
    constants: list[jax.Array]
    closed_over: list[jax.Array]
    keys: jax.Array | None  # of the utterances, `(*batch, words)`
    key_impl: str | None
    logits: jax.ShapeDtypeStruct

    @staticmethod
    def of(
        joint_fn: JointCallable | DurationJointCallable,
        params: Any,
        encoder: jax.Array,
        predictor: jax.Array,
        rng: jax.Array | None,
        *,
        rows: tuple[int, ...],
        letters: str,
        num_durations: int | None = None,
    ) -> TracedJoint:
        """Tried with rows of encoder and predictor `(*rows, D)`; the rest as in `traced_logits`."""
        params = jax.tree.map(jnp.asarray, params)
        keys, key_impl = keys_of_utterances(rng, encoder.shape[:-2])
        operands = [
            jax.ShapeDtypeStruct((*rows, x.shape[-1]), x.dtype) for x in (encoder, predictor)
        ]
        if rng is not None:
            key_dtype = jax.eval_shape(lambda: jax.random.key(0, impl=key_impl)).dtype
            operands.append(jax.ShapeDtypeStruct(rows, key_dtype))
        logits, closed_over = validation_joint.traced_logits(
            joint_fn, params, *operands, rows=rows, letters=letters, num_durations=num_durations
        )
        joint_fn, params = for_tiles(joint_fn, params, logits)
        return TracedJoint(*take_apart(joint_fn, params, closed_over), keys, key_impl, logits)
