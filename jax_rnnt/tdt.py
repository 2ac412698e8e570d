"""The Token-and-Duration Transducer: losses of scores and of a joint network, best alignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from . import validation, validation_durations
from .bounds import Sizes, Utterances
from .joint_arcs import alignment_of_joint
from .joint_function import DurationJointCallable
from .joint_loss import loss_of_joint
from .joint_operands import JointOperands
from .transducers import TokenAndDurationTransducer, alignment_of_scores, loss_of_scores
from .types import (
    ArcsOptions,
    Array,
    DurationAlignment,
    Implementation,
    LatticeOptions,
    Reduction,
)


def rnnt_loss_tdt(
    logits: Array,
    duration_logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Sequence[int] = (0, 1, 2, 3, 4),
    sigma: float = 0.0,
    blank_id: int = 0,
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
    """Token-and-Duration Transducer loss (Xu et al., arXiv 2304.06795).

    The joint network predicts a token and, independently of it, a duration: how many frames to
    advance. A blank takes at least one frame, a label may take none, and the last arc is a blank
    that comes to the end of the utterance exactly. With `durations=(1,)` it is `rnnt_loss` with
    `topology="modified"` and `final_blank=True`. The log-softmax of the tokens is fused: beside
    logits and gradients, memory is a few `(T, U+1)` planes, and some for each duration.

    To train a share omega of the batches with the usual loss, as NeMo can, use
    `jax.lax.cond(jax.random.bernoulli(key, omega), ...)` with `rnnt_loss` and this one.

    Args:
      logits: `(*batch, T, U+1, V)`, as in `rnnt_loss`: scores of the tokens, V with blank.
      duration_logits: `(*batch, T, U+1, D)` float32, float64, bfloat16 or float16, unnormalised:
        scores of the durations. An own output of the network: cut off one tensor, both would be
        copied.
      labels, logit_lengths, label_lengths: as in `rnnt_loss`.
      durations: the D durations in frames, increasing, from 0 to 62, one of them positive. Static.
      sigma: logit under-normalisation: is subtracted from the log-probability of each token, so
        that alignments of few and long steps are worth more. Static, >= 0.
      fastemit_lambda, clamp: as in `rnnt_loss`, for the gradient by `logits` alone, as in NeMo.
      blank_id, delay_penalty, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss`. A label is emitted in the frame that its arc
        leaves. `"xla"` can be differentiated more than once.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 `logits`), or a scalar. Gradients have the
      dtypes of `logits` and `duration_logits`. Utterances without any alignment, as those of odd
      length with durations of 2 and 4, have loss +inf; those with NaN or +inf in a score that an
      alignment uses, or with bad lengths or labels that could not be checked, NaN. (What is in the
      utterance but out of reach may or may not count.) Both have gradient zero, and no effect on
      others. No frames and no labels give loss 0. Padding has no effect and gets gradient zero.
      Log-probabilities below -1e7 count as -inf, and so do those of alignments below -5e8.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; also for `duration_logits` of
        another shape than `logits`, up to the last dimension, and for bad `durations`.
    """
    scores, sizes, durations = _checked_scores(logits, duration_logits, durations)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, transducer = _checked(
        sizes,
        utterances,
        ArcsOptions(blank_id, "softmax", clamp, implementation),
        LatticeOptions("regular", False, delay_penalty, fastemit_lambda, implementation),
        durations,
        sigma,
        check,
    )
    reduction = validation.reduction_of(reduction)
    return loss_of_scores(transducer, scores, utterances, reduction)


def rnnt_loss_tdt_joint(
    joint_fn: DurationJointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Sequence[int] = (0, 1, 2, 3, 4),
    sigma: float = 0.0,
    rng: jax.Array | None = None,
    rows_per_tile: int | None = None,
    blank_id: int = 0,
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
    """`rnnt_loss_tdt` from a joint network, without storing its scores or its activations.

    Scores of some cells at a time are computed, and once more in the backward pass, as in
    `rnnt_loss_joint`: cells outside of the utterances cost nothing, nor do, in the backward pass,
    those without a probability. Memory beside inputs and gradients: a few `(*batch, T, U+1)`
    planes, two more for each duration, and what `joint_fn` needs for a tile of cells.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn: `(params, encoder_rows, predictor_rows) -> (logits, duration_logits)` maps rows
        `(n, D1)` and `(n, D2)`, for some n, to scores `(n, V)` of the tokens and `(n, D)` of the
        durations, each row for itself; `LinearDurationJoint` is the usual one. The rest as in
        `rnnt_loss_joint`.
      params, encoder_out, predictor_out, rng, rows_per_tile: as in `rnnt_loss_joint`.
      labels, logit_lengths, label_lengths, durations, sigma, blank_id, fastemit_lambda,
        delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss_tdt`.

    Returns:
      As `rnnt_loss_tdt`. Gradients as in `rnnt_loss_joint`: in reverse mode, once, with any
      `implementation`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_tdt` and `rnnt_loss_joint`.
    """
    durations = validation_durations.increasing_durations(durations)
    operands = params, encoder_out, predictor_out, rng
    joint = JointOperands.checked(joint_fn, *operands, num_durations=len(durations))
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, transducer = _checked(
        joint.sizes,
        utterances,
        ArcsOptions(blank_id, "softmax", clamp, implementation),
        LatticeOptions("regular", False, delay_penalty, fastemit_lambda, implementation),
        durations,
        sigma,
        check,
    )
    reduction = validation.reduction_of(reduction)
    return loss_of_joint(transducer, joint, utterances, rows_per_tile, reduction)


def rnnt_align_tdt(
    logits: Array,
    duration_logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Sequence[int] = (0, 1, 2, 3, 4),
    sigma: float = 0.0,
    blank_id: int = 0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> DurationAlignment:
    """The most probable alignment of the labels to a Token-and-Duration Transducer's frames.

    The Viterbi recursion over the lattice of `rnnt_loss_tdt`. Beside the log-probabilities of arcs
    and durations, memory is a plane of scores and a byte for each cell.

    Args:
      logits, duration_logits, labels, logit_lengths, label_lengths, durations, blank_id,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_tdt`.
      sigma, delay_penalty: as in `rnnt_loss_tdt`; they are part of the score.

    Returns:
      `DurationAlignment(score, frames, durations)`: log-probabilities `(*batch,)` in float32
      (float64 for float64 `logits`), never above minus the loss but by rounding; for each label the
      frame in which it is emitted, counted from the first one of `logits`, and the duration that is
      taken with it, `(*batch, U)` int32. All are constants to differentiation. Of equally probable
      alignments it is one.

      The score is -inf without any alignment, and NaN where the loss is; then, as in padding and
      for utterances that `where` leaves out (score 0), frames and durations are -1.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_tdt`.
    """
    scores, sizes, durations = _checked_scores(logits, duration_logits, durations)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, transducer = _checked(
        sizes,
        utterances,
        ArcsOptions(blank_id, implementation=implementation),
        LatticeOptions(delay_penalty=delay_penalty, implementation=implementation),
        durations,
        sigma,
        check,
    )
    return alignment_of_scores(transducer, scores, utterances)


def rnnt_align_tdt_joint(
    joint_fn: DurationJointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    durations: Sequence[int] = (0, 1, 2, 3, 4),
    sigma: float = 0.0,
    rows_per_tile: int | None = None,
    blank_id: int = 0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> DurationAlignment:
    """`rnnt_align_tdt` from a joint network, without storing its scores.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn, params, encoder_out, predictor_out, rows_per_tile: as in `rnnt_loss_tdt_joint`.
      labels, logit_lengths, label_lengths, durations, sigma, blank_id, delay_penalty, logit_begins,
        label_begins, label_windows, where, implementation, check: as in `rnnt_align_tdt`.

    Returns:
      As `rnnt_align_tdt`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_tdt_joint`.
    """
    durations = validation_durations.increasing_durations(durations)
    operands = params, encoder_out, predictor_out
    joint = JointOperands.checked(joint_fn, *operands, num_durations=len(durations))
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    utterances, transducer = _checked(
        joint.sizes,
        utterances,
        ArcsOptions(blank_id, implementation=implementation),
        LatticeOptions(delay_penalty=delay_penalty, implementation=implementation),
        durations,
        sigma,
        check,
    )
    return alignment_of_joint(transducer, joint, utterances, rows_per_tile)


def _checked_scores(
    logits: Any, duration_logits: Any, durations: Any
) -> tuple[tuple[jax.Array, jax.Array], Sizes, tuple[int, ...]]:
    """First what tells that scores of tokens and of durations are in one array."""
    logits = validation.float_scores("logits", logits)
    sizes = validation.sizes_of("logits", logits.shape, 3)
    durations = validation_durations.increasing_durations(durations)
    duration_logits = validation_durations.duration_scores(duration_logits, logits, len(durations))
    return (logits, duration_logits), sizes, durations


def _checked(
    sizes: Sizes,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    durations: tuple[int, ...],
    sigma: Any,
    check: Any,
) -> tuple[Utterances, TokenAndDurationTransducer]:
    """All arguments beside the scores; `durations` have been checked."""
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        sizes, utterances, arcs_options, lattice_options, check
    )
    sigma = validation.finite_number("sigma", sigma, minimum=0.0)
    return utterances, TokenAndDurationTransducer(arcs_options, lattice_options, sigma, durations)
