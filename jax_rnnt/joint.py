"""The exact loss straight from a joint network, a tile of cells at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

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
from .joint_function import JointCallable, default_rows_per_tile, take_apart
from .joint_tiles import IntegerOperands, JointOptions, joint_arcs, joint_gradients
from .label_windows import label_mask, only_allowed
from .lattice import gradient_weights, lattice, lattice_score
from .linear_joint import with_whole_vectors
from .numerics import accumulator_dtype
from .random_keys import keys_of_utterances
from .reduction import negative, reduce_losses
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Reduction,
    Topology,
)

_FEWEST_TILES = 32
"""Where several cores share a tile, a batch is cut into at least so many: the last one is computed
whole even if few boxes fill it, and this bounds the waste."""


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
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """The exact loss from a joint network, without storing its logits or its activations.

    Equal to `rnnt_loss` of `joint_fn`'s logits for all pairs of a frame and a label position, in
    value and gradients. The logits of some cells at a time are computed, and once more in the
    backward pass. Cells outside of the utterances cost nothing, unlike those of padded logits; nor
    do, in the backward pass, boxes of neighbouring cells where no alignment has a probability above
    the square of the dtype's epsilon (1e-14 in float32): most of them when a model is trained.
    Memory beside inputs and gradients: a few `(*batch, T, U+1)` planes, and what `joint_fn` needs
    for a tile of cells.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn: `(params, encoder_rows, predictor_rows) -> logits` maps rows `(n, D1)` and
        `(n, D2)`, for some n, to logits `(n, V)`, each row for itself. All that the loss is to be
        differentiated by has to come in as an argument: to close over a traced value is an error.
        Rows without a cell that counts are zeros; the derivative has to be finite there. With
        `rng`, it gets a fourth argument, `(n,)` random keys, one for each row.
      params: any pytree of arrays, for example the state of `graph, state = flax.nnx.split(module)`
        with a `joint_fn` that calls `flax.nnx.merge(graph, state)`. Gradients of floating-point
        leaves are summed in float32 (or float64) and returned in the leaf's dtype; other leaves,
        integers or random keys, have none.
      encoder_out: `(*batch, T, D1)` floating point.
      predictor_out: `(*batch, U+1, D2)` floating point.
      labels: `(*batch, U)` integers, as in `rnnt_loss`.
      rng: random key, for dropout. A row's key depends on it and on the row's utterance, frame and
        label position alone, not on tiles or padding, and is the same in both passes.
      rows_per_tile: how many cells to compute at a time. Static; None chooses it so that the
        widest of their arrays has 2 MB for each core of a CPU, or 48 MB on a GPU. The last bits of
        gradients depend on it.
      logit_lengths, label_lengths, blank_id, topology, normalization, final_blank, fastemit_lambda,
        delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss`. `clamp` bounds the gradient by the logits.

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
    keys, key_impl = keys_of_utterances(rng, sizes.batch)
    rows = [jax.ShapeDtypeStruct((2, x.shape[-1]), x.dtype) for x in (encoder, predictor)]
    if rng is not None:
        rows.append(jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl=key_impl))))
    logits, closed_over = validation_joint.traced_logits(joint_fn, (2,), "(n, V)", params, *rows)
    joint_fn, params = with_whole_vectors(joint_fn, params, logits)
    joint, variables, constants, closed_over = take_apart(joint_fn, params, closed_over)
    sizes = Sizes(sizes.batch, sizes.T, sizes.U, logits.shape[-1])
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        sizes,
        utterances,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    reduction = validation.reduction_of(reduction)
    if rows_per_tile is None:
        most = math.prod((*sizes.batch, sizes.T, sizes.U + 1)) // _FEWEST_TILES
        rows_per_tile = default_rows_per_tile(
            logits, encoder, predictor, most=most if isinstance(most, int) else None
        )
    rows_per_tile = validation.whole_number("rows_per_tile", rows_per_tile, minimum=1)

    encoder, predictor = with_whole_rows(len(sizes.batch), encoder, predictor)
    targets, bounds = labels_and_bounds(encoder, sizes, utterances, arcs_options.blank_id)
    assert targets is not None
    keys = jax.tree.map(partial(with_batch_sharding_of, encoder, len(sizes.batch)), keys)
    options = JointOptions(
        joint,
        rows_per_tile,
        encoder.dtype,
        predictor.dtype,
        accumulator_dtype(logits.dtype),
        key_impl,
        arcs_options,
        lattice_options,
    )
    ints = IntegerOperands(targets, bounds, keys)
    mask = label_mask(encoder, sizes, utterances)
    variables, constants = jax.tree.map(replicated, (variables, constants))
    operands = variables, constants, encoder, predictor, ints, mask
    variables, constants, *others = align_varying_axes(*operands)
    loss: Any = _loss(options, variables, [*constants, *closed_over], *others)
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
    blank, label, _ = joint_arcs(options, variables, constants, encoder, predictor, ints)
    label = only_allowed(label, mask)
    return negative(lattice_score(options.lattice, blank, label, ints.bounds))


def _loss_fwd(options, variables, constants, encoder, predictor, ints, mask):
    operands = variables, constants, encoder, predictor, ints
    blank, label, denominators = joint_arcs(options, *operands)
    label = only_allowed(label, mask)
    log_likelihood, posteriors = lattice(options.lattice, blank, label, ints.bounds)
    return negative(log_likelihood), (operands, denominators, posteriors)


def _loss_bwd(options, residuals, cotangents):
    (variables, constants, encoder, predictor, ints), denominators, posteriors = residuals
    weights = gradient_weights(options.lattice, posteriors)
    gradients = joint_gradients(
        options, variables, constants, encoder, predictor, ints, denominators, weights, cotangents
    )
    d_encoder, d_predictor, *d_variables = gradients
    return d_variables, None, d_encoder, d_predictor, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)
