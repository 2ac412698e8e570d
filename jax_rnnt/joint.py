"""Loss, best alignment and arcs straight from a joint network, a tile of cells at a time."""

from __future__ import annotations

from typing import Any

import jax

from . import validation
from .bounds import Utterances
from .joint_arcs import alignment_of_joint, arcs_of_joint
from .joint_function import JointCallable
from .joint_loss import loss_of_joint
from .joint_operands import JointOperands
from .transducers import RnnTransducer
from .types import (
    Alignment,
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Reduction,
    Topology,
)


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
    joint = JointOperands.checked(joint_fn, params, encoder_out, predictor_out, rng)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        joint.sizes,
        utterances,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    transducer = RnnTransducer(arcs_options, lattice_options)
    reduction = validation.reduction_of(reduction)
    return loss_of_joint(transducer, joint, utterances, rows_per_tile, reduction)


def rnnt_align_joint(
    joint_fn: JointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    rows_per_tile: int | None = None,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> Alignment:
    """The most probable alignment, from a joint network whose logits are never stored.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn, params, encoder_out, predictor_out, rows_per_tile: as in `rnnt_loss_joint`.
      labels, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        delay_penalty, logit_begins, label_begins, label_windows, where, implementation, check: as
        in `rnnt_align`.

    Returns:
      As `rnnt_align`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_joint`.
    """
    joint = JointOperands.checked(joint_fn, params, encoder_out, predictor_out)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        joint.sizes,
        utterances,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
        check,
    )
    transducer = RnnTransducer(arcs_options, lattice_options)
    return alignment_of_joint(transducer, joint, utterances, rows_per_tile)


def rnnt_arcs_joint(
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
    normalization: Normalization = "softmax",
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the blank and the label arc of each cell, from a joint network.

    `rnnt_arcs` of `joint_fn`'s logits for all pairs of a frame and a label position, which are
    computed some cells at a time, and once more in the backward pass: for posteriors, or a loss of
    one's own, with the memory of `rnnt_loss_joint`. Where the loss is one of the library's, the
    latter is faster: it knows which cells have no weight before it computes them again.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn, params, encoder_out, predictor_out, rng, rows_per_tile: as in `rnnt_loss_joint`.
      labels, logit_lengths, label_lengths, blank_id, normalization, logit_begins, label_begins,
        where, implementation, check: as in `rnnt_arcs`.

    Returns:
      As `rnnt_arcs`. Gradients as in `rnnt_loss_joint`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_joint`.
    """
    joint = JointOperands.checked(joint_fn, params, encoder_out, predictor_out, rng)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, where=where,
    )  # fmt: skip
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        joint.sizes,
        utterances,
        ArcsOptions(blank_id, normalization, None, implementation),
        LatticeOptions(),
        check,
    )
    transducer = RnnTransducer(arcs_options, lattice_options)
    return arcs_of_joint(transducer, joint, utterances, rows_per_tile)
