"""Multi-blank transducers: losses of logits and of a joint network, best alignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from . import validation, validation_durations
from .bounds import Sizes, Utterances
from .joint_arcs import alignment_of_joint
from .joint_function import JointCallable
from .joint_loss import loss_of_joint
from .joint_operands import JointOperands
from .transducers import MultiBlankTransducer, alignment_of_scores, loss_of_scores
from .types import Alignment, ArcsOptions, Array, Implementation, LatticeOptions, Reduction


def rnnt_loss_multi_blank(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    big_blank_ids: Sequence[int],
    big_blank_durations: Sequence[int],
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
    """Multi-blank transducer loss (Xu et al., arXiv 2211.03541): big blanks skip several frames.

    The lattice is `rnnt_loss`'s, with more arcs: a big blank of duration d leads from frame `t` to
    `t + d`, if that is in the utterance or just its end. Without big blanks it is `rnnt_loss`. The
    log-softmax is fused: beside logits and gradient, which never share memory here, it takes a few
    `(T, U+1)` planes, and some for each big blank.

    Args:
      logits: `(*batch, T, U+1, V)`, as in `rnnt_loss`; V includes all blanks.
      labels, logit_lengths, label_lengths: as in `rnnt_loss`; no label is a big blank either.
      big_blank_ids: classes of the big blanks; negative values count from the end. Static.
      big_blank_durations: how many frames each of them takes: different numbers from 2 to 62.
        Static.
      sigma: logit under-normalisation: is subtracted from the log-probability of every arc, so
        that alignments of few and long steps are worth more. The paper has 0.05. Static, >= 0.
      blank_id: class of the usual blank, which takes one frame.
      fastemit_lambda, delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction,
        where, implementation, check: as in `rnnt_loss`. `"xla"` can be differentiated more than
        once.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 `logits`), or a scalar. Gradients have the
      dtype of `logits`. Utterances without any alignment have loss +inf; those with NaN or +inf in
      a score that an alignment uses, or with bad lengths or labels that could not be checked, NaN.
      (A big blank that would lead out of the utterance may or may not count.) Both have gradient
      zero, and no effect on others. No frames and no labels give loss 0. Padding has no effect and
      gets gradient zero. Log-probabilities below -1e7 count as -inf, and so do those of alignments
      below -5e8.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; also for bad durations, and for
        ids that are not as many, not different, or that of the usual blank.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    logits = validation.float_scores("logits", logits)
    utterances, transducer = _checked(
        validation.sizes_of("logits", logits.shape, 3),
        utterances,
        ArcsOptions(blank_id, "softmax", clamp, implementation),
        LatticeOptions("regular", False, delay_penalty, fastemit_lambda, implementation),
        (big_blank_ids, big_blank_durations),
        sigma,
        check,
    )
    reduction = validation.reduction_of(reduction)
    return loss_of_scores(transducer, (logits,), utterances, reduction)


def rnnt_loss_multi_blank_joint(
    joint_fn: JointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    big_blank_ids: Sequence[int],
    big_blank_durations: Sequence[int],
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
    """`rnnt_loss_multi_blank` from a joint network, without storing its logits or its activations.

    Logits of some cells at a time are computed, and once more in the backward pass, as in
    `rnnt_loss_joint`: cells outside of the utterances cost nothing, nor do, in the backward pass,
    those without a probability. Memory beside inputs and gradients: a few `(*batch, T, U+1)`
    planes, two more for each blank, and what `joint_fn` needs for a tile of cells.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn, params, encoder_out, predictor_out, rng, rows_per_tile: as in `rnnt_loss_joint`. The
        network's V classes include all blanks.
      labels, logit_lengths, label_lengths, big_blank_ids, big_blank_durations, sigma, blank_id,
        fastemit_lambda, delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction,
        where, implementation, check: as in `rnnt_loss_multi_blank`.

    Returns:
      As `rnnt_loss_multi_blank`. Gradients as in `rnnt_loss_joint`: in reverse mode, once, with any
      `implementation`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_multi_blank` and `rnnt_loss_joint`.
    """
    joint = JointOperands.checked(joint_fn, params, encoder_out, predictor_out, rng)
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
        (big_blank_ids, big_blank_durations),
        sigma,
        check,
    )
    reduction = validation.reduction_of(reduction)
    return loss_of_joint(transducer, joint, utterances, rows_per_tile, reduction)


def rnnt_align_multi_blank(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    big_blank_ids: Sequence[int],
    big_blank_durations: Sequence[int],
    sigma: float = 0.0,
    blank_id: int = 0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> Alignment:
    """The most probable alignment of the labels to a multi-blank transducer's frames.

    The Viterbi recursion over the lattice of `rnnt_loss_multi_blank`. Beside the log-probabilities
    of the arcs, memory is a plane of scores and a byte for each cell.

    Args:
      logits, labels, logit_lengths, label_lengths, big_blank_ids, big_blank_durations, blank_id,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_multi_blank`.
      sigma, delay_penalty: as in `rnnt_loss_multi_blank`; they are part of the score.

    Returns:
      As `rnnt_align`; of equally probable alignments it is one.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_multi_blank`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    logits = validation.float_scores("logits", logits)
    utterances, transducer = _checked(
        validation.sizes_of("logits", logits.shape, 3),
        utterances,
        ArcsOptions(blank_id, implementation=implementation),
        LatticeOptions(delay_penalty=delay_penalty, implementation=implementation),
        (big_blank_ids, big_blank_durations),
        sigma,
        check,
    )
    return alignment_of_scores(transducer, (logits,), utterances)


def rnnt_align_multi_blank_joint(
    joint_fn: JointCallable,
    params: Any,
    encoder_out: Array,
    predictor_out: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    big_blank_ids: Sequence[int],
    big_blank_durations: Sequence[int],
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
) -> Alignment:
    """`rnnt_align_multi_blank` from a joint network, without storing its logits.

    Call it inside `jax.jit`: outside, each call compiles `joint_fn` again.

    Args:
      joint_fn, params, encoder_out, predictor_out, rows_per_tile: as in
        `rnnt_loss_multi_blank_joint`.
      labels, logit_lengths, label_lengths, big_blank_ids, big_blank_durations, sigma, blank_id,
        delay_penalty, logit_begins, label_begins, label_windows, where, implementation, check: as
        in `rnnt_align_multi_blank`.

    Returns:
      As `rnnt_align_multi_blank`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_multi_blank_joint`.
    """
    joint = JointOperands.checked(joint_fn, params, encoder_out, predictor_out)
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
        (big_blank_ids, big_blank_durations),
        sigma,
        check,
    )
    return alignment_of_joint(transducer, joint, utterances, rows_per_tile)


def _checked(
    sizes: Sizes,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    big_blanks: tuple[Any, Any],
    sigma: Any,
    check: Any,
) -> tuple[Utterances, MultiBlankTransducer]:
    """All arguments beside the scores. `big_blanks`: ids and durations."""
    arcs_options = validation.checked_arcs_options(sizes.num_classes, arcs_options)
    big_blank_ids, big_blank_durations = validation_durations.big_blanks(
        *big_blanks, arcs_options.blank_id, sizes.num_classes
    )
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        sizes, utterances, arcs_options, lattice_options, check, big_blank_ids
    )
    sigma = validation.finite_number("sigma", sigma, minimum=0.0)
    return utterances, MultiBlankTransducer(
        arcs_options, lattice_options, sigma, big_blank_ids, big_blank_durations
    )
