"""Best alignments of given labels: `rnnt_align` and its kin, one for each loss."""

from __future__ import annotations

from functools import partial

import jax

from . import validation, validation_factored, validation_pruning
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .bands import band_arcs_fwd, band_operands
from .bounds import Utterances, labels_and_bounds
from .factored import checked_halves
from .factored_arcs import factored_arcs_fwd
from .label_windows import label_mask, only_allowed
from .lattice import banded_best_path, best_path
from .losses import checked_arcs, checked_logits
from .numerics import accumulator_dtype
from .operands import dense_operands
from .pruned_loss import checked_band
from .transducers import RnnTransducer, alignment_of_scores
from .types import (
    Alignment,
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Topology,
)


def rnnt_align(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
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
    """The most probable alignment of the labels: in which frame each of them is emitted.

    The Viterbi recursion over the lattice of `rnnt_loss`: arXiv 1211.3711, equation 16, with the
    maximum in place of the sum. Of equally probable alignments (to rounding) it is the one that
    emits every label earliest. Beside the arcs, memory is one byte for each cell.

    Args:
      logits, labels, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        logit_begins, label_begins, label_windows, where, implementation, check: as in `rnnt_loss`.
      delay_penalty: as in `rnnt_loss`; it is part of the score.

    Returns:
      `Alignment(score, frames)`: log-probabilities `(*batch,)` in float32 (float64 for float64
      logits), never above minus the loss but by rounding, and frames `(*batch, U)` int32, counted
      from the first frame of `logits`. Both are constants to differentiation.

      The score is -inf without any alignment, and NaN where the loss is; then, as in padding and
      for utterances that `where` leaves out (score 0), frames are -1.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    logits, utterances, arcs_options, lattice_options = checked_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
        check,
    )
    transducer = RnnTransducer(arcs_options, lattice_options)
    return alignment_of_scores(transducer, (logits,), utterances)


def rnnt_align_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    topology: Topology = "regular",
    final_blank: bool = False,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> Alignment:
    """The most probable alignment, from the log-probabilities of the arcs.

    Args:
      blank_log_probs, label_log_probs, logit_lengths, label_lengths, topology, final_blank,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_from_arcs`.
      delay_penalty: as in `rnnt_align`.

    Returns:
      As `rnnt_align`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_from_arcs`.
    """
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, label_windows=label_windows, where=where,
    )  # fmt: skip
    checked = checked_arcs(
        (blank_log_probs, label_log_probs),
        utterances,
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
        check,
    )
    return _align_from_arcs(*checked)


def rnnt_align_simple(
    am: Array,
    lm: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
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
    """The most probable alignment with the additive joiner, whose logits are never stored.

    Args:
      am, lm, labels, logit_lengths, label_lengths, blank_id, topology, normalization, final_blank,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_simple`.
      delay_penalty: as in `rnnt_align`.

    Returns:
      As `rnnt_align`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_simple`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    checked = checked_halves(
        (am, lm),
        utterances,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, final_blank, delay_penalty, implementation=implementation),
        check,
    )
    return _align_simple(*checked)


def rnnt_align_pruned(
    logits: Array,
    labels: Array,
    ranges: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> Alignment:
    """The most probable of the alignments that stay in a band.

    Args:
      logits, labels, ranges, logit_lengths, label_lengths, blank_id, topology, normalization,
        logit_begins, label_begins, label_windows, where, implementation, check: as in
        `rnnt_loss_pruned`.
      delay_penalty: as in `rnnt_align`.

    Returns:
      As `rnnt_align`; the score is -inf without an alignment in the band.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss_pruned`.
    """
    logits = validation.float_scores("logits", logits)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    ranges, utterances, arcs_options, lattice_options, _ = checked_band(
        logits.shape,
        utterances,
        ranges,
        ArcsOptions(blank_id, normalization, implementation=implementation),
        LatticeOptions(topology, False, delay_penalty, implementation=implementation),
        "none",
        check,
    )
    return _align_pruned(logits, ranges, utterances, arcs_options, lattice_options)


@partial(jax.jit, static_argnames=("options",))
def _align_from_arcs(
    blank: jax.Array, label: jax.Array, utterances: Utterances, options: LatticeOptions
) -> Alignment:
    blank, label = jax.lax.stop_gradient((blank, label))
    sizes = validation.sizes_of("blank_log_probs", blank.shape, 2)
    blank, label = with_whole_rows(len(sizes.batch), blank, label)
    _, bounds = labels_and_bounds(blank, sizes, utterances, None)
    dtype = accumulator_dtype(blank.dtype)
    label = only_allowed(label, label_mask(blank, sizes, utterances))
    operands = align_varying_axes(blank.astype(dtype), label.astype(dtype), bounds)
    return best_path(options, *operands)


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options"))
def _align_simple(
    am: jax.Array,
    lm: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
) -> Alignment:
    am, lm = jax.lax.stop_gradient((am, lm))
    sizes = validation_factored.factored_sizes(am.shape, lm.shape)
    (am, lm), labels, bounds, mask = dense_operands(
        (am, lm), sizes, utterances, arcs_options.blank_id
    )
    blank, label, _ = factored_arcs_fwd(arcs_options, am, lm, labels, bounds)
    return best_path(lattice_options, blank, only_allowed(label, mask), bounds)


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options"))
def _align_pruned(
    logits: jax.Array,
    ranges: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
) -> Alignment:
    logits = jax.lax.stop_gradient(logits)
    sizes, _ = validation_pruning.band_sizes(logits.shape, utterances.labels, ranges)
    (logits,) = with_whole_rows(len(sizes.batch), logits)
    logits, labels, frame_bounds, starts, bounds, mask = align_varying_axes(
        logits, *band_operands(logits, sizes, ranges, utterances, arcs_options.blank_id)
    )
    blank, label, _ = band_arcs_fwd(arcs_options, logits, labels, frame_bounds)
    label = only_allowed(label, mask)
    return banded_best_path(lattice_options, sizes.U, blank, label, starts, bounds)
