"""The pruned loss: of the alignments in a band of the lattice (arXiv 2206.13236)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from . import validation, validation_pruning
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .bands import band_arcs_bwd, band_arcs_fwd, band_operands
from .bounds import Utterances
from .label_windows import only_allowed
from .lattice import banded_lattice, banded_lattice_score, gradient_weights
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


def rnnt_loss_pruned(
    logits: Array,
    labels: Array,
    ranges: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
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
    """RNN-Transducer loss of the alignments that stay in a band (arXiv 2206.13236, section 3.1).

    It takes O(T S) time and memory. But for rounding, it is never below `rnnt_loss`, which it is
    with S = U+1.

    Args:
      logits: `(*batch, T, S, V)` float32, float64, bfloat16 or float16: output of the joint network
        for frame `t` after `ranges[t, s]` labels, with the inputs of `do_rnnt_pruning`.
      labels: `(*batch, U)` integers in [0, V), none of them blank. Padding may be anything.
      ranges: `(*batch, T, S)` integers, S <= U+1: S consecutive label positions in [0, U] for each
        frame, usually from `get_rnnt_prune_ranges`; anything in padding. An alignment has to be in
        one of them whenever it is in frame `t`; those of other cells do not count. (A constrained
        label arc uses the blank arc of the position above its own: that must be kept, too.)
      logit_lengths, label_lengths, blank_id, topology, normalization, fastemit_lambda,
        delay_penalty, clamp, logit_begins, label_begins, label_windows, reduction, where,
        implementation, check: as in `rnnt_loss`.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 logits), or a scalar, as `rnnt_loss`. An
      utterance without any alignment in its band has loss +inf, one with bad ranges that could not
      be checked has NaN; both have gradient zero.

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`; with `check`, also for ranges that
        are not consecutive or not in [0, U], and for those that in the last frame end below the
        last label of an utterance, as ranges made for other lengths do.
    """
    logits = validation.float_scores("logits", logits)
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    band = checked_band(
        logits.shape,
        utterances,
        ranges,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, False, delay_penalty, fastemit_lambda, implementation),
        reduction,
        check,
    )
    return _rnnt_loss_pruned(logits, *band)


def checked_band(
    logits_shape: tuple[int, ...],
    utterances: Utterances,
    ranges: Any,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    reduction: Any,
    check: Any,
) -> tuple[Array, Utterances, ArcsOptions, LatticeOptions, Reduction]:
    """All arguments of a pruned loss beside the scores, checked."""
    sizes, ranges = validation_pruning.band_sizes(logits_shape, utterances.labels, ranges)
    reduction = validation.reduction_of(reduction)
    utterances, arcs_options, lattice_options = validation.checked_arguments(
        sizes, utterances, arcs_options, lattice_options, check
    )
    ranges = validation_pruning.checked_ranges(sizes, utterances, ranges, check)
    if check:
        validation_pruning.check_band_reaches_end(
            sizes, utterances, ranges, lattice_options.topology
        )
    return ranges, utterances, arcs_options, lattice_options, reduction


@partial(jax.jit, static_argnames=("arcs_options", "lattice_options", "reduction"))
def _rnnt_loss_pruned(
    logits: jax.Array,
    ranges: jax.Array,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    reduction: Reduction,
) -> jax.Array:
    sizes, _ = validation_pruning.band_sizes(logits.shape, utterances.labels, ranges)
    (logits,) = with_whole_rows(len(sizes.batch), logits)
    operands = align_varying_axes(
        logits, *band_operands(logits, sizes, ranges, utterances, arcs_options.blank_id)
    )
    loss: Any = _banded_loss(arcs_options, lattice_options, sizes.U, *operands)
    return reduce_losses(loss, reduction, utterances.where)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _banded_loss(
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    num_labels: int,
    logits: jax.Array,
    labels: jax.Array,
    frame_bounds: jax.Array,
    starts: jax.Array,
    bounds: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    blank, label, _ = band_arcs_fwd(arcs_options, logits, labels, frame_bounds)
    label = only_allowed(label, mask)
    return negative(banded_lattice_score(lattice_options, num_labels, blank, label, starts, bounds))


def _banded_loss_fwd(arcs_options, lattice_options, num_labels, logits, labels, *bands):
    frame_bounds, starts, bounds, mask = bands
    blank, label, denominators = band_arcs_fwd(arcs_options, logits, labels, frame_bounds)
    label = only_allowed(label, mask)
    log_likelihood, posteriors = banded_lattice(
        lattice_options, num_labels, blank, label, starts, bounds
    )
    return negative(log_likelihood), (logits, labels, denominators, posteriors)


def _banded_loss_bwd(arcs_options, lattice_options, num_labels, residuals, cotangents):
    del num_labels
    logits, labels, denominators, posteriors = residuals
    weights = gradient_weights(lattice_options, posteriors)
    gradient = band_arcs_bwd(arcs_options, logits, labels, denominators, weights, cotangents)
    return gradient, None, None, None, None, None


_banded_loss.defvjp(_banded_loss_fwd, _banded_loss_bwd)
