"""Losses of packed rows: the cells of a batch without padding (optimized_transducer's layout)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from . import validation, validation_packed
from ._native.jax_versions import (
    align_varying_axes,
    replicated,
    with_batch_sharding_of,
    with_whole_rows,
)
from .arcs import arcs_bwd, arcs_fwd
from .bounds import Utterances
from .label_windows import only_allowed
from .lattice import gradient_weights, packed_lattice, packed_lattice_score
from .losses import gradients_by_arcs
from .numerics import accumulator_dtype
from .packed_rows import LatticeOperands, RowOperands, packed_operands
from .reduction import negative, reduce_losses
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


def rnnt_loss_packed(
    logits: Array,
    labels: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """`rnnt_loss` of packed logits, those of valid cells only.

    An utterance with T_b frames and U_b labels has T_b (U_b+1) rows: the U_b+1 cells of its first
    frame, those of its second one, and so on. Utterances follow one another; rows that are left
    over at the end are padding. `packed_size` counts rows, `pack_joint_inputs` makes the input of
    a joint network for them.

    Args:
      logits: `(N, V)` float32, float64, bfloat16 or float16, N < 2**31: output of the joint
        network, unnormalised unless `normalization="none"`. V includes blank.
      labels: `(B, U)` integers in [0, V), none of them blank. Padding may be anything.
      logit_lengths: `(B,)` integers, frames of each utterance.
      label_lengths: `(B,)` integers in [0, U], labels of each utterance.
      blank_id, topology, normalization, final_blank, fastemit_lambda, delay_penalty, clamp,
        label_windows, reduction, where, implementation, check: as in `rnnt_loss`. Utterances that
        `where` leaves out have their rows like others.

    Returns:
      `(B,)` losses in float32 (float64 for float64 logits), or a scalar, as `rnnt_loss`. Gradients
      have the dtype of the logits, and are zero in padding. Where N is too small and could not be
      checked, utterances that do not have all of their rows have loss NaN and gradient zero.

      If the rows are divided among devices, they stay so in all that takes N V memory. The arcs,
      `(N,)` each, are gathered: rows of an utterance may lie on several devices. In `shard_map`,
      each device has packed utterances of its own.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; with `check`, also for lengths
        that need more than N rows.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        label_windows=label_windows, where=where,
    )  # fmt: skip
    checked = checked_packed_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    return _rnnt_loss_packed(*checked, validation.reduction_of(reduction))


def checked_packed_logits(
    logits: Any,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    check: Any,
) -> tuple[jax.Array, Utterances, ArcsOptions, LatticeOptions]:
    """All arguments of a function of packed logits, checked."""
    logits = validation.float_scores("logits", logits)
    sizes = validation_packed.packed_sizes(logits.shape, utterances.labels)
    arcs_options = validation.checked_arcs_options(sizes.num_classes, arcs_options)
    lattice_options = validation.checked_lattice_options(lattice_options)
    utterances = validation_packed.checked_utterances(
        sizes, utterances, arcs_options.blank_id, check
    )
    return logits, utterances, arcs_options, lattice_options


@overload
def rnnt_loss_packed_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    max_labels: int,
    return_posteriors: Literal[False] = False,
    topology: Topology = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array: ...


@overload
def rnnt_loss_packed_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    max_labels: int,
    return_posteriors: Literal[True],
    topology: Topology = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> tuple[jax.Array, Posteriors]: ...


def rnnt_loss_packed_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array,
    label_lengths: Array,
    *,
    max_labels: int,
    return_posteriors: bool = False,
    topology: Topology = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array | tuple[jax.Array, Posteriors]:
    """`rnnt_loss_from_arcs` of packed arcs, those of valid cells only.

    Args:
      blank_log_probs: `(N,)` float32, float64, bfloat16 or float16, N < 2**31: log-probability of
        blank in each row, in the order that `rnnt_loss_packed` has.
      label_log_probs: the same shape and dtype, log-probability of the label that follows; ignored
        in the last row of each frame. Of an array `(N, 2)` that holds both, pass `arcs[:, 0]` and
        `arcs[:, 1]`.
      logit_lengths, label_lengths: `(B,)` integers, frames and labels of each utterance.
      max_labels: no utterance has more labels. Static: memory grows with B (max_labels + 1)**2,
        besides N.
      return_posteriors: also return the arc posteriors, `(N,)` each. They are constants to
        differentiation.
      topology, final_blank, fastemit_lambda, delay_penalty, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss_packed`; `label_windows` `(B, max_labels, 2)`.

    Returns:
      The losses as `rnnt_loss_packed` returns them, or `(losses, Posteriors(blank, label))`, as
      `rnnt_loss_from_arcs`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_packed`.
    """
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    checked = checked_packed_arcs(
        (blank_log_probs, label_log_probs),
        utterances,
        max_labels,
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    reduction = validation.reduction_of(reduction)
    return_posteriors = validation.static_bool("return_posteriors", return_posteriors)
    loss, posteriors = _rnnt_loss_packed_from_arcs(*checked, reduction, return_posteriors)
    return loss if posteriors is None else (loss, posteriors)


def checked_packed_arcs(
    arcs: tuple[Any, Any],
    utterances: Utterances,
    max_labels: Any,
    options: LatticeOptions,
    check: Any,
) -> tuple[jax.Array, jax.Array, Utterances, int, LatticeOptions]:
    """All arguments of a function of packed arcs, checked."""
    blank = validation.float_scores("blank_log_probs", arcs[0])
    label = validation.like("label_log_probs", arcs[1], "blank_log_probs", blank)
    sizes = validation_packed.packed_arc_sizes(blank.shape, max_labels, utterances.logit_lengths)
    options = validation.checked_lattice_options(options)
    utterances = validation_packed.checked_utterances(sizes, utterances, None, check)
    return blank, label, utterances, sizes.U, options


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options", "reduction"))
def _rnnt_loss_packed(
    logits: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    reduction: Reduction,
) -> jax.Array:
    sizes = validation_packed.packed_sizes(logits.shape, utterances.labels)
    if sizes.batch[0] == 0:
        return reduce_losses(jnp.zeros(0, accumulator_dtype(logits.dtype)), reduction, None)
    rows, lattice = packed_operands(utterances, sizes, arcs_options.blank_id)
    logits, *whole_rows = with_whole_rows(1, logits, *rows)
    operands = align_varying_axes(logits, RowOperands(*whole_rows), lattice)
    loss: Any = _packed_loss(arcs_options, lattice_options, sizes.U, *operands)
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _packed_loss(
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    num_labels: int,
    logits: jax.Array,
    rows: RowOperands,
    lattice: LatticeOperands,
) -> jax.Array:
    blank, label, _ = row_arcs(arcs_options, logits, rows.labels, rows.bounds)
    label = only_allowed(label, lattice.mask)
    operands = blank, label, lattice.offsets, lattice.bounds
    return negative(packed_lattice_score(lattice_options, num_labels, *operands))


def _packed_loss_fwd(arcs_options, lattice_options, num_labels, logits, rows, lattice):
    blank, label, denominators = row_arcs(arcs_options, logits, rows.labels, rows.bounds)
    label = only_allowed(label, lattice.mask)
    operands = blank, label, lattice.offsets, lattice.bounds
    log_likelihood, posteriors = packed_lattice(lattice_options, num_labels, *operands)
    residuals = logits, rows.labels, rows.utterances, denominators, posteriors
    return negative(log_likelihood), residuals


def _packed_loss_bwd(arcs_options, lattice_options, num_labels, residuals, cotangents):
    del num_labels
    logits, row_labels, row_utterances, denominators, posteriors = residuals
    weights = gradient_weights(lattice_options, posteriors)
    of_rows = (*weights, cotangents[replicated(row_utterances)])
    blank, label, cotangents = (with_batch_sharding_of(logits, 1, x) for x in of_rows)
    cells = (logits, denominators, blank, label)
    x, denominators, blank, label = (jnp.expand_dims(x, (1, 2)) for x in cells)
    operands = align_varying_axes(x, row_labels, denominators, blank, label, cotangents)
    gradient = arcs_bwd(arcs_options, *operands).reshape(logits.shape)
    return gradient, None, None


_packed_loss.defvjp(_packed_loss_fwd, _packed_loss_bwd)


def row_arcs(
    options: ArcsOptions, logits: jax.Array, labels: jax.Array, bounds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blank and label arcs of all rows, whole on each device, and their denominators; `(N,)`."""
    arcs = arcs_fwd(options, jnp.expand_dims(logits, (1, 2)), labels, bounds)
    blank, label, denominators = (jnp.squeeze(x, (1, 2)) for x in arcs)
    return replicated(blank), replicated(label), denominators


@partial(jax.jit, static_argnames=("max_labels", "options", "reduction", "return_posteriors"))
def _rnnt_loss_packed_from_arcs(
    blank: jax.Array,
    label: jax.Array,
    utterances: Utterances,
    max_labels: int,
    options: LatticeOptions,
    reduction: Reduction,
    return_posteriors: bool,
) -> tuple[jax.Array, Posteriors | None]:
    sizes = validation_packed.packed_arc_sizes(blank.shape, max_labels, utterances.logit_lengths)
    dtype = accumulator_dtype(blank.dtype)
    if sizes.batch[0] == 0:
        zeros = jnp.zeros(blank.shape, dtype)
        loss = reduce_losses(jnp.zeros(0, dtype), reduction, None)
        return loss, Posteriors(zeros, zeros) if return_posteriors else None
    rows, lattice = packed_operands(utterances, sizes, None)
    label = only_allowed(label, lattice.mask)
    blank, label = (replicated(x).astype(dtype) for x in (blank, label))
    operands = align_varying_axes(blank, label, rows.utterances, lattice.offsets, lattice.bounds)
    result: Any = _packed_arcs_loss(options, max_labels, return_posteriors, *operands)
    loss, posteriors = result
    return reduce_losses(loss, reduction, utterances.where), jax.lax.stop_gradient(posteriors)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _packed_arcs_loss(
    options: LatticeOptions,
    num_labels: int,
    return_posteriors: bool,
    blank: jax.Array,
    label: jax.Array,
    row_utterances: jax.Array,
    offsets: jax.Array,
    bounds: jax.Array,
) -> tuple[jax.Array, Posteriors | None]:
    del row_utterances
    operands = blank, label, offsets, bounds
    if return_posteriors:
        log_likelihood, posteriors = packed_lattice(options, num_labels, *operands)
        return negative(log_likelihood), posteriors
    return negative(packed_lattice_score(options, num_labels, *operands)), None


def _packed_arcs_loss_fwd(options, num_labels, return_posteriors, blank, label, *ints):
    row_utterances, *lattice_ints = ints
    log_likelihood, posteriors = packed_lattice(options, num_labels, blank, label, *lattice_ints)
    result = negative(log_likelihood), posteriors if return_posteriors else None
    return result, (row_utterances, posteriors)


def _packed_arcs_loss_bwd(options, num_labels, return_posteriors, residuals, cotangents):
    del num_labels, return_posteriors
    row_utterances, posteriors = residuals
    gradients = gradients_by_arcs(options, posteriors, cotangents[0][row_utterances])
    return *gradients, None, None, None


_packed_arcs_loss.defvjp(_packed_arcs_loss_fwd, _packed_arcs_loss_bwd)
