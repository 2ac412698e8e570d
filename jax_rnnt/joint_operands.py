"""A joint network and what it joins: the operands of what is computed a tile of cells at a time."""

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
from .joint_tiles import IntegerOperands, JointOptions, TiledOperands
from .label_windows import label_mask
from .numerics import accumulator_dtype
from .traced_joint import TracedJoint
from .transducers import Transducer
from .types import Array

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
        rng: jax.Array | None = None,
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

    def tiled(
        self, transducer: Transducer, utterances: Utterances, rows_per_tile: int | None
    ) -> tuple[JointOptions, TiledOperands, jax.Array | None]:
        """For arguments that, but for `rows_per_tile`, have been checked.

        Returns:
          What is static; arrays that are divided among devices alike; and the mask of label arcs,
          see `label_windows.label_mask`.
        """
        joint, encoder, predictor, sizes = self
        if rows_per_tile is None:
            rows_per_tile = self.rows_per_tile()
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
        variables, constants, *others, mask = align_varying_axes(
            variables, constants, encoder, predictor, ints, mask
        )
        constants = [*constants, *joint.closed_over]
        return options, TiledOperands(variables, constants, *others), mask
